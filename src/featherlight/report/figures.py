"""The curves of a page: the loss and each metric, against example-forwards and against seconds, with seeds as bands."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from featherlight.report.charts import Level, Trace
from featherlight.report.curves import Curve, Track, drawable, scatter, smooth, smoothing_window, spread, thin
from featherlight.report.groups import Group
from featherlight.report.panels import Figure, Subject, legend_of, panel_of
from featherlight.report.quantities import (
    capital,
    in_count,
    in_digits,
    in_metric,
    in_metric_step,
    in_step,
    is_percentage,
    spoken,
)
from featherlight.report.runs import EvalPoint, RunRecord, StepPoint
from featherlight.report.words import SPLITS, listed, split_name

_POINTS_ON_A_PAGE = 4800
_DOTS_ON_A_PAGE = 12_000
_FEWEST_POINTS = 40
_FEWEST_DOTS = 12
_MOST_DOTS = 48
_MOST_MOMENTS = 12
_MOST_METRICS = 16
_MISSED = " Runs that were evaluated on other splits alone are not drawn."


@dataclass(frozen=True, kw_only=True)
class _Across:
    """What runs along the x axis: its title, and its value at a point."""

    title: str
    of: Callable[[StepPoint | EvalPoint], float]


@dataclass(frozen=True, kw_only=True)
class _Plot:
    """What every figure of a page shares: the groups, what runs along x, and how many points a curve may have."""

    groups: Sequence[Group]
    acrosses: tuple[_Across, ...]
    max_points: int
    max_dots: int

    @property
    def alone(self) -> bool:
        """Whether there is one group to draw."""
        return len(self.groups) == 1

    @property
    def over_seeds(self) -> bool:
        """Whether a group has several seeds, so that there are bands."""
        return any(group.several for group in self.groups)


def figures(groups: Sequence[Group]) -> list[Figure]:
    """Draw the loss, then each metric that any of the runs evaluated.

    Args:
        groups: one, or several to lay over each other. A group of several runs is drawn as its median with a band
            from the lowest to the highest.

    Returns:
        A figure for each subject that has points; there is none where nothing was recorded.
    """
    runs = [run for group in groups for run in group.runs]
    names = _metric_names(runs)
    plot = _Plot(
        groups=groups,
        acrosses=(_work_across(runs), _time_across(runs)),
        max_points=max(_FEWEST_POINTS, _POINTS_ON_A_PAGE // (8 * len(groups))),
        max_dots=max(_FEWEST_DOTS, min(_MOST_DOTS, _DOTS_ON_A_PAGE // (4 * len(groups) * max(1, len(names))))),
    )
    found = [_loss_figure(plot), *(_metric_figure(plot, name) for name in names)]
    return [figure for figure in found if figure is not None]


def _metric_names(runs: Sequence[RunRecord]) -> list[str]:
    """Return the metrics to draw: what the runs are judged by first, then as they come."""
    judged = [run.summary.metric.name for run in runs if run.summary and run.summary.metric]
    seen = dict.fromkeys(name for run in runs for point in run.evals for name in point.values)
    return [name for name in dict.fromkeys((*judged, *seen)) if name in seen][:_MOST_METRICS]


def _loss_figure(plot: _Plot) -> Figure | None:
    windows = sorted({smoothing_window(len(run.steps)) for group in plot.groups for run in group.runs if run.steps})

    def traces(across: _Across) -> list[Trace]:
        found = list(chain.from_iterable(_training_loss(plot, group, across) for group in plot.groups))
        found.sort(key=lambda trace: ("cloud", "band").index(trace.look) if trace.look in ("cloud", "band") else 2)
        if plot.alone:
            for slot, split in enumerate(_splits(plot.groups[0].runs), start=1):
                name = split_name(split) if split != "train" else "training, evaluated"
                found += _evaluated(plot, plot.groups[0], across, split, None, (name, slot, "dashed"))
        return found

    subject = Subject(name="Loss", show=in_digits, tick=in_step)
    return _figure(plot, subject, traces, _loss_caption(plot, windows))


def _loss_caption(plot: _Plot, windows: Sequence[int]) -> str:
    spans = " to ".join(in_count(window) for window in sorted({*windows[:1], *windows[-1:]}) or [1])
    if spans == "1":
        caption = "Lines join the steps"
    elif all(group.several for group in plot.groups):
        caption = f"Lines are means over {spans} steps"
    else:
        caption = f"Faint dots are single steps, lines their mean over {spans} steps"
    if not plot.alone:
        caption += ", training loss only"
    elif _splits(plot.groups[0].runs):
        caption += "; dashed lines are losses of evaluations"
    return f"{caption}.{_band_caption(plot)}"


def _band_caption(plot: _Plot) -> str:
    return " Over several seeds, the line is the median and the band goes from the lowest to the highest." * (
        plot.over_seeds
    )


def _training_loss(plot: _Plot, group: Group, across: _Across) -> list[Trace]:
    """Return a group's training loss: dots and their mean for one run, a band and its median for several."""
    tracks = []
    for run in group.runs:
        ys = smooth([point.loss for point in run.steps], smoothing_window(len(run.steps)))
        steps = [point.step for point in run.steps]
        tracks.append(Track(steps=steps, xs=[across.of(point) for point in run.steps], ys=ys))
    smoothed = any(smoothing_window(len(run.steps)) > 1 for run in group.runs)
    name = ("training, mean" if smoothed else "training") if plot.alone else group.label
    if group.several:
        return _banded(tracks, plot.max_points, name, group.slot, "line")
    (track,) = tracks
    raw = Curve(xs=track.xs, ys=[point.loss for point in group.lead.steps])
    line = thin(Curve(xs=track.xs, ys=track.ys), plot.max_points)
    return [
        Trace(label="each step", curve=scatter(raw, 3 * plot.max_points), slot=group.slot, look="cloud"),
        Trace(label=name, curve=line, slot=group.slot, look="line"),
    ]


