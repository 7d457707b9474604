"""The update of a step from its record: exact to the bit on any device, in any order and on any number of threads.

Legend of shapes: K directions, R rows, C columns.
For every trained weight, `W -= rate * (sum_k c_k left_k right_k^T)` with integer `c_k`. The sum is formed in float32,
where it is exact in any order as long as K * max|c| stays below 2**24; then come one multiplication and one
subtraction, each rounded once. What a step adds of earlier steps follows in the order of its record, each sum for itself.
Weights below 32 bits are updated in float32 and rounded stochastically with bits of the same counter-based generator;
those held as whole numbers are rounded so every so many directions (`held_back.py`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from featherlight.functional import QuantizedTensor, SignStream
from featherlight.meter import Meter
from featherlight.optim.zeroth_order.addend import Addend
from featherlight.optim.zeroth_order.exact import exact_products, round_stochastically, subtract_
from featherlight.optim.zeroth_order.held_back import hold_back
from featherlight.optim.zeroth_order.momentum import Momentum
from featherlight.optim.zeroth_order.targets import Directions, Factors, Target

COEFFICIENT_LIMIT = 4095
MAX_DIRECTIONS = 4096
_ELEMENTS_AT_ONCE = 1 << 18
_DIRECTIONS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Echo:
    """An earlier step's directions and coefficients, applied once more.

    Attributes:
        step: its number.
        rates: per parameter group, the float32 factor of its integer sum.
    """

    step: int
    rates: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """All that is needed to repeat a step without data.

    Attributes:
        step: number of the step, from 0.
        seed: 64-bit key of the generator.
        scale: what one unit of a coefficient is worth in estimated slope (loss per unit of sigma), float32.
        rates: per parameter group, the float32 factor of the integer sum; of targets with momentum, that of the momentum.
        decays: per parameter group, the float32 factor the weights are multiplied by first; 1 is no decay.
        coefficients: (K,) int64, each at most 4095 in magnitude.
        echoes: what is applied besides of earlier steps, in this order.
        world: processes that measured the step together.
        epoch: of the membership of those processes; it grows whenever one comes or goes.
    """

    step: int
    seed: int
    scale: float
    rates: tuple[float, ...]
    decays: tuple[float, ...]
    coefficients: Int[Tensor, "K"]
    echoes: tuple[Echo, ...] = ()
    world: int = 1
    epoch: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"coefficients": self.coefficients.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From what `as_dict` returned."""
        lists = {name: tuple(values[name]) for name in ("rates", "decays")}
        echoes = tuple(Echo(step=echo["step"], rates=tuple(echo["rates"])) for echo in values["echoes"])
        coefficients = torch.tensor(values["coefficients"], dtype=torch.int64)
        return cls(**{**values, **lists, "echoes": echoes, "coefficients": coefficients})


def apply_update(
    targets: Sequence[Target],
    record: StepRecord,
    *,
    meter: Meter,
    directions: Directions | None = None,
    earlier: Mapping[int, StepRecord] = MappingProxyType({}),
) -> None:
    """Applies a recorded step to the weights, in place.

    Args:
        targets: the trained parameters; those with momentum hold it, so they must be the same objects for all steps.
        record: the step.
        meter: counts the weight passes and random words.
        directions: those of this step if they are drawn already.
        earlier: by number, at least the steps that the record echoes.

    Cost: one pass over the weights; memory of about 4 MB besides.
    """
    _apply(targets, [record], meter, directions, earlier)


def apply_updates(
    targets: Sequence[Target],
    records: Iterable[StepRecord],
    *,
    meter: Meter,
    earlier: Mapping[int, StepRecord] = MappingProxyType({}),
) -> None:
    """Applies recorded steps in order: the same bits as one by one, several times faster.

    Steps are taken in runs, and a slice of the weights goes through a whole run while it is in the cache.

    Args:
        targets: the trained parameters, as for `apply_update`.
        records: consecutive steps.
        meter: counts the weight passes and random words.
        earlier: by number, the steps before the first that a record echoes.
    """
    known = dict(earlier)
    for run in _runs(records):
        known |= {record.step: record for record in run}
        _apply(targets, run, meter, None, known)


def _runs(records: Iterable[StepRecord]) -> Iterator[list[StepRecord]]:
    """Consecutive steps of one seed and one number of directions, of limited length; one with echoes stands alone."""
    run: list[StepRecord] = []
    for record in records:
        count = len(record.coefficients)
        is_next = run and (record.step, record.seed) == (run[-1].step + 1, run[-1].seed)
        if run and not (
            is_next
            and not (record.echoes or run[-1].echoes)
            and count == len(run[-1].coefficients)
            and (len(run) + 1) * count <= _DIRECTIONS_AT_ONCE
        ):
            yield run
            run = []
        run.append(record)
    if run:
        yield run


def _apply(
    targets: Sequence[Target],
    run: Sequence[StepRecord],
    meter: Meter,
    directions: Directions | None,
    earlier: Mapping[int, StepRecord],
) -> None:
    drawn = directions or directions_of(targets, run[0], num_steps=len(run))
    words_before = drawn.num_words if directions is not None else 0
    changes = [_changes(targets, record, drawn, number, earlier) for number, record in enumerate(run)]
    with torch.no_grad(), exact_products(drawn.device):
        written = sum(_take_through(target, run, changes, drawn, meter) for target in targets)
    echoed = {id(addend.directions): addend.directions for addends in changes for addend in addends[1:]}
    meter.random_words += drawn.num_words - words_before + sum(one.num_words for one in echoed.values())
    meter.weight_passes += written / max(1, sum(target.parameter.numel() for target in targets))


