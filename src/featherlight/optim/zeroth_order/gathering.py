"""What processes that measure a step together tell each other: whole numbers and what one of them is worth.

Legend of shapes: K directions of one process, N processes.
Every process knows all directions from the seed, so nothing else has to travel. The directions of a step are cut into N
equal runs, one for each process, which measures its own examples along them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from featherlight.objective import NonFiniteLossError
from featherlight.optim.zeroth_order.guards import to_float32
from featherlight.optim.zeroth_order.update import COEFFICIENT_LIMIT, MAX_DIRECTIONS, StepRecord


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Which run of a step's directions a process measures.

    Args:
        number: of the run, from 0.
        count: N, into how many equal runs the directions are cut.
    """

    number: int = 0
    count: int = 1

    def first(self, each: int) -> int:
        """The number of the run's first direction, where each run has so many."""
        return self.number * each

    def total(self, each: int) -> int:
        """Directions of all runs; raises ValueError if they are more than an exact update can take."""
        if (found := self.count * each) > MAX_DIRECTIONS:
            raise ValueError(
                f"{self.count} processes with {each} directions each make {found}, and the sum of an update is exact up to "
                f"{MAX_DIRECTIONS}. Set fewer directions (`optimizer.directions`), smaller batches, or start fewer processes."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one process measured of a step.

    Attributes:
        coefficients: (K,) int64, each at most 4095 in magnitude.
        scale: what one unit of them is worth as a slope of this process's own loss, float32.
        loss: of this process's examples.
    """

    coefficients: Int[Tensor, "K"]
    scale: float
    loss: float


class Settled(NamedTuple):
    """A step that all processes agree on.

    Attributes:
        record: what it subtracts, the same on all.
        loss: the mean over the processes that took part, ().
    """

    record: StepRecord
    loss: Float[Tensor, ""]


class Gather(Protocol):
    """Brings together what several processes measured. Called between the coefficients and the update."""

    @property
    def slot(self) -> Slot:
        """Which directions of the coming step this process measures."""
        ...

    def settle(self, part: Part, record_of: Callable[[Sequence[Part | None]], StepRecord]) -> Settled:
        """The step, on all processes the same.

        Args:
            part: of this process.
            record_of: from the parts of all slots, in order, to the record; None stands for one that did not arrive.
        """
        ...

    def fail(self, error: NonFiniteLossError) -> None:
        """Ends the step on all processes with an error that this one has."""
        ...


def combine(parts: Sequence[Part | None]) -> tuple[Int[Tensor, "NK"], float]:
    """The coefficients of all directions of a step in one unit, and that unit, float32.

    The slopes are those of the mean loss over the parts that arrived; directions of others count zero. Only float64
    products and float32 roundings of numbers that all processes have, so they come to the same bits everywhere.

    Raises:
        ValueError: parts of different lengths, or none at all.
    """
    found = [part for part in parts if part is not None]
    lengths = [len(part.coefficients) for part in found]
    if not found or len(set(lengths)) > 1:
        raise ValueError(
            f"the processes measured {lengths} directions, and a step needs as many from each. Give all the same batch and "
            "the same number of directions."
        )
    units = [None if part is None else part.scale / len(found) for part in parts]
    unit = to_float32(max(one for one in units if one is not None))
    nothing = torch.zeros(lengths[0], dtype=torch.int64)
    if unit == 0.0:
        return nothing.repeat(len(parts)), 0.0
    shares = [
        nothing if part is None or own is None else _in_unit(part.coefficients, own / unit)
        for part, own in zip(parts, units, strict=True)
    ]
    return torch.cat(shares), unit


def mean_loss(parts: Sequence[Part | None]) -> Float[Tensor, ""]:
    """The mean over the parts that arrived, float64."""
    losses = [part.loss for part in parts if part is not None]
    return torch.tensor(sum(losses) / len(losses), dtype=torch.float64)


def _in_unit(coefficients: Int[Tensor, "K"], factor: float) -> Int[Tensor, "K"]:
    rounded = (coefficients.double() * factor).round()
    return rounded.clamp_(-COEFFICIENT_LIMIT, COEFFICIENT_LIMIT).to(torch.int64)
