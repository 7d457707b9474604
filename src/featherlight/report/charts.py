"""The geometry of a chart: axes, ticks and SVG paths in a square of 1000 units, stretched by the page to any width."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from featherlight.report.curves import LARGEST, Curve, drawable

SIDE = 1000
"""Units along a chart's side; more than a screen shows, so whole numbers do."""

_LOG_SPAN = 50.0


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A curve to draw: its colour `slot` and its `look`, which is line, dashed, cloud (faint dots) or dots."""

    label: str
    curve: Curve
    slot: int
    look: str


@dataclass(frozen=True, kw_only=True)
class Level:
    """A horizontal line at a value, with a few words."""

    label: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A tick's place along its axis, 0 to 100, and its text."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Mark:
    """An SVG path in units of `SIDE`, to be drawn in a colour and look."""

    path: str
    slot: int
    look: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A chart, ready for the page. `description` says in words what it shows."""

    title: str
    description: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    levels: tuple[Tick, ...]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Values from `low` to `high` along a side, evenly or by their logarithm."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Return where a value lies, 0 at `low` and 1 at `high`; below `low` a logarithm is drawn at 0."""
        if self.log:
            start = math.log(self.low)
            return (math.log(max(value, self.low)) - start) / (math.log(self.high) - start)
        return (value - self.low) / (self.high - self.low)

    def tick_values(self) -> list[float]:
        """Return about four round values on the axis."""
        return _log_ticks(self.low, self.high) if self.log else _even_ticks(self.low, self.high)


def x_axis(ends: Sequence[float], starts: Sequence[float]) -> Axis:
    """Return the axis from zero to just past the furthest end; logarithmic where one run would vanish beside another.

    Args:
        ends: the last x of each run.
        starts: the first x above zero of each run.
    """
    furthest = max(ends, default=1.0) or 1.0
    positive = [end for end in ends if end > 0]
    if positive and furthest / min(positive) > _LOG_SPAN / 2:
        first = min(starts, default=furthest)
        return Axis(low=min(first, furthest / _LOG_SPAN) / 1.1, high=furthest * 1.1, log=True)
    return Axis(low=0.0, high=furthest * 1.02)


def y_axis(values: Sequence[float], *, within: tuple[float, float] | None = None) -> Axis:
    """Return an axis with room for the drawable `values`, by logarithm where they span more than fiftyfold.

    Args:
        values: what must be seen.
        within: bounds that the axis keeps to where the values do.
    """
    seen = [value for value in values if drawable(value)] or [0.0, 1.0]
    low, high = min(seen), max(seen)
    if low > 1 / LARGEST and high / low > _LOG_SPAN:
        return Axis(low=low / 1.2, high=high * 1.2, log=True)
    margin = 0.06 * (high - low)
    if margin <= 1e-12 * max(abs(low), abs(high)) or margin < 1e-30:
        margin = 0.05 * abs(high) if abs(high) > 1e-30 else 0.5
    bottom, top = low - margin, high + margin
    if within and within[0] <= low and high <= within[1]:
        bottom, top = max(bottom, within[0]), min(top, within[1] + margin / 2)
    return Axis(low=bottom, high=top)


def ticks(axis: Axis, show: Callable[[float, float], str], *, upwards: bool = False) -> tuple[Tick, ...]:
    """Place an axis's ticks.

    Args:
        axis: the axis.
        show: turns a value and the step between values (0 on a logarithmic axis) into text.
        upwards: places are percentages from the top, else from the left.
    """
    placed = []
    values = axis.tick_values()
    step = 0.0 if axis.log or len(values) < 2 else values[1] - values[0]
    for value in values:
        at = 100 * axis.place(value)
        placed.append(Tick(at=round(100 - at if upwards else at, 2), text=show(value, step)))
    return tuple(placed)


def mark(trace: Trace, x: Axis, y: Axis) -> Mark:
    """Turn a trace into a path: joined points for lines, one dot for each point otherwise."""
    joined = trace.look in ("line", "dashed")
    parts: list[str] = []
    pen_down = False
    for x_value, y_value in zip(trace.curve.xs, trace.curve.ys, strict=True):
        if not (drawable(x_value) and drawable(y_value)):
            pen_down = False
            continue
        point = f"{round(SIDE * x.place(x_value))} {round(SIDE * (1 - _near(y.place(y_value))))}"
        parts.append(f"L{point}" if joined and pen_down else f"M{point}h0")
        pen_down = True
    return Mark(path="".join(parts), slot=trace.slot, look=trace.look, label=trace.label)


def _near(place: float) -> float:
    """Bring a place far outside the chart to just outside it."""
    return min(2.0, max(-1.0, place))


def _even_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 4
    size = 10.0 ** math.floor(math.log10(rough))
    step = size * min((1, 2, 5, 10), key=lambda factor: abs(factor * size - rough))
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    stride = max(1, len(decades) // 5)
    tens = [10.0**n for n in decades[::stride] if low <= 10.0**n <= high]
    if len(tens) > 2:
        return tens
    return [m * 10.0**n for n in decades for m in (1, 3) if low <= m * 10.0**n <= high] or [low, high]
