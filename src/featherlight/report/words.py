"""What one run came to, in plain sentences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from featherlight.report.curves import drawable
from featherlight.report.quantities import (
    capital,
    in_bytes,
    in_count,
    in_digits,
    in_metric,
    in_metric_change,
    in_time,
    spoken,
)
from featherlight.report.runs import EvalPoint, EventPoint, Memory, Metric, RunRecord, RunSummary

SPLITS = ("valid", "test", "train")
"""Splits in the order in which they stand for a run where one must."""


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
    "svrg": Method(
        name="MeZO-SVRG",
        purpose=(
            "Forward-only with variance reduction: now and then a large batch measures an anchor, and the steps between "
            "follow small batches corrected by what those say at the anchor. The anchor is the weights plus what was "
            "subtracted since, so it needs no copy of them, and the fine-tune is a journal of kilobytes as well. It pays "
            "where the noise of small batches outweighs that of the random directions."
        ),
    ),
    "fzoo": Method(
        name="FZOO",
        purpose=(
            "Forward-only with one-sided differences: a step runs the batch once at the weights and once along each of "
            "several directions, and is divided by the deviation of those losses. The fine-tune is a journal as well."
        ),
    ),
    "lozo": Method(
        name="LOZO",
        purpose=(
            "Forward-only in a subspace that changes lazily: one side of every rank-one direction is kept for many "
            "steps, so that the steps of that time add up in a few columns. The fine-tune is a journal as well."
        ),
    ),
    "conmezo": Method(
        name="ConMeZO",
        purpose=(
            "Forward-only with directions in a cone around the average of the past estimates, which is a few seeds and "
            "whole numbers. Each earlier step of that average is one more low-rank term in every layer, which takes time."
        ),
    ),
    "agzo": Method(
        name="AGZO",
        purpose=(
            "Forward-only along directions in the span of each layer's own inputs, where its gradient lies too. The "
            "directions depend on the data, so the run is saved and has no journal."
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
    "prodigy": Method(
        name="Prodigy",
        purpose=(
            "Backpropagation with a step size that is estimated on the way, from how far the weights have come and what "
            "the gradients say of it. It spares the search for a learning rate, for four numbers beside every trained "
            "weight instead of AdamW's two."
        ),
    ),
    "muon": Method(
        name="Muon",
        purpose=(
            "Backpropagation in which the step of every weight matrix is made orthogonal; embeddings, heads, vectors and "
            "filters go by AdamW."
        ),
    ),
    "schedule_free": Method(
        name="Schedule-free AdamW",
        purpose=(
            "Backpropagation at a constant rate; the model is judged, and kept, at an average of its weights, which does "
            "what a falling rate does without knowing where the run ends."
        ),
    ),
}

_STOPS = {
    "finished": ("Finished", "good", "The run finished"),
    "interrupted": ("Interrupted", "warn", "The run was interrupted"),
    "pruned": ("Pruned", "calm", "The search ended the run early"),
    "not finite": ("Loss not finite", "bad", "The run ended"),
    "failed": ("Failed", "bad", "The run failed"),
}


def method_name(method: str) -> str:
    """Return a method's name in running text; an unknown one goes by the name it was given."""
    return METHODS[method].name if method in METHODS else method


def stop_badge(run: RunRecord) -> tuple[str, str]:
    """Return how a run ended, in two or three words, and the tone to say it in."""
    if run.outcome is None:
        if run.still_going:
            return "Still going on", "calm"
        return ("Outcome lost", "bad") if run.summary_lost else ("Unfinished", "warn")
    stopped = run.outcome.stopped
    return _STOPS.get(stopped, (f"Stopped: {stopped}", "calm"))[:2]


def first_split(evals: Sequence[EvalPoint]) -> str | None:
    """Return the split that stands for some evaluations: validation where there is one; None where there are none."""
    found = dict.fromkeys(point.split for point in evals)
    return next((split for split in (*SPLITS, *found) if split in found), None)


def head_start(run: RunRecord) -> EventPoint | None:
    """Return the last event before the first step that says where it left the metric or the loss."""
    told = [event for event in run.events if event.step == 0 and (event.values or drawable(event.loss))]
    return told[-1] if told else None


def headline(run: RunRecord) -> str:
    """Say in a sentence or two what came of a run.

    Args:
        run: the run, finished or not.

    Returns:
        Plain text, for a page's heading or a terminal.
    """
    if run.outcome is None:
        return _unfinished(run)
    metric = run.outcome.metric
    if run.outcome.stopped == "not finite":
        at = f" at step {in_count(run.last_step)}" if run.steps else ""
        tail = f" {_moved(metric)}." if metric else ""
        return f"The loss stopped being a number{at}, so the run ended.{tail}"
    if metric is None:
        return _without_metric(run, run.outcome)
    gain = metric.last - metric.start
    if math.isnan(gain):
        return f"{_moved(metric)}."
    if (-gain if metric.lower_is_better else gain) <= 0:
        moved = _moved(metric)
        return f"Training did not help: {moved[:1].lower()}{moved[1:]}."
    return f"{_moved(metric)}{_share_of_head_start(run, metric)}."


