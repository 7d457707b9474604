"""What the page's template is handed: every figure picked, named and explained, none left to compute."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from featherlight.report.blocks import IMAGE_BYTES_ON_A_PAGE, Drawn, draw_blocks
from featherlight.report.comparing import cautions, comparison_headline, seeds_headline
from featherlight.report.curves import drawable
from featherlight.report.figures import figures
from featherlight.report.groups import Group, group_runs, run_name
from featherlight.report.memory import BarGroup, memory_bars, memory_rows
from featherlight.report.outcomes import GroupTable, outcome_table, sweep_figure, sweep_table
from featherlight.report.panels import Figure
from featherlight.report.quantities import (
    capital,
    in_bytes,
    in_count,
    in_digits,
    in_metric,
    in_short,
    in_time,
    in_times,
    spoken,
)
from featherlight.report.runs import Counters, RunRecord, RunSummary
from featherlight.report.sections import Images
from featherlight.report.words import METHODS, Method, deck, headline, method_name, remarks, stop_badge

_MOST_EVENTS = 40


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
    headline: str
    deck: str
    tiles: tuple[Quantity, ...]
    counters: tuple[Quantity, ...]
    memory: tuple[Quantity, ...]
    outcomes: tuple[Quantity, ...]
    facts: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One run's share of a section: whose it is, its paragraphs, and its blocks."""

    label: str
    slot: int
    paragraphs: tuple[str, ...]
    blocks: tuple[Drawn, ...]


@dataclass(frozen=True, kw_only=True)
class OwnSection:
    """A section that the runs handed over, with what each of them says under that title."""

    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class PageView:
    """A page of one run or several."""

    title: str
    headline: str
    deck: str
    alone: bool
    runs: tuple[RunView, ...]
    figures: tuple[Figure, ...]
    recorded: bool
    outcomes: GroupTable | None
    sweep: GroupTable | None
    sweep_figure: Figure | None
    memory: tuple[BarGroup, ...]
    inference_known: bool
    measured_by: tuple[str, ...]
    methods: tuple[Method, ...]
    sections: tuple[OwnSection, ...]
    cautions: tuple[str, ...]
    damage: tuple[str, ...]


def page_view(runs: Sequence[RunRecord]) -> PageView:
    """Gather what a page of `runs` shows; there must be at least one."""
    groups = group_runs(runs)
    alone = len(runs) == 1
    views = tuple(_run_view(run, group) for group in groups for run in group.runs)
    summaries = [run.summary for run in runs if run.summary]
    memories = [summary.memory for summary in summaries if summary.memory]
    drawn = tuple(figures(groups))
    sections = own_sections(groups)
    return PageView(
        title=views[0].title if alone else _several(groups),
        headline=views[0].headline if alone else _headline(groups),
        deck=views[0].deck if alone else "",
        alone=alone,
        runs=views,
        figures=drawn,
        recorded=bool(drawn) or not sections,
        outcomes=None if alone else outcome_table(groups),
        sweep=sweep_table(groups),
        sweep_figure=sweep_figure(groups),
        memory=tuple(memory_bars(groups)),
        inference_known=any(memory.inference_peak is not None for memory in memories),
        measured_by=tuple(dict.fromkeys(m.measured_by.rstrip(".") for m in memories if m.measured_by)),
        methods=tuple(METHODS[name] for name in dict.fromkeys(run.method for run in runs) if name in METHODS),
        sections=sections,
        cautions=() if alone else tuple(cautions(groups)),
        damage=tuple(sentence for run in runs for sentence in run.damage),
    )


