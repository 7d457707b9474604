"""What a fixed-point solver is, and what it returns: a value for each sample with a status and a residual.

Legend of shapes: N samples, ... a state of any shape.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

_NAMED = 5


class Status(IntEnum):
    """How the search for one sample's fixed point ended."""

    CONVERGED = 0
    """The residual is at most the tolerance."""
    STEPS_EXHAUSTED = 1
    """It was not after `max_steps` evaluations of the map."""
    DIVERGED = 2
    """Values beyond the dtype after a finite first step."""
    BROKEN_INPUT = 3
    """The first evaluation of the map was not finite already."""


class FixedPointError(ValueError):
    """A fixed point was asked for and not found; `outcome` is what there is."""

    def __init__(self, sentence: str, outcome: "FixedPoint") -> None:
        super().__init__(sentence)
        self.outcome = outcome


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """The outcome of a solver.

    Attributes:
        value: (N, ...), the last evaluation of the map; of a sample that is not converged, what it had come to.
        residual: (N,), |f(x) - x| / |f(x)| in the Euclidean norm at the x that `value` is the map of.
        status: (N,), int8 numbers of Status.
        steps: (N,), int32 evaluations of the map until a sample was done.
        tolerance: what the residual was compared with.
        max_steps: evaluations that were allowed.
    """

    value: Tensor
    residual: Tensor
    status: Tensor
    steps: Tensor
    tolerance: float
    max_steps: int

    @property
    def converged(self) -> Tensor:
        """(N,), bool."""
        return self.status == Status.CONVERGED

    def unwrap(self) -> Tensor:
        """The value, if every sample converged.

        Raises:
            FixedPointError: names the samples that did not, how far they are off, and what to do.
        """
        failed = torch.nonzero(self.status)[:, 0]
        if len(failed) == 0:
            return self.value
        parts = [self._sentence(status, failed) for status in list(Status)[1:]]
        raise FixedPointError(" ".join(part for part in parts if part), self)

    def _sentence(self, status: Status, failed: Tensor) -> str:
        those = [int(sample) for sample in failed if self.status[sample] == status]
        if not those:
            return ""
        shown = ", ".join(map(str, those[:_NAMED])) + (", ..." if len(those) > _NAMED else "")
        which = f"sample{'s' * (len(those) > 1)} {shown} ({len(those)} of {len(self.status)})"
        if status == Status.BROKEN_INPUT:
            return (
                f"the map gives nan or inf at its first evaluation for {which}: look for them in the inputs, the start and "
                "the weights; other samples are not affected."
            )
        if status == Status.DIVERGED:
            return (
                f"the iteration left the range of {self.value.dtype} for {which}: the map does not contract there. Bound its "
                "weights (a well-posedness map), or damp the solver."
            )
        worst = float(self.residual[those].max())
        return (
            f"fixed point not reached for {which}: residual {worst:.1e} after {self.max_steps} steps, wanted "
            f"{self.tolerance:.1e}. The map may not contract, `max_steps` may be too small, or `tolerance` below what "
            f"{self.value.dtype} can reach."
        )


class FixedPointSolver(Protocol):
    """Finds x = f(x) for each sample of a batch; a frozen part that keeps nothing between calls."""

    def __call__(self, f: Callable[[Tensor], Tensor], start: Tensor, /) -> FixedPoint:
        """Searches from `start`, (N, ...); `f` maps each sample on its own, without a graph and autocast."""
        ...
