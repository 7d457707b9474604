"""What a convex step returns: a step for each element of a batch, with a status and a residual.

Legend of shapes: B any number of batch axes, N coordinates of an element (a matrix where the metric is one of matrices).
"""

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

_NAMED = 5


class ConvexStatus(IntEnum):
    """How the program of one element ended."""

    SOLVED = 0
    """The step is the minimum, to rounding."""
    DEGENERATE = 1
    """The step is the minimum, but its derivative has a jump there, or a constraint repeats another; gradients are those of
    one side, that on which the coordinate stays at its bound, or the point inside its ball."""
    INFEASIBLE = 2
    """No point fulfils the constraint; step and gradients are 0."""
    INDEFINITE = 3
    """The metric is not positive definite; step and gradients are 0."""
    NOT_FINITE = 4
    """Gradient, metric, point or constraint hold nan, or inf where that has no meaning; step and gradients are 0."""
    NOT_CONVERGED = 5
    """The active set was not found within the steps allowed; step and gradients are 0."""


_SENTENCES = {
    ConvexStatus.INFEASIBLE: "no point fulfils the constraint of {}: a lower bound above its upper bound, a negative "
    "radius, equations that contradict each other, or a point outside of a mirror's domain. Change the constraint.",
    ConvexStatus.INDEFINITE: "the metric of {} is not positive definite, so the program is not convex. Add a multiple of "
    "the identity to it, or learn its Cholesky factor instead.",
    ConvexStatus.NOT_FINITE: "the program of {} holds nan or inf: look for them in the gradient, the metric, the point and "
    "the constraint.",
    ConvexStatus.NOT_CONVERGED: "the active set of {} was not found: the metric is too badly conditioned for the dtype, or "
    "`max_steps` is too small.",
}


class ConvexError(ValueError):
    """Steps were asked for and some program has none; `outcome` is what there is."""

    def __init__(self, sentence: str, outcome: "ConvexSolution") -> None:
        super().__init__(sentence)
        self.outcome = outcome


class ConvexSolution(NamedTuple):
    """The outcome of `solve_convex_step`.

    Attributes:
        step_BN: d, differentiable in all tensors of the program; 0 for elements with a status above DEGENERATE.
        status_B: int8 numbers of ConvexStatus.
        residual_B: largest violation of the optimality conditions, relative to the terms they compare; 0 where the step
            is given by a formula. Without a graph.
    """

    step_BN: Tensor
    status_B: Tensor
    residual_B: Tensor

    @property
    def solved(self) -> Tensor:
        """(B), bool: the step is the minimum."""
        return self.status_B <= ConvexStatus.DEGENERATE

    def unwrap(self) -> Tensor:
        """The steps, if every program has one; DEGENERATE ones count.

        Raises:
            ConvexError: names the elements that have none, why, and what to do.
        """
        if bool(self.solved.all()):
            return self.step_BN
        parts = [self._sentence(status) for status in _SENTENCES if bool((self.status_B == status).any())]
        raise ConvexError(" ".join(parts), self)

    def _sentence(self, status: ConvexStatus) -> str:
        which = torch.nonzero(self.status_B == status).tolist()
        if self.status_B.ndim == 0:
            return _capital(_SENTENCES[status].format("the one element"))
        names = [str(index[0]) if len(index) == 1 else str(tuple(index)) for index in which]
        shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        return _capital(
            _SENTENCES[status].format(
                f"element{'s' * (len(names) > 1)} {shown} ({len(names)} of {self.status_B.numel()})"
            )
        )


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