def own_sections(groups: Sequence[Group]) -> tuple[OwnSection, ...]:
    """Put the sections that runs handed over together by their titles, in the order in which titles first come."""
    runs = [(run_name(group, run), group.slot, run) for group in groups for run in group.runs]
    num_images = sum(isinstance(block, Images) for _, _, run in runs for part in run.sections for block in part.blocks)
    image_bytes = IMAGE_BYTES_ON_A_PAGE // max(1, num_images)
    parts: dict[str, list[Part]] = {}
    for label, slot, run in runs:
        for section in run.sections:
            part = Part(
                label=label,
                slot=slot,
                paragraphs=tuple(text for text in section.text.split("\n\n") if text.strip()),
                blocks=draw_blocks(section, slot=slot, alone=len(runs) == 1, image_bytes=image_bytes),
            )
            parts.setdefault(section.title, []).append(part)
    return tuple(OwnSection(title=title, parts=tuple(found)) for title, found in parts.items())


def _several(groups: Sequence[Group]) -> str:
    runs = sum(len(group.runs) for group in groups)
    return f"{groups[0].label}, {runs} seeds" if len(groups) == 1 else f"{runs} runs compared"


def _headline(groups: Sequence[Group]) -> str:
    return seeds_headline(groups[0]) if len(groups) == 1 else comparison_headline(groups)


def _run_view(run: RunRecord, group: Group) -> RunView:
    summary = run.summary
    badge, tone = stop_badge(run)
    return RunView(
        record=run,
        summary=summary,
        label=run_name(group, run),
        slot=group.slot,
        title=run.title,
        method=method_name(run.method) if run.method else "",
        badge=badge,
        tone=tone,
        headline=headline(run),
        deck=deck(run),
        tiles=_tiles(run.outcome) if run.outcome else (),
        counters=_counters(run, summary),
        memory=_memory(summary) if summary else (),
        outcomes=_outcomes(run),
        facts=_facts(run),
        environment=tuple((name, str(value)) for name, value in summary.environment.items()) if summary else (),
        remarks=tuple(remarks(run)),
    )


def _facts(run: RunRecord) -> tuple[tuple[str, str], ...]:
    recipe = run.summary.recipe if run.summary else ""
    facts = [("recipe", recipe or str(run.config.get("recipe", "")))]
    facts += list(run.summary.facts.items()) if run.summary else []
    facts.append(("seed", "" if run.seed is None else str(run.seed)))
    facts.append(("directory", str(run.path)))
    return tuple((capital(name), value) for name, value in facts if value)


def _tiles(summary: RunSummary) -> tuple[Quantity, ...]:
    """Pick the figures, four at most, that a page opens with."""
    metric, loss, memory, counters = summary.metric, summary.loss, summary.memory, summary.counters
    tiles: list[Quantity] = []
    if metric:
        show: Callable[[float], str] = lambda value: in_metric(metric.name, value)  # noqa: E731
        tiles.append(_moved(capital(spoken(metric.name)), metric.start, metric.last, show))
    elif loss:
        tiles.append(_moved("Loss", loss.start, loss.last, in_digits))
    if memory and memory.peak is not None:
        ratio = ""
        if memory.training_peak is not None and memory.inference_peak:
            ratio = f"{in_times(memory.training_peak / memory.inference_peak)} running the model"
        tiles.append(Quantity(label="Peak memory", value=memory.peak, text=in_bytes(memory.peak), meaning=ratio))
    if counters:
        work = f"{in_short(counters.example_forwards)} example-forwards" if counters.example_forwards else ""
        tiles.append(Quantity(label="Time", value=counters.seconds, text=in_time(counters.seconds), meaning=work))
    if summary.journal_bytes is not None:
        text = in_bytes(summary.journal_bytes)
        meaning = "replays to the same bits"
        tiles.append(Quantity(label="Journal", value=summary.journal_bytes, text=text, meaning=meaning))
    return tuple(tiles)


def _moved(label: str, start: float, last: float, show: Callable[[float], str]) -> Quantity:
    return Quantity(label=label, value=last, text=show(last), meaning=f"from {show(start)}")


