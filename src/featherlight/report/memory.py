"""Memory as bars: the weights, running the model, training it, and what AdamW would take."""

from collections.abc import Sequence
from dataclasses import dataclass

from featherlight.report.runs import RunRecord, RunSummary
from featherlight.report.words import method_name


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar: its length `share` and the inference peak's place `line` are percentages of the longest bar.

    `look` is weights, inference, training or estimate.
    """

    label: str
    source: str
    num_bytes: int
    share: float
    line: float
    look: str


@dataclass(frozen=True, kw_only=True)
class BarGroup:
    """The bars of one run, in the run's colour `slot`."""

    label: str
    slot: int
    bars: tuple[Bar, ...]


def memory_bars(runs: Sequence[RunRecord], labels: Sequence[str]) -> list[BarGroup]:
    """Draw the memory of each run that left a summary, all to one scale.

    Args:
        runs: one run or several.
        labels: a name for each, in the same order.

    Returns:
        A group of bars for each run with a summary. The estimate for AdamW is left out where a run of the same model
        with AdamW stands beside it, since that one is measured.
    """
    done = [
        (slot, label, run.summary) for slot, (label, run) in enumerate(zip(labels, runs, strict=True)) if run.summary
    ]
    measured = {summary.model for _, _, summary in done if summary.method == "adamw"} if len(runs) > 1 else set()
    rows = [
        (slot, label, memory_rows(summary, with_estimate=summary.model not in measured))
        for slot, label, summary in done
    ]
    longest = max((num_bytes for _, _, found in rows for _, _, num_bytes, _ in found), default=0) or 1
    groups = []
    for (slot, label, found), (_, _, summary) in zip(rows, done, strict=True):
        line = 100 * summary.memory.inference_peak / longest
        bars = (
            Bar(
                label=name,
                source=source,
                num_bytes=size,
                share=round(100 * size / longest, 2),
                line=round(line, 2),
                look=look,
            )
            for name, source, size, look in found
        )
        groups.append(BarGroup(label=label, slot=slot, bars=tuple(bars)))
    return groups


def memory_rows(summary: RunSummary, *, with_estimate: bool) -> list[tuple[str, str, int, str]]:
    """Return the name, source (measured or estimated), bytes and look of each figure of a run's memory."""
    memory = summary.memory
    rows = [
        ("Weights", "measured", memory.weights, "weights"),
        ("Running the model", "measured", memory.inference_peak, "inference"),
        (f"This run, {method_name(summary.method)}", "measured", memory.training_peak, "training"),
    ]
    if memory.adamw_estimate is not None and with_estimate:
        rows.append(("Training with AdamW", "estimated", memory.adamw_estimate, "estimate"))
    return rows