def _banded(tracks: Sequence[Track], max_points: int, name: str, slot: int, look: str) -> list[Trace]:
    found = spread(tracks, max_points)
    band = Trace(label=name, curve=Curve(xs=found.xs, ys=found.highs), slot=slot, look="band", floor=found.lows)
    return [band, Trace(label=name, curve=Curve(xs=found.xs, ys=found.middles), slot=slot, look=look)]


def _splits(runs: Sequence[RunRecord], name: str | None = None) -> list[str]:
    """Return the splits on which a metric, or the loss for None, was evaluated; the one that stands for all first."""
    found = dict.fromkeys(point.split for run in runs for point in run.evals if drawable(_value(point, name)))
    return [*(split for split in SPLITS if split in found), *(split for split in found if split not in SPLITS)]


def _value(point: EvalPoint, name: str | None) -> float:
    return point.loss if name is None else point.values.get(name, float("nan"))


def _evaluated(
    plot: _Plot, group: Group, across: _Across, split: str, name: str | None, drawn: tuple[str, int, str]
) -> list[Trace]:
    """Return a group's evaluations on a split: a line with dots where they are few enough to tell apart."""
    label, slot, look = drawn
    tracks = []
    for run in group.runs:
        points = [point for point in run.evals if point.split == split]
        if name is not None:
            points = [point for point in points if name in point.values]
        places = [across.of(point) for point in points]
        steps = [point.step for point in points]
        tracks.append(Track(steps=steps, xs=places, ys=[_value(point, name) for point in points]))
    if group.several:
        *band, line = _banded(tracks, 2 * plot.max_dots, label, slot, look)
    else:
        band, line = [], Trace(label=label, curve=Curve(xs=tracks[0].xs, ys=tracks[0].ys), slot=slot, look=look)
    few = len(line.curve.xs) <= plot.max_dots
    thinned = replace(line, curve=thin(line.curve, 2 * plot.max_dots))
    return [*band, thinned, *([replace(line, look="dots")] if few else [])]


def _metric_figure(plot: _Plot, name: str) -> Figure | None:
    runs = [run for group in plot.groups for run in group.runs]
    splits = _splits(runs, name)
    if not splits:
        return None
    splits = splits if plot.alone else splits[:1]

    def traces(across: _Across) -> list[Trace]:
        found = []
        for group in plot.groups:
            for i, split in enumerate(splits):
                label = (split_name(split) if len(splits) > 1 else spoken(name)) if plot.alone else ""
                drawn = (label or group.label, i if plot.alone else group.slot, "line")
                found += _evaluated(plot, group, across, split, name, drawn)
        return sorted(found, key=lambda trace: trace.look != "band")

    values = [point.values[name] for run in runs for point in run.evals if name in point.values]
    bounded = is_percentage(name) and all(0 <= value <= 1 for value in values if drawable(value))
    subject = Subject(
        name=capital(spoken(name)),
        levels=_levels(plot.groups[0].lead, name) if plot.alone else (),
        show=lambda value: in_metric(name, value),
        tick=lambda value, step: in_metric_step(name, value, step),
        within=(0.0, 1.0) if bounded else None,
    )
    return _figure(plot, subject, traces, _metric_caption(plot, name, splits))