def _counters(run: RunRecord, summary: RunSummary | None) -> tuple[Quantity, ...]:
    """List what a run counted; what it had no use for is left out."""
    counters = summary.counters if summary else None
    rows = _counted_rows(counters) if counters else []
    if summary and summary.journal_bytes is not None:
        rows.append(_sized("Journal", summary.journal_bytes, "with the base weights, all it takes to have the result"))
    if counters:
        meaning = f"{counters.seconds:,.1f} s of training"
        rows.append(Quantity(label="Time", value=counters.seconds, text=in_time(counters.seconds), meaning=meaning))
    speeds = [point.tokens_per_second for point in run.steps if math.isfinite(point.tokens_per_second)]
    if speeds:
        speed = median(speeds)
        meaning = "median over the steps"
        rows.append(Quantity(label="Speed", value=speed, text=f"{in_short(speed)} tokens/s", meaning=meaning))
    return tuple(rows)


def _counted_rows(counters: Counters) -> list[Quantity]:
    rows = [
        _counted("Steps", counters.steps, "updates of the weights"),
        _counted("Example-forwards", counters.example_forwards, "examples sent forward through the model"),
        _counted("Backward passes", counters.backward_passes, "gradients by backpropagation"),
        _counted("Tokens", counters.tokens, "tokens sent forward through the model"),
        _counted("Weight passes", round(counters.weight_passes), "times all the trained weights were gone through"),
        _counted("Random words", counters.random_words, "words drawn from the random generator"),
        _sized("Bytes written", counters.bytes_written, "to weights, journal and saves"),
    ]
    return [row for row in rows if row.value or row.label in ("Steps", "Backward passes")]


def _memory(summary: RunSummary) -> tuple[Quantity, ...]:
    memory = summary.memory
    if memory is None:
        return ()
    rows = [_sized(name, size, source) for name, source, size, _ in memory_rows(summary, with_estimate=True)]
    if memory.above_inference is not None:
        meaning = "training peak less inference peak"
        rows.append(_sized("Above running the model", memory.above_inference, meaning))
    if memory.process_peak is not None and memory.training_peak is not None:
        rows.append(_sized("Whole process", memory.process_peak, "with Python and its libraries"))
    return tuple(rows)


def _outcomes(run: RunRecord) -> tuple[Quantity, ...]:
    """List the metric and the loss from the start to the end, with each event on the way."""
    summary = run.summary
    metric, loss = (summary.metric, summary.loss) if summary else (None, None)
    rows = []
    if metric:
        stages = [("at the start", metric.start), ("at its best", metric.best), ("at the end", metric.last)]
        name = capital(spoken(metric.name))
        rows += [
            Quantity(label=f"{name} {when}", value=value, text=in_metric(metric.name, value)) for when, value in stages
        ]
    if loss and (drawable(loss.start) or drawable(loss.last)):
        rows.append(Quantity(label="Loss at the start", value=loss.start, text=in_digits(loss.start)))
        rows.append(Quantity(label="Loss at the end", value=loss.last, text=in_digits(loss.last)))
    for event in run.events[:_MOST_EVENTS]:
        took = f"in {in_time(event.seconds)}, at step {in_count(event.step)}"
        found = [(capital(spoken(name)), value, in_metric(name, value)) for name, value in event.values.items()]
        found += [("Loss", event.loss, in_digits(event.loss))] if drawable(event.loss) else []
        for name, value, text in found:
            rows.append(Quantity(label=f"{name} after the {event.name}", value=value, text=text, meaning=took))
        if not found:
            at = f"at step {in_count(event.step)}"
            rows.append(
                Quantity(label=capital(event.name), value=event.seconds, text=in_time(event.seconds), meaning=at)
            )
    return tuple(rows)


def _counted(label: str, count: int, meaning: str) -> Quantity:
    return Quantity(label=label, value=count, text=in_count(count), meaning=meaning)


def _sized(label: str, num_bytes: int, meaning: str) -> Quantity:
    return Quantity(
        label=label, value=num_bytes, text=in_bytes(num_bytes), meaning=f"{meaning}; {in_count(num_bytes)} B"
    )
