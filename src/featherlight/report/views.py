"""What the page's template is handed: every figure picked, named and explained, none left to compute."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from featherlight.report.confusions import LARGEST_TABLE, ConfusionView, confusion_view
from featherlight.report.figures import Figure, figures
from featherlight.report.memory import BarGroup, memory_bars, memory_rows
from featherlight.report.quantities import in_bytes, in_count, in_digits, in_metric, in_short, in_time, in_times
from featherlight.report.runs import RunRecord, RunSummary
from featherlight.report.words import (
    METHODS,
    Method,
    cautions,
    comparison_headline,
    deck,
    headline,
    method_name,
    remarks,
    run_labels,
    stop_badge,
)

_LARGEST_TABLE_IN_A_COMPARISON = 10


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A figure: its exact `value` for machines, its `text` for people, and what it means."""

    label: str
    value: float
    text: str
    meaning: str = ""


@dataclass(frozen=True, kw_only=True)
class RunView:
    """All there is to say of one run."""

    record: RunRecord
    summary: RunSummary | None
    label: str
    slot: int
    title: str
    method: str
    badge: str
    tone: str
    time: str
    headline: str
    deck: str
    tiles: tuple[Quantity, ...]
    counters: tuple[Quantity, ...]
    memory: tuple[Quantity, ...]
    outcomes: tuple[Quantity, ...]
    confusion: ConfusionView | None
    remarks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PageView:
    """A page of one run or several."""

    title: str
    headline: str
    deck: str
    runs: tuple[RunView, ...]
    figures: tuple[Figure, ...]
    memory: tuple[BarGroup, ...]
    measured_by: tuple[str, ...]
    methods: tuple[Method, ...]
    cautions: tuple[str, ...]


def page_view(runs: Sequence[RunRecord]) -> PageView:
    """Gather what a page of `runs` shows; there must be at least one."""
    labels = run_labels(runs)
    alone = len(runs) == 1
    views = tuple(
        _run_view(run, label, slot, alone) for slot, (run, label) in enumerate(zip(runs, labels, strict=True))
    )
    methods = dict.fromkeys(run.summary.method for run in runs if run.summary)
    return PageView(
        title=views[0].title if alone else f"{len(runs)} runs compared",
        headline=views[0].headline if alone else comparison_headline(runs),
        deck=views[0].deck if alone else "",
        runs=views,
        figures=tuple(figures(runs, labels)),
        memory=tuple(memory_bars(runs, labels)),
        measured_by=tuple(dict.fromkeys(run.summary.memory.measured_by.rstrip(".") for run in runs if run.summary)),
        methods=tuple(METHODS[method] for method in methods if method in METHODS),
        cautions=tuple(cautions(runs)),
    )


def _run_view(run: RunRecord, label: str, slot: int, alone: bool) -> RunView:
    summary = run.summary
    badge, tone = stop_badge(summary)
    confusion = summary.confusion if summary else None
    largest_table = LARGEST_TABLE if alone else _LARGEST_TABLE_IN_A_COMPARISON
    return RunView(
        record=run,
        summary=summary,
        label=label,
        slot=slot,
        title=summary.title if summary else run.path.name,
        method=method_name(summary.method) if summary else "unknown",
        badge=badge,
        tone=tone,
        time=in_time(summary.counters.seconds) if summary else "",
        headline=headline(run),
        deck=deck(run),
        tiles=_tiles(summary) if summary else (),
        counters=_counters(run, summary) if summary else (),
        memory=_memory(summary) if summary else (),
        outcomes=_outcomes(run),
        confusion=confusion_view(confusion, largest_table=largest_table) if confusion else None,
        remarks=tuple(remarks(run)),
    )


