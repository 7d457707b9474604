"""The update of a step from its record: exact to the bit on any device, in any order and on any number of threads.

Legend of shapes: K directions, R rows, C columns.
For every trained weight, `W -= rate * (sum_k c_k left_k right_k^T)` with integer `c_k`. The sum is formed in float32,
where it is exact in any order as long as K * max|c| stays below 2**24; then come one multiplication and one
subtraction, each rounded once. Weights below 32 bits are updated in float32 and rounded stochastically with bits of the
same counter-based generator.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from featherlight.functional import SignStream, random_words
from featherlight.meter import Meter
from featherlight.optim.zeroth_order.targets import Directions, Factors, Target

COEFFICIENT_LIMIT = 4095
MAX_DIRECTIONS = 4096
_ELEMENTS_AT_ONCE = 1 << 18
_DIRECTIONS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """All that is needed to repeat a step without data.

    Attributes:
        step: number of the step, from 0.
        seed: 64-bit key of the generator.
        scale: what one unit of a coefficient is worth in estimated slope (loss per unit of sigma), float32.
        rates: per parameter group, the float32 factor of the integer sum.
        decays: per parameter group, the float32 factor the weights are multiplied by first; 1 is no decay.
        coefficients: (K,) int64, each at most 4095 in magnitude.
    """

    step: int
    seed: int
    scale: float
    rates: tuple[float, ...]
    decays: tuple[float, ...]
    coefficients: Int[Tensor, "K"]


def apply_update(
    targets: Sequence[Target], record: StepRecord, *, meter: Meter, directions: Directions | None = None
) -> None:
    """Applies a recorded step to the weights, in place.

    Args:
        targets: the trained parameters.
        record: the step.
        meter: counts the weight passes and random words.
        directions: those of this step if they are drawn already.

    Cost: one pass over the weights; memory of about 4 MB besides.
    """
    _apply(targets, [record], meter, directions)


def apply_updates(targets: Sequence[Target], records: Iterable[StepRecord], *, meter: Meter) -> None:
    """Applies recorded steps in order: the same bits as one by one, several times faster.

    Steps are taken in runs, and a slice of the weights goes through a whole run while it is in the cache.

    Args:
        targets: the trained parameters.
        records: consecutive steps.
        meter: counts the weight passes and random words.
    """
    for run in _runs(records):
        _apply(targets, run, meter, None)


def _runs(records: Iterable[StepRecord]) -> Iterator[list[StepRecord]]:
    """Consecutive steps of one seed and one number of directions, of limited length."""
    run: list[StepRecord] = []
    for record in records:
        count = len(record.coefficients)
        is_next = run and (record.step, record.seed) == (run[-1].step + 1, run[-1].seed)
        if run and not (
            is_next and count == len(run[-1].coefficients) and (len(run) + 1) * count <= _DIRECTIONS_AT_ONCE
        ):
            yield run
            run = []
        run.append(record)
    if run:
        yield run


def _apply(targets: Sequence[Target], run: Sequence[StepRecord], meter: Meter, directions: Directions | None) -> None:
    stream = SignStream(seed=run[0].seed, step=run[0].step)
    drawn = directions or Directions(targets, stream, len(run[0].coefficients), num_steps=len(run))
    words_before = drawn.num_words if directions is not None else 0
    with torch.no_grad(), _exact_products(drawn.device):
        for target in targets:
            _update_target(target, run, drawn, meter)
    meter.random_words += drawn.num_words - words_before
    meter.weight_passes += len(run)


class _TargetStep(NamedTuple):
    """One step of one target: its coefficients, which of the run's directions they belong to, its record.

    Where all coefficients are zero the sum must not be subtracted: the sign of its zeros, which would show in weights
    of -0.0, depends on the order of summation. `rate` is 0 then.
    """

    coefficients: Float[Tensor, "K"]
    of: slice
    record: StepRecord
    rate: float


def _update_target(target: Target, run: Sequence[StepRecord], directions: Directions, meter: Meter) -> None:
    dtype = torch.float64 if target.parameter.dtype == torch.float64 else torch.float32
    steps = []
    for number, record in enumerate(run):
        first, count = number * len(record.coefficients), len(record.coefficients)
        integers = record.coefficients.sum(0, keepdim=True) if target.shared else record.coefficients
        of = slice(first, first + (1 if target.shared else count))
        rate = record.rates[target.group] if integers.any() else 0.0
        steps.append(_TargetStep(integers.to(target.parameter.device, dtype), of, record, rate))
    weight = target.parameter.detach().reshape(target.rows, -1)
    rows_at_once = max(1, _ELEMENTS_AT_ONCE // max(weight.shape[1], len(run) * directions.count, 1))
    for first in range(0, target.rows, rows_at_once):
        rows = weight[first : first + rows_at_once]
        factors = directions.factors(target, dtype, first_row=first, num_rows=len(rows))
        for step in steps:
            own = Factors(factors.left[step.of], None if factors.right is None else factors.right[step.of])
            _update_rows(rows, own, step, target, first * weight.shape[1], meter)
    if not target.parameter.is_contiguous():
        target.parameter.copy_(weight.view_as(target.parameter))


def _update_rows(
    rows: Float[Tensor, "R C"], factors: Factors, step: _TargetStep, target: Target, start: int, meter: Meter
) -> None:
    """One step of a slice of a weight, the first element of which is number `start`."""
    rate, decay = step.rate, step.record.decays[target.group]
    if rows.dtype == step.coefficients.dtype:
        _subtract_(rows, factors, step.coefficients, rate, decay)
        return
    exact = rows.to(step.coefficients.dtype)
    _subtract_(exact, factors, step.coefficients, rate, decay)
    stream = SignStream(seed=step.record.seed, step=step.record.step)
    meter.random_words += _round_stochastically(rows, exact, stream, target, start)


def _subtract_(
    rows: Float[Tensor, "R C"], factors: Factors, coefficients: Float[Tensor, "K"], rate: float, decay: float
) -> None:
    """`rows * decay - rate * sum_k c_k left_k right_k^T`, in place."""
    if decay != 1.0:
        rows.mul_(decay)
    if rate == 0.0:
        return
    weighted_left = factors.left * coefficients[:, None]
    if factors.right is None:
        rows.sub_(weighted_left.sum(0)[:, None].mul_(rate))
    elif len(coefficients) == 1:
        rows.addr_(weighted_left[0].mul_(rate), factors.right[0], alpha=-1)
    else:
        rows.sub_((weighted_left.T @ factors.right).mul_(rate))


def _round_stochastically(
    rows: Tensor, exact: Float[Tensor, "R C"], stream: SignStream, target: Target, start: int
) -> int:
    """Writes `exact` to the 16-bit `rows`, up or down with the odds of the distance. Returns the words drawn.

    bfloat16 is the upper half of float32: 16 random bits are added below it and cut off. For float16 the weight is
    counted in its own last places, of which float32 holds 13 binary digits more, so 13 random bits are added.
    """
    first, last = start // 2, (start + exact.numel() + 1) // 2
    words = random_words(last - first, stream=stream, parameter=target.index, start=first, device=exact.device)
    halves = torch.stack((words & 0xFFFF, words >> 16), dim=-1).flatten()[start % 2 :][: exact.numel()]
    noise = halves.to(torch.int32).view_as(exact)
    if rows.dtype == torch.bfloat16:
        bits = (exact.view(torch.int32) + noise) & -65536
        rows.copy_(bits.view(torch.float32))
        return len(words)
    exponent = torch.frexp(exact).exponent.clamp_(min=-13)
    units = torch.ldexp(exact, 11 - exponent)
    rounded = torch.floor(units + (noise >> 3).to(exact.dtype) / 8192)
    rows.copy_(torch.ldexp(rounded, exponent - 11))
    return len(words)


@contextmanager
def _exact_products(device: torch.device) -> Iterator[None]:
    """No TF32, bfloat16 or autocast inside float32 products for the length of the block."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # pyright: ignore[reportAttributeAccessIssue]  # pyright: ignore[reportAttributeAccessIssue]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def quantize_coefficients(slopes: Float[Tensor, "K"]) -> tuple[Int[Tensor, "K"], float]:
    """Integers of at most 12 bits and the float32 unit they are counted in: `slopes` is about `integers * unit`."""
    unit = float((slopes.abs().max() / COEFFICIENT_LIMIT).to(torch.float32))
    if unit == 0.0:
        return torch.zeros_like(slopes, dtype=torch.int64), 0.0
    integers = (slopes / unit).round().clamp_(-COEFFICIENT_LIMIT, COEFFICIENT_LIMIT)
    return integers.to(torch.int64), unit
