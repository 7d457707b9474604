"""What a run came to, in plain sentences."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from featherlight.report.curves import drawable
from featherlight.report.quantities import in_bytes, in_count, in_metric, in_metric_change, in_time
from featherlight.report.runs import Memory, Metric, RunRecord, RunSummary

DRAWN_SPLIT = "valid"
"""The split whose evaluations are drawn as curves."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A training method: its name in running text and what it is for."""

    name: str
    purpose: str


METHODS = {
    "zo": Method(
        name="Forward-only",
        purpose=(
            "Trains with forward passes alone, along rank-one directions, in the memory of inference. Evaluating never "
            "writes the weights, so they are restored exactly; the fine-tune is a journal of kilobytes that replays to "
            "the same bits anywhere. It is slow per example: it learns less from each than backpropagation does and "
            "needs many more of them. Choose it where the model can be run but not trained, or where the fine-tune "
            "must be small to ship."
        ),
    ),
    "mezo": Method(
        name="MeZO",
        purpose=(
            "The published forward-only baseline: it adds dense Gaussian noise to the weights in place and takes it "
            "off again. It needs the memory of inference too, but draws a normal number for every weight several "
            "times a step, and the weights come back only up to rounding. It is here to compare with."
        ),
    ),
    "adamw": Method(
        name="AdamW",
        purpose=(
            "Backpropagation: the ceiling, where memory allows it. It learns the most from each example, but needs "
            "room for gradients, two moments for every trained weight and the activations of the batch. If it fits, "
            "use it."
        ),
    ),
}

_STOPS = {
    "finished": ("Finished", "good"),
    "interrupted": ("Interrupted", "warn"),
    "minutes": ("Out of time", "calm"),
    "nan loss": ("Loss not a number", "bad"),
}


def method_name(method: str) -> str:
    """Return a method's name in running text; an unknown one goes by the name it was given."""
    return METHODS[method].name if method in METHODS else method


def stop_badge(summary: RunSummary | None) -> tuple[str, str]:
    """Return how a run ended, in two or three words, and the tone to say it in."""
    if summary is None:
        return "Unfinished", "warn"
    return _STOPS.get(summary.stopped, (f"Stopped: {summary.stopped}", "calm"))


def run_labels(runs: Sequence[RunRecord]) -> list[str]:
    """Name each run by the shortest thing that tells them apart: the method, the title, the folder, or both."""
    methods = [method_name(run.summary.method) if run.summary else run.path.name for run in runs]
    titles = [run.summary.title if run.summary else run.path.name for run in runs]
    folders = [run.path.name for run in runs]
    for names in (methods, titles, folders, [f"{m}, {f}" for m, f in zip(methods, folders, strict=True)]):
        if max(Counter(names).values()) == 1:
            return names
    return [f"{number}. {title}" for number, title in enumerate(titles, start=1)]


def higher_is_better(metric: Metric) -> bool:
    """Tell a metric's direction from where its best value lies."""
    return not (metric.best <= min(metric.start, metric.last) and metric.best < max(metric.start, metric.last))


def headline(run: RunRecord) -> str:
    """Say in a sentence or two what came of a run.

    Args:
        run: the run, finished or not.

    Returns:
        Plain text, for a page's heading or a terminal.
    """
    if run.summary is None:
        return _unfinished(run)
    metric = run.summary.metric
    name = _spoken(metric.name)
    if run.summary.stopped == "nan loss":
        at = f" at step {in_count(run.steps[-1].step)}" if run.steps else ""
        return f"The loss stopped being a number{at}, so the run ended. {_moved(name, metric)}."
    gain = metric.last - metric.start
    if math.isnan(gain):
        return f"{_moved(name, metric)}."
    if (gain if higher_is_better(metric) else -gain) <= 0:
        return f"Training did not help: {_lower_first(_moved(name, metric))}."
    return f"{_moved(name, metric)}{_share_of_head_start(metric)}."


def deck(run: RunRecord) -> str:
    """Say how a run ended, what it cost, and where it was at its best."""
    if run.summary is None:
        return "It wrote no summary yet: it is still going, or it was stopped before it could. Curves are up to date."
    summary = run.summary
    counters = summary.counters
    end = {
        "finished": "The run finished",
        "interrupted": "The run was interrupted",
        "minutes": "The time allowed ran out",
        "nan loss": "The run ended",
    }.get(summary.stopped, f"The run stopped ({summary.stopped})")
    steps = "1 step" if counters.steps == 1 else f"{in_count(counters.steps)} steps"
    return f"{end} after {steps} in {in_time(counters.seconds)}. {_memory_sentence(summary)}{_best_sentence(summary)}"


