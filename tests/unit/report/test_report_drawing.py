"""Curves, axes, figures and words, each alone."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherlight.report.charts import Axis, Trace, mark, plain_axis, ticks, x_axis, y_axis
from featherlight.report.curves import Curve, drawable, scatter, smooth, thin
from featherlight.report.quantities import (
    in_bytes,
    in_digits,
    in_metric,
    in_metric_step,
    in_short,
    in_step,
    in_time,
)

ANY = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(ANY, max_size=60), st.integers(0, 9))
def test_smoothing_matches_its_definition(ys: list[float], half: int) -> None:
    means = smooth(ys, 2 * half + 1)
    for i, (y, mean) in enumerate(zip(ys, means, strict=True)):
        near = [other for other in ys[max(0, i - half) : i + half + 1] if drawable(other)]
        assert math.isnan(mean) == (not drawable(y))
        if drawable(y):
            assert mean == pytest.approx(math.fsum(near) / len(near), rel=1e-12, abs=1e-80)


@given(st.lists(ANY, max_size=400), st.integers(2, 60))
def test_thinning_keeps_order_extremes_and_the_limit(ys: list[float], limit: int) -> None:
    curve = Curve(xs=list(range(len(ys))), ys=ys)
    thinned = thin(curve, limit)
    assert len(thinned.xs) <= limit
    assert list(thinned.xs) == sorted(set(thinned.xs))
    assert all(ys[int(x)] is y for x, y in zip(thinned.xs, thinned.ys, strict=True))
    seen = [y for y in ys if drawable(y)]
    if seen:
        kept = [y for y in thinned.ys if drawable(y)]
        assert (min(kept), max(kept)) == (min(seen), max(seen))


def test_thinning_keeps_a_wide_gap() -> None:
    ys = [1.0] * 500 + [math.nan] * 500 + [2.0] * 500
    thinned = thin(Curve(xs=range(1500), ys=ys), 60)
    assert any(math.isnan(y) for y in thinned.ys)


def test_a_scattered_cloud_keeps_its_extremes_and_its_limit() -> None:
    ys = [math.sin(i) for i in range(50_000)]
    ys[777] = 9.0
    cloud = scatter(Curve(xs=range(50_000), ys=ys), 600)
    assert len(cloud.xs) <= 600
    assert max(cloud.ys) == 9.0


def test_a_curve_pairs_its_points() -> None:
    with pytest.raises(ValueError, match="`xs` has 2 values and `ys` 1"):
        Curve(xs=[1, 2], ys=[1])


@given(st.lists(ANY, max_size=20))
def test_any_values_can_be_drawn(ys: list[float]) -> None:
    axis = y_axis(ys)
    assert axis.low < axis.high
    assert 1 <= len(ticks(axis, lambda value, step: in_step(value, step))) <= 12
    path = mark(Trace(label="", curve=Curve(xs=range(len(ys)), ys=ys), slot=0, look="line"), Axis(low=0, high=20), axis)
    assert "nan" not in path.path
    assert "inf" not in path.path
    assert all(0 <= axis.place(y) <= 1 for y in ys if drawable(y))


def test_a_line_breaks_at_a_gap() -> None:
    curve = Curve(xs=[0, 1, 2, 3, 4], ys=[0.0, 1.0, math.nan, 1.0, 0.0])
    line = mark(Trace(label="", curve=curve, slot=0, look="line"), Axis(low=0, high=4), Axis(low=0, high=1))
    assert line.path == "M0 1000h0L250 0M750 0h0L1000 1000"


def test_dots_are_not_joined() -> None:
    dots = Trace(label="", curve=Curve(xs=[0, 1], ys=[0.0, 1.0]), slot=0, look="dots")
    assert mark(dots, Axis(low=0, high=1), Axis(low=0, high=1)).path == "M0 1000h0M1000 0h0"


def test_a_band_is_outlined_once_for_each_stretch() -> None:
    curve = Curve(xs=[0, 1, 2, 3, 4], ys=[1.0, 1.0, math.nan, 1.0, 0.5])
    band = Trace(label="", curve=curve, slot=0, look="band", floor=[0.0, 0.5, 0.0, 0.0, 0.0])
    path = mark(band, Axis(low=0, high=4), Axis(low=0, high=1)).path
    assert path == "M0 0L250 0L250 500L0 1000ZM750 0L1000 500L1000 1000L750 1000Z"


def test_columns_stand_on_zero() -> None:
    columns = Trace(label="", curve=Curve(xs=[0, 1], ys=[1.0, -1.0]), slot=0, look="columns")
    path = mark(columns, Axis(low=-0.5, high=1.5), Axis(low=-1, high=1)).path
    assert path == "M50 500V0H450V500ZM550 500V1000H950V500Z"


@given(st.lists(ANY, max_size=20), st.booleans(), st.sampled_from([0.0, 0.06]))
def test_any_values_have_a_plain_axis(values: list[float], log: bool, margin: float) -> None:
    axis = plain_axis(values, log=log, margin=margin)
    assert axis.low < axis.high
    assert not log or axis.low > 0
    assert len(ticks(axis, in_step)) <= 12
    assert all(-1e-9 <= axis.place(value) <= 1 + 1e-9 for value in values if drawable(value))


def test_runs_of_unlike_length_share_a_logarithmic_axis() -> None:
    assert x_axis([1e6, 1e3], [1e3, 10]).log
    assert not x_axis([1e6, 5e5], [1e3, 10]).log
    assert not x_axis([], []).log


@given(st.floats(-1e6, 1e6), st.floats(1e-9, 1e6))
def test_ticks_differ_in_text(low: float, span: float) -> None:
    axis = Axis(low=low, high=low + max(span, 1e-6 * abs(low)))
    texts = [tick.text for tick in ticks(axis, in_step)]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (62_480, "61.0 KiB"),
        (1 << 30, "1.00 GiB"),
        (1023 << 20, "1.00 GiB"),
        (-2048, "\N{MINUS SIGN}2.00 KiB"),
    ],
)
def test_bytes(num_bytes: int, text: str) -> None:
    assert in_bytes(num_bytes).replace("\N{NO-BREAK SPACE}", " ") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.042, "0.042 s"), (48, "48 s"), (59.7, "1 min"), (724.6, "12 min 5 s"), (3600, "1 h"), (90_000, "1 d 1 h")],
)
def test_times(seconds: float, text: str) -> None:
    assert in_time(seconds).replace("\N{NO-BREAK SPACE}", " ") == text


def test_times_that_are_not_finite() -> None:
    assert in_time(math.inf) == "unknown"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (2_048_017, "2.05M"), (10_000, "10k"), (3e12, "3T")]
)
def test_short_counts(count: float, text: str) -> None:
    assert in_short(count) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.69314, "0.6931"), (1.5e-7, "1.5e-07"), (math.nan, "not a number"), (math.inf, "infinite")]
)
def test_digits(value: float, text: str) -> None:
    assert in_digits(value) == text


def test_metrics_read_as_their_kind_does() -> None:
    assert in_metric("accuracy", 0.8234) == "82.3\N{NO-BREAK SPACE}%"
    assert in_metric("test_accuracy", 0.8234) == "82.3\N{NO-BREAK SPACE}%"
    assert in_metric("perplexity", 12.3456) == "12.35"
    assert in_metric("accuracy", math.nan) == "not a number"
    assert in_metric_step("accuracy", 0.8175, 0.0005) == "81.75\N{NO-BREAK SPACE}%"
    assert in_metric_step("perplexity", 12.5, 0.5) == "12.5"
