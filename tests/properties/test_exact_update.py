"""Law: the update of a record is the same to the bit, however the work is cut up, and right to one rounding."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from featherlight.functional import SignStream
from featherlight.meter import Meter
from featherlight.optim.zeroth_order import StepRecord, Target, apply_update, apply_updates, update
from featherlight.optim.zeroth_order.targets import Directions
from featherlight.optim.zeroth_order.update import COEFFICIENT_LIMIT, MAX_DIRECTIONS, quantize_coefficients
from tests.oracles.exact_update import updated
from tests.oracles.slopes import trained

SHAPES = st.sampled_from([(), (1,), (5,), (130,), (3, 4), (7, 130), (131, 3), (4, 2, 3, 3)])


def make_record(seed: int, coefficients: list[int], *, rate: float = 1e-4, decay: float = 1.0) -> StepRecord:
    rate, decay = (float(torch.tensor(value, dtype=torch.float32)) for value in (rate, decay))
    return StepRecord(
        step=seed % 1000, seed=seed, scale=1.0, rates=(rate,), decays=(decay,), coefficients=torch.tensor(coefficients)
    )


def make_targets(shapes: list[tuple[int, ...]], dtype: torch.dtype, seed: int = 0) -> list[Target]:
    generator = torch.Generator().manual_seed(seed)
    model = nn.ParameterList([torch.randn(shape, generator=generator).to(dtype) for shape in shapes])
    return trained(model)


def bits(tensor: Tensor) -> list[int]:
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(width).flatten().tolist()


def apply(targets: list[Target], record: StepRecord) -> list[list[int]]:
    apply_update(targets, record, meter=Meter())
    return [bits(target.parameter) for target in targets]


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@given(
    shapes=st.lists(SHAPES, min_size=1, max_size=3),
    coefficients=st.lists(st.integers(-COEFFICIENT_LIMIT, COEFFICIENT_LIMIT), min_size=1, max_size=6),
    decay=st.sampled_from([1.0, 0.9375, 0.999]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    shared=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
)
@settings(max_examples=40)
def test_update_equals_dense_formula_to_rounding(
    shapes: list[tuple[int, ...]], coefficients: list[int], decay: float, dtype: torch.dtype, shared: bool, seed: int
) -> None:
    targets, record = make_targets(shapes, dtype), make_record(seed, coefficients, decay=decay)
    targets[0].shared = shared
    expected = [updated(target, record) for target in targets]
    apply_update(targets, record, meter=Meter())
    for target, exact in zip(targets, expected, strict=True):
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(target.parameter.detach().double(), exact, rtol=2 * eps, atol=4 * eps)


@given(
    chunk=st.integers(1, 700),
    count=st.integers(1, 5),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**64 - 1),
)
@settings(max_examples=40)
def test_bits_do_not_depend_on_chunks_or_threads(chunk: int, count: int, dtype: torch.dtype, seed: int) -> None:
    shapes = [(7, 131), (300,), (5, 3, 2)]
    coefficients = [(-1) ** number * (seed + 17 * number) % COEFFICIENT_LIMIT for number in range(count)]
    record = make_record(seed, coefficients, decay=0.99)
    whole = apply(make_targets(shapes, dtype), record)
    with pytest.MonkeyPatch.context() as patch, threads(2):
        patch.setattr(update, "_ELEMENTS_AT_ONCE", chunk)
        assert apply(make_targets(shapes, dtype), record) == whole


@given(
    seed=st.integers(0, 2**64 - 1),
    coefficient=st.integers(-4095, 4095),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=20)
def test_one_direction_takes_the_same_steps_as_the_general_path(
    seed: int, coefficient: int, dtype: torch.dtype
) -> None:
    shapes = [(9, 20), (33,), (2, 3, 4)]
    alone = apply(make_targets(shapes, dtype), make_record(seed, [coefficient], rate=1e-3))
    among = apply(make_targets(shapes, dtype), make_record(seed, [coefficient, 0, 0], rate=1e-3))
    assert alone == among


@given(
    counts=st.lists(st.sampled_from([1, 3, 40, 70]), min_size=1, max_size=6),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    shared=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    data=st.data(),
)
@settings(max_examples=25)
def test_a_run_of_steps_is_its_steps_one_by_one(
    counts: list[int], dtype: torch.dtype, shared: bool, seed: int, data: st.DataObject
) -> None:
    """Seeds that change, numbers of directions that change, steps that are left out: the runs are cut there."""
    step, records = 0, []
    for count in counts:
        for _ in range(data.draw(st.integers(1, 3))):
            step += data.draw(st.sampled_from([1, 1, 1, 2]))
            draw = torch.Generator().manual_seed(step)
            records.append(
                StepRecord(
                    step=step, seed=(seed + data.draw(st.integers(0, 1))) % 2**64, scale=1.0, rates=(1e-5 * step,),
                    decays=(0.99,), coefficients=torch.randint(-4095, 4096, (count,), generator=draw),
                )
            )  # fmt: skip
    shapes = [(7, 40), (9,), (), (3, 2, 2)]
    together, apart = make_targets(shapes, dtype), make_targets(shapes, dtype)
    together[0].shared = apart[0].shared = shared
    meters = Meter(), Meter()
    apply_updates(together, iter(records), meter=meters[0])
    for record in records:
        apply_update(apart, record, meter=meters[1])
    assert [bits(target.parameter) for target in together] == [bits(target.parameter) for target in apart]
    assert meters[0] == meters[1]


@pytest.mark.parametrize("signs", ["same", "alternating", "drawn"])
def test_sum_of_most_and_largest_coefficients_is_exact(signs: str) -> None:
    """4096 terms of 4095 stay below 2**24, so float32 holds every partial sum."""
    numbers = torch.full((MAX_DIRECTIONS,), COEFFICIENT_LIMIT)
    if signs == "alternating":
        numbers[::2] *= -1
    elif signs == "drawn":
        numbers = torch.randint(-4095, 4096, (MAX_DIRECTIONS,), generator=torch.Generator().manual_seed(0))
    [target] = make_targets([(6, 9)], torch.float32)
    with torch.no_grad():
        target.parameter.zero_()
    record = make_record(77, numbers.tolist(), rate=1.0)
    factors = Directions([target], SignStream(seed=77, step=record.step), MAX_DIRECTIONS).factors(target, torch.float64)
    assert factors.right is not None
    exact = torch.einsum("k,kr,kc->rc", numbers.double(), factors.left, factors.right)
    apply_update([target], record, meter=Meter())
    assert torch.equal(target.parameter.detach().double(), -exact)


def test_all_examples_in_one_shared_direction_is_exact_at_the_limit() -> None:
    [target] = make_targets([(4, 5)], torch.float32)
    target.shared = True
    with torch.no_grad():
        target.parameter.zero_()
    apply_update([target], make_record(3, [COEFFICIENT_LIMIT] * MAX_DIRECTIONS, rate=1.0), meter=Meter())
    assert set(target.parameter.detach().abs().flatten().tolist()) == {float(COEFFICIENT_LIMIT * MAX_DIRECTIONS)}


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_matmul_precision_and_autocast_change_no_bit_and_are_put_back(precision: str) -> None:
    shapes = [(64, 96)]
    record = make_record(5, [4095, -4093, 2047, 1])
    plain = apply(make_targets(shapes, torch.float32), record)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            under = apply(make_targets(shapes, torch.float32), record)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert under == plain


def test_settings_of_single_backends_are_put_back() -> None:
    backend = torch.backends.mkldnn.matmul
    before = backend.fp32_precision
    try:
        backend.fp32_precision = "bf16"
        plain = apply(make_targets([(64, 96)], torch.float32), make_record(5, [4095, -4093, 2047, 1]))
        assert backend.fp32_precision == "bf16"
    finally:
        backend.fp32_precision = before
    assert plain == apply(make_targets([(64, 96)], torch.float32), make_record(5, [4095, -4093, 2047, 1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_order_of_a_parameter_changes_no_bit(dtype: torch.dtype) -> None:
    record = make_record(8, [100, -7, 13])
    rows, spread = make_targets([(3, 4, 2, 2)], dtype), make_targets([(3, 4, 2, 2)], dtype)
    spread[0].parameter.data = spread[0].parameter.data.to(memory_format=torch.channels_last)
    assert not spread[0].parameter.is_contiguous()
    assert apply(spread, record) == apply(rows, record)
    assert spread[0].parameter.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_no_slope_leaves_every_bit_negative_zeros_included(count: int, dtype: torch.dtype) -> None:
    targets = make_targets([(4, 6), (9,)], dtype)
    with torch.no_grad():
        for target in targets:
            target.parameter.view(-1)[::2] = -0.0
    before = [bits(target.parameter) for target in targets]
    assert apply(targets, make_record(3, [0] * count)) == before


def neighbours(value: float, dtype: torch.dtype) -> set[float]:
    """The numbers of `dtype` next to `value` on both sides, or `value` itself."""
    nearest = torch.tensor(value, dtype=torch.float64).to(dtype)
    if float(nearest) == value:
        return {value}
    towards = torch.tensor(float("inf") if float(nearest) < value else -float("inf"), dtype=dtype)
    return {float(nearest), float(torch.nextafter(nearest, towards))}


def smallest_step(value: float, dtype: torch.dtype) -> float:
    around = sorted(neighbours(value, dtype))
    return around[-1] - around[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("start", [1.0, -1.0, 3.140625, -0.099609375, 2.0**-16, -(2.0**-20), 0.0, 255.5, -1023.0])
@pytest.mark.parametrize("step", [0.3, 0.03125, 2.6])
def test_stochastic_rounding_is_unbiased_and_hits_neighbours_alone(
    dtype: torch.dtype, start: float, step: float
) -> None:
    """`step` is in units of the last place; fp16 subnormals (below 2**-14) among the starts."""
    weight = torch.full((200, 200), start, dtype=dtype)
    start = float(weight[0, 0])
    place = float(torch.nextafter(weight[0, 0].abs(), torch.tensor(float("inf"), dtype=dtype))) - abs(start)
    place = max(place, 2.0**-24)
    rate = float(torch.tensor(place * step, dtype=torch.float32))
    [target] = trained(nn.ParameterList([weight]))
    record = StepRecord(step=1, seed=9, scale=1.0, rates=(rate,), decays=(1.0,), coefficients=torch.tensor([1]))
    signs = Directions([target], SignStream(seed=9, step=1), 1).dense(target, 0, torch.float32)
    apply_update([target], record, meter=Meter())
    result = target.parameter.detach().double()
    for sign in (1, -1):
        exact = float(torch.tensor(start, dtype=torch.float32) - sign * rate)
        reached = result[signs == sign]
        assert set(reached.tolist()) <= neighbours(exact, dtype)
        gap = smallest_step(exact, dtype)
        error = abs(float(reached.mean()) - exact)
        assert error <= gap * (5 * 0.5 / len(reached) ** 0.5 + 2.0**-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_repeats_itself_and_differs_between_steps_and_elements(dtype: torch.dtype) -> None:
    def run(seed: int) -> list[int]:
        [target] = trained(nn.ParameterList([torch.ones(64, 64, dtype=dtype)]))
        return apply([target], make_record(seed, [1], rate=1e-4))[0]

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert len(set(run(1))) >= 2


@given(st.lists(st.floats(-1e20, 1e20), min_size=1, max_size=8))
@settings(max_examples=60)
def test_coefficients_are_the_slopes_to_half_a_unit(values: list[float]) -> None:
    slopes = torch.tensor(values, dtype=torch.float64)
    integers, unit = quantize_coefficients(slopes)
    assert int(integers.abs().max()) <= COEFFICIENT_LIMIT
    assert unit == float(torch.tensor(unit, dtype=torch.float32))
    largest = float(slopes.abs().max())
    assert float((integers * unit - slopes).abs().max()) <= 0.5001 * max(unit, 1e-45) + 1e-6 * largest + 1e-41
