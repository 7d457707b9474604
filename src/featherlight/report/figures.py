"""The figures of a page: loss and metric curves, each against example-forwards and against seconds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from featherlight.report.charts import Axis, Level, Mark, Panel, Tick, Trace, mark, ticks, x_axis, y_axis
from featherlight.report.curves import Curve, drawable, quantile, scatter, smooth, smoothing_window, thin
from featherlight.report.quantities import in_count, in_digits, in_metric, in_metric_step, in_short, in_step
from featherlight.report.runs import EvalPoint, RunRecord, StepPoint
from featherlight.report.words import DRAWN_SPLIT

_POINTS_ON_A_PAGE = 4800
_FEWEST_POINTS = 40
_MOST_DOTS = 48
_SHARE_SEEN = 0.99


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of two panels: what it shows, how to read it, and its legend (one mark without a path per trace)."""

    title: str
    caption: str
    legend: tuple[Mark, ...]
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True)
class _Across:
    """What runs along the x axis: its title, and its value at a point."""

    title: str
    of: Callable[[StepPoint | EvalPoint], float]


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What a figure is of: its name, the traces for one x, horizontal levels, how values and ticks read, and bounds."""

    name: str
    traces: Callable[[_Across], list[Trace]]
    levels: tuple[Level, ...]
    show: Callable[[float], str]
    tick: Callable[[float, float], str]
    within: tuple[float, float] | None = None


def figures(runs: Sequence[RunRecord], labels: Sequence[str]) -> list[Figure]:
    """Draw the loss, then each metric that any of the runs evaluated.

    Args:
        runs: one run, or several to lay over each other.
        labels: a name for each, in the same order.

    Returns:
        A figure for each subject that has points; there is none where nothing was recorded.
    """
    found = [_loss_figure(runs, labels)]
    names = dict.fromkeys(point.metric for run in runs for point in _drawn(run))
    found.extend(_metric_figure(runs, labels, name) for name in names)
    return [figure for figure in found if figure is not None]


def _loss_figure(runs: Sequence[RunRecord], labels: Sequence[str]) -> Figure | None:
    alone = len(runs) == 1
    windows = [smoothing_window(len(run.steps)) for run in runs]
    max_points = max(_FEWEST_POINTS, _POINTS_ON_A_PAGE // (8 * len(runs)))

    def traces(across: _Across) -> list[Trace]:
        clouds, lines = [], []
        for slot, (run, label, window) in enumerate(zip(runs, labels, windows, strict=True)):
            xs, ys = [across.of(point) for point in run.steps], [point.loss for point in run.steps]
            raw, trend = Curve(xs=xs, ys=ys), Curve(xs=xs, ys=smooth(ys, window))
            clouds.append(Trace(label="each step", curve=scatter(raw, 3 * max_points), slot=slot, look="cloud"))
            name = ("training" if window == 1 else "training, mean") if alone else label
            lines.append(Trace(label=name, curve=thin(trend, max_points), slot=slot, look="line"))
        return [*clouds, *lines, *(_valid_loss(runs[0], across) if alone else [])]

    used = sorted({window for run, window in zip(runs, windows, strict=True) if run.steps})
    if not used and not any(_drawn(run) for run in runs):
        return None
    subject = _Subject(name="Loss", traces=traces, levels=(), show=in_digits, tick=in_step)
    return _figure(subject, runs, _loss_caption(used, alone))


def _loss_caption(windows: Sequence[int], alone: bool) -> str:
    spans = " to ".join(in_count(window) for window in sorted({*windows[:1], *windows[-1:]}) or [1])
    plain = spans == "1"
    trend = "Lines join the steps" if plain else f"Faint dots are single steps, lines their mean over {spans} steps"
    return (
        f"{trend}; the dashed line is the loss on the validation split." if alone else f"{trend}, training loss only."
    )


def _valid_loss(run: RunRecord, across: _Across) -> list[Trace]:
    points = _drawn(run)
    curve = Curve(xs=[across.of(point) for point in points], ys=[point.loss for point in points])
    return _with_dots(Trace(label="validation", curve=curve, slot=1, look="dashed")) if points else []


def _metric_figure(runs: Sequence[RunRecord], labels: Sequence[str], name: str) -> Figure | None:
    def traces(across: _Across) -> list[Trace]:
        found = []
        for slot, (run, label) in enumerate(zip(runs, labels, strict=True)):
            points = [point for point in _drawn(run) if point.metric == name]
            curve = Curve(xs=[across.of(point) for point in points], ys=[point.value for point in points])
            found.extend(_with_dots(Trace(label=label if len(runs) > 1 else name, curve=curve, slot=slot, look="line")))
        return found

    spoken = name.replace("_", " ")
    values = [point.value for run in runs for point in _drawn(run) if point.metric == name]
    bounded = all(0 <= value <= 1 for value in values)
    subject = _Subject(
        name=spoken[:1].upper() + spoken[1:],
        traces=traces,
        levels=_levels(runs[0], name) if len(runs) == 1 else (),
        show=lambda value: in_metric(name, value),
        tick=lambda value, step: in_metric_step(name, value, step),
        within=(0.0, 1.0) if bounded else None,
    )
    few = all(len(_drawn(run)) <= _MOST_DOTS for run in runs)
    caption = (
        "Each dot is"
        if few
        else "Where there are no dots, the line joins the lowest and the highest of neighbours; each is"
    )
    return _figure(subject, runs, f"{caption} an evaluation on the validation split.")


def _levels(run: RunRecord, name: str) -> tuple[Level, ...]:
    """Return where the metric stood before training, as lines to compare with."""
    levels = []
    if run.summary and run.summary.metric.name == name:
        levels.append(Level(label="before", value=run.summary.metric.start))
    if run.head_start and run.head_start.metric == name:
        levels.append(Level(label="head start", value=run.head_start.value))
    return tuple(level for level in levels if drawable(level.value))


def _with_dots(trace: Trace) -> list[Trace]:
    """Thin a trace of evaluations, and set a dot at each one where they are few enough to tell apart."""
    few = len(trace.curve.xs) <= _MOST_DOTS
    thinned = replace(trace, curve=thin(trace.curve, 2 * _MOST_DOTS))
    return [thinned, replace(trace, look="dots")] if few else [thinned]


def _figure(subject: _Subject, runs: Sequence[RunRecord], caption: str) -> Figure | None:
    acrosses = (
        _Across(title="Example-forwards", of=lambda point: point.forwards),
        _time_across(runs),
    )
    drawn = [(across, subject.traces(across)) for across in acrosses]
    if not any(drawable(y) for _, traces in drawn for trace in traces for y in trace.curve.ys):
        return None
    panels = [_panel(subject, across, traces) for across, traces in drawn]
    shown = [trace for trace in drawn[0][1] if trace.look in ("line", "dashed") and trace.curve.xs]
    legend = tuple(Mark(path="", slot=trace.slot, look=trace.look, label=trace.label) for trace in shown)
    if any(x.log for _, x, _ in panels):
        caption += (
            " Runs differ widely in length, so an axis is logarithmic; what happened at zero stands at its left edge."
        )
    if any(y.log for _, _, y in panels):
        caption += " The upward axis is logarithmic."
    return Figure(
        title=subject.name,
        caption=caption,
        legend=legend if len(legend) > 1 else (),
        panels=tuple(panel for panel, _, _ in panels),
    )


def _panel(subject: _Subject, across: _Across, traces: Sequence[Trace]) -> tuple[Panel, Axis, Axis]:
    """Return a panel and its two axes."""
    filled = [trace for trace in traces if any(map(drawable, trace.curve.ys))]
    x = _x_axis_of(filled)
    values = _must_see(filled)
    levels = _near(subject.levels, values)
    y = y_axis([*values, *(level.value for level in levels)], within=subject.within)
    title = f"{across.title}{' (logarithmic)' if x.log else ''}"
    panel = Panel(
        title=title,
        description=_described(subject, across, filled),
        x_ticks=ticks(x, lambda value, step: in_short(value)),
        y_ticks=ticks(y, subject.tick, upwards=True),
        marks=tuple(mark(trace, x, y) for trace in filled),
        levels=_placed(levels, y),
    )
    return panel, x, y


def _near(levels: Sequence[Level], values: Sequence[float]) -> list[Level]:
    """Return the levels that can be shown without squeezing what the values do into less than a third of the height."""
    seen = [value for value in values if drawable(value)]
    low, high = min(seen), max(seen)
    kept = []
    for level in sorted(levels, key=lambda level: max(low - level.value, level.value - high)):
        if max(high, level.value) - min(low, level.value) <= 3 * (high - low) or high == low:
            kept.append(level)
    return kept


def _placed(levels: Sequence[Level], y: Axis) -> tuple[Tick, ...]:
    """Place levels from the top in percent; the words of a lower one that would touch the next are dropped."""
    placed: list[Tick] = []
    for level in sorted(levels, key=lambda level: -level.value):
        at = round(100 - 100 * y.place(level.value), 2)
        touching = bool(placed) and at - placed[-1].at < 8
        placed.append(Tick(at=at, text="" if touching else level.label))
    return tuple(placed)


def _x_axis_of(traces: Sequence[Trace]) -> Axis:
    reached = [[x for x in trace.curve.xs if drawable(x)] for trace in traces]
    ends = [max(xs) for xs in reached if xs]
    starts = [min(x for x in xs if x > 0) for xs in reached if any(x > 0 for x in xs)]
    return x_axis(ends, starts)


def _must_see(traces: Sequence[Trace]) -> list[float]:
    """Return the values the y axis makes room for: all of a line, and a cloud without its furthest dots."""
    values: list[float] = []
    for trace in traces:
        if trace.look == "cloud":
            values.extend(quantile(trace.curve.ys, share) for share in (1 - _SHARE_SEEN, _SHARE_SEEN))
        else:
            values.extend(trace.curve.ys)
    return values


def _described(subject: _Subject, across: _Across, traces: Sequence[Trace]) -> str:
    parts = []
    for trace in traces:
        if trace.look in ("line", "dashed"):
            seen = [y for y in trace.curve.ys if drawable(y)]
            parts.append(f"{trace.label} from {subject.show(seen[0])} to {subject.show(seen[-1])}")
    return f"{subject.name} against {across.title.lower()}: {'; '.join(parts)}."


def _time_across(runs: Sequence[RunRecord]) -> _Across:
    longest = max(
        (point.seconds for run in runs for point in (*run.steps, *run.evals) if drawable(point.seconds)), default=0.0
    )
    for title, unit in (("Hours", 3600.0), ("Minutes", 60.0)):
        if longest >= 3 * unit:
            return _Across(title=title, of=lambda point, unit=unit: point.seconds / unit)
    return _Across(title="Seconds", of=lambda point: point.seconds)


def _drawn(run: RunRecord) -> list[EvalPoint]:
    return [point for point in run.evals if point.split == DRAWN_SPLIT]