def _tiles(summary: RunSummary) -> tuple[Quantity, ...]:
    """Pick the four figures that a page opens with."""
    metric, memory, counters = summary.metric, summary.memory, summary.counters
    name = metric.name.replace("_", " ")
    ratio = (
        f"{in_times(memory.training_peak / memory.inference_peak)} running the model" if memory.inference_peak else ""
    )
    tiles = [
        Quantity(
            label=name[:1].upper() + name[1:],
            value=metric.last,
            text=in_metric(metric.name, metric.last),
            meaning=f"from {in_metric(metric.name, metric.start)}",
        ),
        Quantity(label="Peak memory", value=memory.training_peak, text=in_bytes(memory.training_peak), meaning=ratio),
        Quantity(
            label="Time",
            value=counters.seconds,
            text=in_time(counters.seconds),
            meaning=f"{in_short(counters.example_forwards)} example-forwards",
        ),
    ]
    if summary.journal_bytes is not None:
        text = in_bytes(summary.journal_bytes)
        tiles.append(
            Quantity(label="Journal", value=summary.journal_bytes, text=text, meaning="replays to the same bits")
        )
    return tuple(tiles)


def _counters(run: RunRecord, summary: RunSummary) -> tuple[Quantity, ...]:
    counters = summary.counters
    rows = [
        _counted("Steps", counters.steps, "updates of the weights"),
        _counted("Example-forwards", counters.example_forwards, "examples sent forward through the model"),
        _counted("Backward passes", counters.backward_passes, "gradients by backpropagation"),
        _counted("Weight passes", counters.weight_passes, "times all the trained weights were gone through"),
        _counted("Random words", counters.random_words, "words drawn from the random generator"),
        _sized("Bytes written", counters.bytes_written, "to weights, journal and saves"),
    ]
    if summary.journal_bytes is not None:
        rows.append(_sized("Journal", summary.journal_bytes, "with the base weights, all it takes to have the result"))
    time = in_time(counters.seconds)
    rows.append(
        Quantity(label="Time", value=counters.seconds, text=time, meaning=f"{counters.seconds:,.1f} s of training")
    )
    speeds = [point.tokens_per_second for point in run.steps if math.isfinite(point.tokens_per_second)]
    if speeds:
        speed = median(speeds)
        rows.append(
            Quantity(label="Speed", value=speed, text=f"{in_short(speed)} tokens/s", meaning="median over the steps")
        )
    return tuple(rows)


def _memory(summary: RunSummary) -> tuple[Quantity, ...]:
    rows = [_sized(name, size, source) for name, source, size, _ in memory_rows(summary, with_estimate=True)]
    rows.append(_sized("Above running the model", summary.memory.above_inference, "training peak less inference peak"))
    if summary.memory.process_peak is not None:
        rows.append(_sized("Whole process", summary.memory.process_peak, "with Python and its libraries"))
    return tuple(rows)


def _outcomes(run: RunRecord) -> tuple[Quantity, ...]:
    """List the metric and the loss from the start to the end."""
    if run.summary is None:
        return ()
    metric, loss = run.summary.metric, run.summary.loss
    name = metric.name.replace("_", " ")
    took = f"in {in_time(run.head_start.seconds)}" if run.head_start else ""
    stages = [("at the start", metric.start, ""), ("after the head start", metric.head_start, took)]
    stages += [("at its best", metric.best, ""), ("at the end", metric.last, "")]
    rows = [
        Quantity(
            label=f"{name[:1].upper() + name[1:]} {when}", value=value, text=in_metric(metric.name, value), meaning=note
        )
        for when, value, note in stages
        if value is not None
    ]
    rows.append(Quantity(label="Loss at the start", value=loss.start, text=in_digits(loss.start)))
    if run.head_start:
        rows.append(
            Quantity(label="Loss after the head start", value=run.head_start.loss, text=in_digits(run.head_start.loss))
        )
    rows.append(Quantity(label="Loss at the end", value=loss.last, text=in_digits(loss.last)))
    return tuple(rows)


def _counted(label: str, count: int, meaning: str) -> Quantity:
    return Quantity(label=label, value=count, text=in_count(count), meaning=meaning)


def _sized(label: str, num_bytes: int, meaning: str) -> Quantity:
    return Quantity(
        label=label, value=num_bytes, text=in_bytes(num_bytes), meaning=f"{meaning}; {in_count(num_bytes)} B"
    )