def _metric_caption(plot: _Plot, name: str, splits: Sequence[str]) -> str:
    runs = [run for group in plot.groups for run in group.runs]
    few = all(sum(point.split == split for point in run.evals) <= plot.max_dots for run in runs for split in splits)
    each = (
        "Each dot is"
        if few
        else "Where there are no dots, the line joins the lowest and the highest of neighbours; each is"
    )
    where = (
        f"the {split_name(splits[0])} split"
        if len(splits) == 1
        else f"a split ({listed(list(map(split_name, splits)))})"
    )
    judged = [run.summary.metric for run in runs if run.summary and run.summary.metric]
    judged_on = [_splits(group.runs, name) for group in plot.groups]
    missed = not plot.alone and any(found and splits[0] not in found for found in judged_on)
    falls = any(metric.name == name and metric.lower_is_better for metric in judged)
    return f"{each} an evaluation on {where}.{' Lower is better.' * falls}{_MISSED * missed}{_band_caption(plot)}"


def _levels(run: RunRecord, name: str) -> tuple[Level, ...]:
    """Return where the metric stood before training, as lines to compare with."""
    levels = []
    if run.summary and run.summary.metric and run.summary.metric.name == name:
        levels.append(Level(label="before", value=run.summary.metric.start))
    levels += [
        Level(label=event.name, value=event.values[name])
        for event in run.events
        if event.step == 0 and name in event.values
    ]
    return tuple(level for level in levels if drawable(level.value))


def _moments(plot: _Plot, across: _Across) -> list[Level]:
    """Return the later events of a page's one run, where they stand along x."""
    if not plot.alone:
        return []
    run = plot.groups[0].lead
    later = [event for event in run.events if event.step > 0]
    points = sorted((*run.steps, *run.evals), key=lambda point: point.step)
    if not points or len(later) > _MOST_MOMENTS:
        return []
    steps = [point.step for point in points]
    return [
        Level(label=event.name, value=across.of(points[max(0, bisect_right(steps, event.step) - 1)])) for event in later
    ]


def _figure(plot: _Plot, subject: Subject, traces: Callable[[_Across], list[Trace]], caption: str) -> Figure | None:
    drawn = [(across, traces(across)) for across in plot.acrosses]
    if not any(drawable(y) for _, found in drawn for trace in found for y in trace.curve.ys):
        return None
    panels = [panel_of(subject, across.title, found, _moments(plot, across)) for across, found in drawn]
    if any(x.log for _, x, _ in panels):
        caption += (
            " Runs differ widely in length, so an axis is logarithmic; what happened at zero stands at its left edge."
        )
    if any(y.log for _, _, y in panels):
        caption += " The upward axis is logarithmic."
    legend = legend_of(drawn[0][1])
    return Figure(title=subject.name, caption=caption, legend=legend, panels=tuple(panel for panel, _, _ in panels))


def _work_across(runs: Sequence[RunRecord]) -> _Across:
    """Return example-forwards along x, or steps for runs that count no examples."""
    if any(point.forwards for run in runs for point in (*run.steps, *run.evals)):
        return _Across(title="Example-forwards", of=lambda point: point.forwards)
    return _Across(title="Steps", of=lambda point: point.step)


def _time_across(runs: Sequence[RunRecord]) -> _Across:
    longest = max(
        (point.seconds for run in runs for point in (*run.steps, *run.evals) if drawable(point.seconds)), default=0.0
    )
    for title, unit in (("Hours", 3600.0), ("Minutes", 60.0)):
        if longest >= 3 * unit:
            return _Across(title=title, of=lambda point, unit=unit: point.seconds / unit)
    return _Across(title="Seconds", of=lambda point: point.seconds)
