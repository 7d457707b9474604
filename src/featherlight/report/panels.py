"""Traces laid out as a panel: the axes that hold them, levels across, moments upright, and the words of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from featherlight.report.charts import Axis, Level, Mark, Panel, Tick, Trace, mark, ticks, x_axis, y_axis
from featherlight.report.curves import drawable, quantile
from featherlight.report.quantities import in_short

_SHARE_SEEN = 0.99
_LEGEND_LOOKS = ("line", "dashed")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of one panel or two: what it shows, how to read it, and its legend (one mark without a path per trace)."""

    title: str
    caption: str
    legend: tuple[Mark, ...]
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a panel is of: its name, horizontal levels, how values and ticks read, and bounds."""

    name: str
    show: Callable[[float], str]
    tick: Callable[[float, float], str]
    levels: tuple[Level, ...] = ()
    within: tuple[float, float] | None = None


def panel_of(
    subject: Subject, across: str, traces: Sequence[Trace], moments: Sequence[Level] = ()
) -> tuple[Panel, Axis, Axis]:
    """Lay traces out.

    Args:
        subject: what they show.
        across: what runs along the x axis.
        traces: at least one has a drawable value.
        moments: names, and where along x each stands.

    Returns:
        The panel, its x axis and its y axis.
    """
    filled = [trace for trace in traces if any(map(drawable, trace.curve.ys))]
    x = _x_axis_of(filled)
    values = _must_see(filled)
    levels = _near(subject.levels, values)
    y = y_axis([*values, *(level.value for level in levels)], within=subject.within)
    panel = Panel(
        title=f"{across}{' (logarithmic)' if x.log else ''}",
        description=described(subject, across, filled),
        x_ticks=ticks(x, lambda value, step: in_short(value)),
        y_ticks=ticks(y, subject.tick, upwards=True),
        marks=tuple(mark(trace, x, y) for trace in filled),
        levels=_placed(levels, y),
        moments=tuple(
            Tick(at=round(100 * x.place(moment.value), 2), text=moment.label)
            for moment in moments
            if x.low <= moment.value <= x.high
        ),
    )
    return panel, x, y


def described(subject: Subject, across: str, traces: Sequence[Trace]) -> str:
    """Say in words where each line of a chart starts and ends."""
    parts = []
    for trace in traces:
        if trace.look in _LEGEND_LOOKS:
            seen = [y for y in trace.curve.ys if drawable(y)]
            parts.append(f"{trace.label} from {subject.show(seen[0])} to {subject.show(seen[-1])}")
    return f"{subject.name} against {across.lower()}: {'; '.join(parts)}."


def legend_of(traces: Sequence[Trace]) -> tuple[Mark, ...]:
    """Return a legend's marks, one for each line; none where there is a single line."""
    shown = [trace for trace in traces if trace.look in _LEGEND_LOOKS and trace.curve.xs]
    legend = tuple(Mark(path="", slot=trace.slot, look=trace.look, label=trace.label) for trace in shown)
    return legend if len(legend) > 1 else ()


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
    """Return the values the y axis makes room for: all of a line or band, and a cloud without its furthest dots."""
    values: list[float] = []
    for trace in traces:
        if trace.look == "cloud":
            values.extend(quantile(trace.curve.ys, share) for share in (1 - _SHARE_SEEN, _SHARE_SEEN))
        else:
            values.extend((*trace.curve.ys, *trace.floor))
    return values
