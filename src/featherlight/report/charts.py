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
    """A curve to draw: its colour `slot` and its `look`.

    The look is line, dashed, cloud (faint dots), dots, band (the area between the curve and `floor`) or columns (from
    the foot of the chart, or from zero where that is on it, to each value).
    """

    label: str
    curve: Curve
    slot: int
    look: str
    floor: Sequence[float] = ()


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
    """A chart, ready for the page. `description` says in words what it shows.

    `levels` are lines across, with their places from the top; `moments` lines upright, with their places from the left.
    `image` is a picture to lay under the marks, as a data address.
    """

    title: str
    description: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...] = ()
    levels: tuple[Tick, ...] = ()
    moments: tuple[Tick, ...] = ()
    image: str = ""


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
    """Turn a trace into a path: joined points for lines, an outline for areas, one dot for each point otherwise."""
    if trace.look in ("band", "columns"):
        outline = _band(trace, x, y) if trace.look == "band" else _columns(trace, x, y)
        return Mark(path=outline, slot=trace.slot, look=trace.look, label=trace.label)
    joined = trace.look in ("line", "dashed")
    parts: list[str] = []
    pen_down = False
    for x_value, y_value in zip(trace.curve.xs, trace.curve.ys, strict=True):
        if not (drawable(x_value) and drawable(y_value)):
            pen_down = False
            continue
        point = _point(x_value, y_value, x, y)
        parts.append(f"L{point}" if joined and pen_down else f"M{point}h0")
        pen_down = True
    return Mark(path="".join(parts), slot=trace.slot, look=trace.look, label=trace.label)


def _point(x_value: float, y_value: float, x: Axis, y: Axis) -> str:
    return f"{round(SIDE * x.place(x_value))} {round(SIDE * (1 - _near(y.place(y_value))))}"


def _band(trace: Trace, x: Axis, y: Axis) -> str:
    """Outline the area between a curve and its floor, once for each stretch without a gap."""
    parts: list[str] = []
    stretch: list[tuple[float, float, float]] = []
    for place, high, low in [*zip(trace.curve.xs, trace.curve.ys, trace.floor, strict=True), (math.nan,) * 3]:
        if drawable(place) and drawable(high) and drawable(low):
            stretch.append((place, high, low))
        elif stretch:
            there = [_point(place, high, x, y) for place, high, _ in stretch]
            back = [_point(place, low, x, y) for place, _, low in reversed(stretch)]
            parts.append(f"M{'L'.join([*there, *back])}Z")
            stretch = []
    return "".join(parts)


def _columns(trace: Trace, x: Axis, y: Axis) -> str:
    """Outline a column for each value, as wide as its share of the axis."""
    foot = round(SIDE * (1 - min(1.0, max(0.0, y.place(0.0)))))
    half = 0.5 if len(trace.curve.xs) > SIDE // 8 else 0.4
    parts = []
    for place, value in zip(trace.curve.xs, trace.curve.ys, strict=True):
        if drawable(value):
            left, right = (round(SIDE * x.place(place + side), 1) for side in (-half, half))
            parts.append(f"M{left:g} {foot}V{round(SIDE * (1 - y.place(value)))}H{right:g}V{foot}Z")
    return "".join(parts)


def plain_axis(values: Sequence[float], *, log: bool = False, margin: float = 0.0) -> Axis:
    """Return an axis from the lowest to the highest of `values`, and `margin` (a share of that) beyond at either end.

    Args:
        values: what must have a place; those that have none, such as zero on a logarithmic axis, do not count.
        log: whether the axis is logarithmic.
        margin: the share.
    """
    seen = [value for value in values if drawable(value) and (value > 1 / LARGEST or not log)] or [1.0]
    low, high = min(seen), max(seen)
    if log:
        ratio = (high / low) ** margin if high > low * (1 + 1e-9) else 2.0
        return Axis(low=low / ratio, high=high * ratio, log=True)
    room = margin * (high - low) if high - low > 1e-12 * max(abs(low), abs(high), 1e-280) else 0.5 * (abs(high) or 1.0)
    return Axis(low=low - room, high=high + room)


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