def _changes(
    targets: Sequence[Target], record: StepRecord, drawn: Directions, number: int, earlier: Mapping[int, StepRecord]
) -> list[Addend]:
    """What a step subtracts, its own directions first; they are the `number`-th of a run's."""
    first = number * len(record.coefficients)
    own = Addend(directions=drawn, coefficients=record.coefficients, rates=record.rates, first=first)
    return [own, *_echoed(targets, record.echoes, earlier)]


def _echoed(targets: Sequence[Target], echoes: Sequence[Echo], earlier: Mapping[int, StepRecord]) -> Iterator[Addend]:
    """What is applied of earlier steps, in order; those of consecutive steps are drawn together."""
    together: list[list[Echo]] = []
    for echo in echoes:
        record, before = earlier[echo.step], earlier[together[-1][-1].step] if together else None
        if (
            before is not None
            and (record.step, record.seed) == (before.step + 1, before.seed)
            and len(record.coefficients) == len(before.coefficients)
        ):
            together[-1].append(echo)
        else:
            together.append([echo])
    for some in together:
        drawn = directions_of(targets, earlier[some[0].step], num_steps=len(some))
        for number, echo in enumerate(some):
            coefficients = earlier[echo.step].coefficients
            first = number * len(coefficients)
            yield Addend(directions=drawn, coefficients=coefficients, rates=echo.rates, first=first)


def echo_of(targets: Sequence[Target], record: StepRecord, rates: tuple[float, ...]) -> Addend:
    """A recorded step's own directions and coefficients at other rates."""
    return Addend(directions=directions_of(targets, record), coefficients=record.coefficients, rates=rates)


def directions_of(targets: Sequence[Target], record: StepRecord, *, num_steps: int = 1) -> Directions:
    """What a recorded step was measured along, and the steps behind it of as many directions."""
    stream = SignStream(seed=record.seed, step=record.step)
    return Directions(targets, stream, len(record.coefficients), num_steps=num_steps)


def _take_through(
    target: Target, run: Sequence[StepRecord], changes: Sequence[Sequence[Addend]], directions: Directions, meter: Meter
) -> int:
    """Takes a target through a run; returns how many weights were written, each as often as it was."""
    if not isinstance(target.parameter, QuantizedTensor):
        _update_target(target, run, changes, directions, meter)
        return len(run) * target.parameter.numel()
    merges = 0
    for record, addends in zip(run, changes, strict=True):
        terms = [addend.term(target) for addend in addends]
        stream = SignStream(seed=record.seed, step=record.step)
        words = hold_back(target.parameter, target, record.decays[target.group], terms, stream)
        meter.random_words += words
        merges += words > 0
    return merges * target.parameter.numel()


def _update_target(
    target: Target, run: Sequence[StepRecord], changes: Sequence[Sequence[Addend]], directions: Directions, meter: Meter
) -> None:
    """Takes a target through a run, the own directions of which are drawn together."""
    steps = [
        (record, [addend.term(target) for addend in addends]) for record, addends in zip(run, changes, strict=True)
    ]
    momentum = Momentum(target, steps[0][1][0], meter) if target.beta else None
    weight = target.parameter.detach().reshape(target.rows, -1)
    widest = max(len(run) * directions.count, *(len(term.coefficients) for _, terms in steps for term in terms))
    rows_at_once = max(1, _ELEMENTS_AT_ONCE // max(weight.shape[1], widest))
    for first in range(0, target.rows, rows_at_once):
        rows = weight[first : first + rows_at_once]
        dtype = steps[0][1][0].coefficients.dtype
        drawn = directions.factors(target, dtype, first_row=first, num_rows=len(rows))
        for record, (own, *echoes) in steps:
            stream = SignStream(seed=record.seed, step=record.step)
            exact = rows if rows.dtype == dtype else rows.to(dtype)
            if (decay := record.decays[target.group]) != 1.0:
                exact.mul_(decay)
            factors = Factors(drawn.left[own.of], None if drawn.right is None else drawn.right[own.of])
            if momentum is None:
                subtract_(exact, factors, own.coefficients, own.rate)
            else:
                rate = record.rates[target.group]
                momentum.subtract_(exact, factors, own, first=first, stream=stream, scale=record.scale, rate=rate)
            for term in echoes:
                factors = term.factors(target, first_row=first, num_rows=len(rows))
                subtract_(exact, factors, term.coefficients, term.rate)
            if exact is not rows:
                meter.random_words += round_stochastically(rows, exact, stream, target, first * weight.shape[1])
    if not target.parameter.is_contiguous():
        target.parameter.copy_(weight.view_as(target.parameter))


def quantize_coefficients(slopes: Float[Tensor, "K"]) -> tuple[Int[Tensor, "K"], float]:
    """Integers of at most 12 bits and the float32 unit they are counted in: `slopes` is about `integers * unit`."""
    unit = float((slopes.abs().max() / COEFFICIENT_LIMIT).to(torch.float32))
    if unit == 0.0:
        return torch.zeros_like(slopes, dtype=torch.int64), 0.0
    integers = (slopes / unit).round().clamp_(-COEFFICIENT_LIMIT, COEFFICIENT_LIMIT)
    return integers.to(torch.int64), unit