def deck(run: RunRecord) -> str:
    """Say how a run ended, what it cost, and where it was at its best."""
    if run.outcome is None:
        if run.still_going:
            return "The run is still going on; this page shows it up to now. Make it again for the rest."
        if run.summary is not None:
            return "It was resumed after its summary was written, and has not ended since. Curves are up to date."
        if run.summary_lost:
            return "Its summary cannot be read, so how it ended is not known. Curves go as far as they were recorded."
        return "It wrote no summary: it was stopped before it could. Curves go as far as it came."
    summary = run.outcome
    end = _STOPS.get(summary.stopped, ("", "", f"The run stopped ({summary.stopped})"))[2]
    if summary.counters:
        count = summary.counters.steps
        steps = "" if count == 0 else " after 1 step" if count == 1 else f" after {in_count(count)} steps"
        end += f"{steps} in {in_time(summary.counters.seconds)}"
    return " ".join(part for part in (f"{end}.", _memory_sentence(summary), _best_sentence(summary.metric)) if part)


def remarks(run: RunRecord) -> list[str]:
    """List what a reader of one run must know to read its page: its own notes, and gaps."""
    notes = list(run.summary.notes) if run.summary else []
    broken = [point.step for point in run.steps if not drawable(point.loss)]
    if broken:
        where = f"1 step (step {in_count(broken[0])})" if len(broken) == 1 else _span(broken)
        notes.append(f"The training loss was not finite, or too large to draw, at {where}; the curves have gaps there.")
    if run.torn:
        why = "it was being written" if run.still_going else "a killed process leaves it so"
        notes.append(f"The last line of the metrics was incomplete ({why}), and is left out.")
    return notes


def above_phrase(memory: Memory) -> str:
    """Say how far the training peak stands from the inference peak; empty where one of them is not known."""
    above = memory.above_inference
    if above is None:
        return ""
    if above == 0:
        return "exactly what running the model takes"
    return f"{in_bytes(abs(above))} {'above' if above > 0 else 'below'} what running the model takes"


def listed(names: Sequence[str]) -> str:
    """Join names as running text does."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _unfinished(run: RunRecord) -> str:
    state = "Still going on" if run.still_going else "Outcome lost; recorded to" if run.summary_lost else "Unfinished"
    step = f"{'' if run.summary_lost else 'at '}step {in_count(run.last_step)}"
    split = first_split(run.evals)
    if not run.steps and split is None:
        return "This run has recorded nothing yet."
    if split is None:
        return f"{state} {step}, not evaluated yet."
    last = [point for point in run.evals if point.split == split][-1]
    stood = [f"{spoken(name)} was last {in_metric(name, value)}" for name, value in list(last.values.items())[:1]]
    stood = stood or [f"the {split_name(split)} loss was last {in_digits(last.loss)}"]
    return f"{state} {step}: {stood[0]}, at step {in_count(last.step)}."


def split_name(split: str) -> str:
    """Return a split's name in running text."""
    return {"valid": "validation", "train": "training"}.get(split, split)


def _without_metric(run: RunRecord, summary: RunSummary) -> str:
    """Say what came of a run that has no metric: its loss, else that it ended."""
    if summary.loss is None:
        return f"{run.title}: {stop_badge(run)[0].lower()}."
    start, last = in_digits(summary.loss.start), in_digits(summary.loss.last)
    if start == last:
        return f"The loss stayed at {last}."
    if not math.isfinite(summary.loss.last - summary.loss.start):
        return f"The loss went from {start} to {last}."
    return f"The loss {'rose' if summary.loss.last > summary.loss.start else 'fell'} from {start} to {last}."


def _moved(metric: Metric) -> str:
    start, last = in_metric(metric.name, metric.start), in_metric(metric.name, metric.last)
    name = capital(spoken(metric.name))
    if start == last:
        return f"{name} stayed at {last}"
    if not math.isfinite(metric.last - metric.start):
        return f"{name} went from {start} to {last}"
    return f"{name} {'rose' if metric.last > metric.start else 'fell'} from {start} to {last}"


def _share_of_head_start(run: RunRecord, metric: Metric) -> str:
    """Say how much of a gain the head start made before any training."""
    event = head_start(run)
    value = event.values.get(metric.name, math.nan) if event else math.nan
    if event is None or not math.isfinite(value):
        return ""
    trained = (metric.last - value) * (-1 if metric.lower_is_better else 1)
    reached = f"the {event.name} reached {in_metric(metric.name, value)}"
    size = in_metric_change(metric.name, trained)
    if size == in_metric_change(metric.name, 0.0):
        return f"; {reached} and training kept it there"
    verb = ("added", "lost") if not metric.lower_is_better else ("took off", "put on")
    return f"; {reached}, and training {verb[trained <= 0]} {size}"


def _memory_sentence(summary: RunSummary) -> str:
    memory = summary.memory
    if memory is None or memory.peak is None:
        return ""
    above = above_phrase(memory)
    text = f"Its memory peaked at {in_bytes(memory.peak)}{f', {above}' if above else ''}"
    if memory.adamw_estimate is None or summary.method == "adamw":
        return f"{text}."
    return f"{text}; AdamW would take an estimated {in_bytes(memory.adamw_estimate)}."


def _best_sentence(metric: Metric | None) -> str:
    if metric is None or in_metric(metric.name, metric.best) == in_metric(metric.name, metric.last):
        return ""
    return f"At its best it stood at {in_metric(metric.name, metric.best)}."


def _span(steps: Sequence[int]) -> str:
    return f"{in_count(len(steps))} steps (from step {in_count(steps[0])} to step {in_count(steps[-1])})"
