"""Curves made ready to draw: smoothed, thinned, with gaps where a value is not finite."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median

LARGEST = 1e100
"""Values beyond this are not drawn, so that no sum or scale overflows."""

_UNIT = 2.0**-300
"""Smoothing sums in whole numbers of this, exactly, so that one huge loss does not blur those after it."""


def drawable(value: float) -> bool:
    """Tell whether a value has a place on an axis; NaN, infinities and values beyond `LARGEST` have none."""
    return abs(value) <= LARGEST


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points in drawing order; a y that is not drawable is a gap."""

    xs: Sequence[float]
    ys: Sequence[float]

    def __post_init__(self) -> None:
        """Raise a ValueError unless every x has its y."""
        if len(self.xs) != len(self.ys):
            raise ValueError(
                f"`xs` has {len(self.xs)} values and `ys` {len(self.ys)}, so points cannot be paired; "
                "give one y for each x"
            )


def smooth(ys: Sequence[float], window: int) -> list[float]:
    """Average each value with its drawable neighbours.

    Args:
        ys: the values, in order; those that are not drawable are left out of every mean and stay gaps.
        window: how many values a mean spans, centred; at the ends it spans what there is.

    Returns:
        As many values, NaN where `ys` is not drawable. Time is linear in their number.
    """
    usable = [drawable(y) for y in ys]
    sums = list(accumulate((int(y / _UNIT) if ok else 0 for y, ok in zip(ys, usable, strict=True)), initial=0))
    counts = list(accumulate(usable, initial=0))
    half = window // 2
    means = []
    for i, ok in enumerate(usable):
        low, high = max(0, i - half), min(len(usable), i + half + 1)
        mean = (sums[high] - sums[low]) / (counts[high] - counts[low]) * _UNIT if ok else math.nan
        means.append(mean)
    return means


def smoothing_window(num_points: int) -> int:
    """Return the window that shows the trend of `num_points` losses: a thirtieth of them, odd, 1 for few."""
    return num_points // 30 // 2 * 2 + 1


def thin(curve: Curve, max_points: int) -> Curve:
    """Keep the outline of a curve in few points: the lowest and the highest of each run of neighbours.

    Args:
        curve: the curve.
        max_points: at most this many points are kept, at least 2; a curve that has no more comes back as it is.

    Returns:
        The thinned curve. Gaps narrower than a run of neighbours close; a gap as wide as one stays.
    """
    total = len(curve.xs)
    if total <= max_points:
        return curve
    size = math.ceil(total / (max_points // 2))
    kept: list[int] = []
    for first in range(0, total, size):
        usable = [i for i in range(first, min(first + size, total)) if drawable(curve.ys[i])]
        if not usable:
            kept.append(first)
            continue
        low, high = min(usable, key=curve.ys.__getitem__), max(usable, key=curve.ys.__getitem__)
        kept.extend(sorted({low, high}))
    return Curve(xs=[curve.xs[i] for i in kept], ys=[curve.ys[i] for i in kept])


def scatter(curve: Curve, max_points: int) -> Curve:
    """Keep the look of a cloud of points: most of them evenly spaced, the rest its outline.

    Args:
        curve: the points.
        max_points: about this many points are kept, at least 16; a curve that has no more comes back as it is.

    Returns:
        The thinner cloud.
    """
    if len(curve.xs) <= max_points:
        return curve
    stride = math.ceil(len(curve.xs) / (7 * max_points // 8))
    outline = thin(curve, max_points // 8)
    return Curve(xs=[*curve.xs[::stride], *outline.xs], ys=[*curve.ys[::stride], *outline.ys])


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the drawable `values` lie; there must be at least one."""
    ordered = sorted(value for value in values if drawable(value))
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True, kw_only=True)
class Track:
    """One run of several alike: for each of its rising `steps`, a place along the x axis and a value."""

    steps: Sequence[int]
    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Several tracks as one: the median place, and the lowest, median and highest value there."""

    xs: Sequence[float]
    lows: Sequence[float]
    middles: Sequence[float]
    highs: Sequence[float]


def spread(tracks: Sequence[Track], max_points: int) -> Spread:
    """Lay tracks over each other, step by step.

    Args:
        tracks: of runs that differ in chance alone, such as their seeds; each counts from its first step to its last.
        max_points: about this many steps are kept.

    Returns:
        A point for each step that any track has; between the steps of its own, a track counts by a straight line.
        Where no track has a drawable value, the values are NaN.
    """
    steps = sorted({step for track in tracks for step in track.steps})
    stride = max(1, math.ceil(len(steps) / max_points))
    steps = sorted({*steps[::stride], *steps[-1:]})
    rows = []
    reached = -math.inf
    for step in steps:
        there = [_between(track, step) for track in tracks if track.steps and track.steps[0] <= step <= track.steps[-1]]
        xs, ys = ([value for value in part if drawable(value)] for part in zip(*there, strict=True))
        reached = max(reached, median(xs) if xs else reached)
        rows.append((reached, min(ys), median(ys), max(ys)) if ys else (reached, *[math.nan] * 3))
    xs, lows, middles, highs = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Spread(xs=xs, lows=lows, middles=middles, highs=highs)


def _between(track: Track, step: int) -> tuple[float, float]:
    """Return a track's place and value at a step within it; NaN beside a gap."""
    i = bisect_left(track.steps, step)
    if track.steps[i] == step:
        return track.xs[i], track.ys[i]
    share = (step - track.steps[i - 1]) / (track.steps[i] - track.steps[i - 1])
    x, y = (part[i - 1] + share * (part[i] - part[i - 1]) for part in (track.xs, track.ys))
    return x, y if drawable(track.ys[i]) and drawable(track.ys[i - 1]) else math.nan