def comparison_headline(runs: Sequence[RunRecord]) -> str:
    """Say which of several runs ended best and which took the least memory above running the model."""
    done = [(label, run.summary) for label, run in zip(run_labels(runs), runs, strict=True) if run.summary]
    finite = [(label, summary) for label, summary in done if math.isfinite(summary.metric.last)]
    if len(done) < 2:
        return f"{len(runs)} runs side by side; {len(done) or 'none'} of them left a summary."
    frugal, frugal_summary = min(done, key=lambda item: item[1].memory.above_inference)
    least = f"took the least memory, {_above_phrase(frugal_summary.memory)}"
    if len({summary.metric.name for _, summary in done}) > 1 or not finite:
        return f"{frugal} {least}. The runs have no metric in common, so none is called best."
    falls = any(not higher_is_better(summary.metric) for _, summary in finite)
    best = (min if falls else max)(summary.metric.last for _, summary in finite)
    winners = [label for label, summary in finite if summary.metric.last == best]
    name = finite[0][1].metric.name
    verb = "ended level, both" if len(winners) == 2 else "ended level, all" if len(winners) > 2 else "ended best,"
    first = f"{_listed(winners)} {verb} at {in_metric(name, best)} {_spoken(name)}"
    return f"{first}, and {least}." if winners == [frugal] else f"{first}; {frugal} {least}."


def remarks(run: RunRecord) -> list[str]:
    """List what a reader of one run must know to read its page: its own notes, gaps, and evaluations not drawn."""
    notes = list(run.summary.notes) if run.summary else []
    broken = [point.step for point in run.steps if not drawable(point.loss)]
    if broken:
        where = f"1 step (step {in_count(broken[0])})" if len(broken) == 1 else _span(broken)
        notes.append(f"The training loss was not finite, or too large to draw, at {where}; the curves have gaps there.")
    if run.torn:
        notes.append("The last line of the metrics was incomplete, as a killed process leaves it, and is left out.")
    others = {point.split: point for point in run.evals if point.split != DRAWN_SPLIT}
    notes.extend(
        f"On the split {point.split}, {_spoken(point.metric)} was last {in_metric(point.metric, point.value)} "
        f"(step {in_count(point.step)}); it is not drawn."
        for point in others.values()
    )
    return notes


def cautions(runs: Sequence[RunRecord]) -> list[str]:
    """List what makes several runs less than a fair comparison."""
    summaries = [run.summary for run in runs if run.summary]
    found = []
    for what, seen in (
        ("models", {summary.model for summary in summaries}),
        ("training data", {summary.train for summary in summaries}),
        ("metrics", {summary.metric.name for summary in summaries}),
    ):
        if len(seen) > 1:
            found.append(f"The runs differ in their {what} ({_listed(sorted(seen))}): compare with care.")
    return found


def _unfinished(run: RunRecord) -> str:
    drawn = [point for point in run.evals if point.split == DRAWN_SPLIT]
    if not run.steps and not drawn:
        return "This run has recorded nothing yet."
    step = max([*(point.step for point in run.steps[-1:]), *(point.step for point in drawn[-1:])])
    if not drawn:
        return f"Unfinished at step {in_count(step)}, not evaluated yet."
    last = drawn[-1]
    return (
        f"Unfinished at step {in_count(step)}: {_spoken(last.metric)} was last {in_metric(last.metric, last.value)}, "
        f"at step {in_count(last.step)}."
    )


def _moved(name: str, metric: Metric) -> str:
    start, last = in_metric(metric.name, metric.start), in_metric(metric.name, metric.last)
    spoken = name[:1].upper() + name[1:]
    if start == last:
        return f"{spoken} stayed at {last}"
    if not math.isfinite(metric.last - metric.start):
        return f"{spoken} went from {start} to {last}"
    return f"{spoken} {'rose' if metric.last > metric.start else 'fell'} from {start} to {last}"


def _share_of_head_start(metric: Metric) -> str:
    """Say how much of a gain the head start made before any training."""
    if metric.head_start is None or not math.isfinite(metric.head_start):
        return ""
    trained = metric.last - metric.head_start
    if not higher_is_better(metric):
        trained = -trained
    reached = f"the head start reached {in_metric(metric.name, metric.head_start)}"
    size = in_metric_change(metric.name, trained)
    if size == in_metric_change(metric.name, 0.0):
        return f"; {reached} and training kept it there"
    return f"; {reached}, and training {'added' if trained > 0 else 'lost'} {size}"


def _memory_sentence(summary: RunSummary) -> str:
    memory = summary.memory
    text = f"Its memory peaked at {in_bytes(memory.training_peak)}, {_above_phrase(memory)}"
    if memory.adamw_estimate is None or summary.method == "adamw":
        return f"{text}."
    return f"{text}; AdamW would take an estimated {in_bytes(memory.adamw_estimate)}."


def _above_phrase(memory: Memory) -> str:
    above = memory.above_inference
    if above == 0:
        return "exactly what running the model takes"
    direction = "above" if above > 0 else "below"
    return f"{in_bytes(abs(above))} {direction} what running the model takes"


def _best_sentence(summary: RunSummary) -> str:
    metric = summary.metric
    if in_metric(metric.name, metric.best) == in_metric(metric.name, metric.last):
        return ""
    return f" At its best it stood at {in_metric(metric.name, metric.best)}."


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _span(steps: Sequence[int]) -> str:
    return f"{in_count(len(steps))} steps (from step {in_count(steps[0])} to step {in_count(steps[-1])})"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
