"""Memory as bars: the weights, running the model, training it, and what AdamW would take."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from featherlight.report.groups import Group
from featherlight.report.quantities import in_bytes
from featherlight.report.runs import RunSummary
from featherlight.report.words import method_name

_MOST_IN_FULL = 4


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar from `start`, `share` long, in percent of the chart; `line` is where an upright line stands, None for none.

    `look` is weights, inference, training or estimate.
    """

    label: str
    source: str
    value: float
    text: str
    share: float
    line: float | None
    look: str
    start: float = 0.0
    slot: int | None = None


@dataclass(frozen=True, kw_only=True)
class BarGroup:
    """Bars under a name; each is in the colour `slot`, or in its own where it has one."""

    label: str
    slot: int
    bars: tuple[Bar, ...]


def memory_bars(groups: Sequence[Group]) -> list[BarGroup]:
    """Draw the memory of each group that measured it, all to one scale.

    Args:
        groups: one or several; a group of several seeds shows its first ended run.

    Returns:
        A group of bars for each. The estimate for AdamW is left out where a run of the same model with AdamW stands
        beside it, since that one is measured. More than four groups are one group of bars, the peak of each.
    """
    done = [(group, group.lead.outcome) for group in groups]
    told = [(group, summary) for group, summary in done if summary and summary.memory]
    alone = len(groups) == 1
    measured = {s.facts.get("model") for _, s in told if s.method == "adamw"} if not alone else set()
    if len(told) > _MOST_IN_FULL:
        return [_in_brief(told)]
    rows = [
        (group, summary, memory_rows(summary, with_estimate=summary.facts.get("model") not in measured))
        for group, summary in told
    ]
    longest = max((num_bytes for _, _, found in rows for _, _, num_bytes, _ in found), default=0) or 1
    return [
        BarGroup(
            label=group.label,
            slot=group.slot,
            bars=tuple(_bar(row, longest, summary.memory.inference_peak if summary.memory else None) for row in found),
        )
        for group, summary, found in rows
    ]


def _in_brief(told: Sequence[tuple[Group, RunSummary]]) -> BarGroup:
    """Draw one bar for each group, its peak."""
    peaks = [(group, s.memory.peak, s.memory.inference_peak) for group, s in told if s.memory]
    known = [(group, peak, line) for group, peak, line in peaks if peak is not None]
    longest = max((peak for _, peak, _ in known), default=0) or 1
    bars = [
        replace(_bar((group.label, "measured", peak, "training"), longest, line), slot=group.slot)
        for group, peak, line in known
    ]
    return BarGroup(label="Peak of each run", slot=0, bars=tuple(bars))


def _bar(row: tuple[str, str, int, str], longest: int, inference_peak: int | None) -> Bar:
    label, source, size, look = row
    return Bar(
        label=label,
        source=source,
        value=size,
        text=in_bytes(size),
        share=round(100 * size / longest, 2),
        line=None if inference_peak is None else round(100 * inference_peak / longest, 2),
        look=look,
    )


def memory_rows(summary: RunSummary, *, with_estimate: bool) -> list[tuple[str, str, int, str]]:
    """Return the name, source (measured or estimated), bytes and look of each figure of a run's memory."""
    memory = summary.memory
    if memory is None:
        return []
    this = f"This run, {method_name(summary.method)}" if summary.method else "This run"
    rows = [
        ("Weights", "measured", memory.weights, "weights"),
        ("Running the model", "measured", memory.inference_peak, "inference"),
        (this, "measured", memory.training_peak, "training"),
    ]
    if memory.training_peak is None:
        rows.append(("Whole process", "measured", memory.process_peak, "training"))
    if with_estimate:
        rows.append(("Training with AdamW", "estimated", memory.adamw_estimate, "estimate"))
    return [(name, source, size, look) for name, source, size, look in rows if size is not None]
