"""Broyden's method.

Legend of shapes: N samples, F numbers of a state, M remembered updates.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from featherlight.solvers.fixed_point.loop import check_limits, iterate
from featherlight.solvers.fixed_point.outcome import FixedPoint


@dataclass(frozen=True, kw_only=True)
class Broyden:
    """Newton's method on f(x) - x with an inverse Jacobian built from the steps taken: for maps that do not contract.

    Each sample has its own Jacobian. There is no line search; a run starts again from plain steps once `memory` is full.

    Args:
        memory: M, updates of the inverse Jacobian that are kept; they cost 2 M F numbers a sample.
        max_steps: evaluations of the map.
        tolerance: of |f(x) - x| / |f(x)|; None is 1e-12 in float64, 1e-5 in float32, 1e-2 in half precision.
        check_every: the residual is looked at in every so-many-th step; None is the first, then as far apart as the square
            root of the steps.

    Source: Broyden 1965, the first ("good") method, by the Sherman-Morrison formula as in Bai, Kolter, Koltun 2019.
    """

    memory: int = 30
    max_steps: int = 500
    tolerance: float | None = None
    check_every: int | None = None

    def __post_init__(self) -> None:
        check_limits(self.max_steps, self.tolerance, self.check_every)
        if self.memory < 1:
            raise ValueError(f"`memory` must be at least 1 (Picard() remembers nothing); got {self.memory}.")

    def __call__(self, f: Callable[[Tensor], Tensor], start: Tensor) -> FixedPoint:
        """Searches from `start`, (N, ...)."""
        return iterate(
            f,
            start,
            _InverseJacobian(self.memory),
            max_steps=self.max_steps,
            tolerance=self.tolerance,
            check_every=self.check_every,
        )


class _InverseJacobian:
    """-I + left right^T, an estimate of the inverse of the Jacobian of f(x) - x."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.count = 0
        self.before: tuple[Tensor, Tensor] | None = None
        self.left_NMF = self.right_NMF = torch.empty(0)

    def next(self, x_NF: Tensor, fx_NF: Tensor) -> Tensor:
        residual_NF = fx_NF - x_NF
        before, self.before = self.before, (x_NF, residual_NF)
        if before is None:
            room = (len(x_NF), self.memory, x_NF.shape[1])
            self.left_NMF, self.right_NMF = x_NF.new_zeros(room), x_NF.new_zeros(room)
            return fx_NF
        self._learn(x_NF - before[0], residual_NF - before[1])
        return x_NF - self._times(residual_NF)

    def _learn(self, moved_NF: Tensor, changed_NF: Tensor) -> None:
        if self.count == self.memory:
            self.count = 0
        right_NF = self._transposed_times(moved_NF)
        scale_N = torch.linalg.vecdot(right_NF, changed_NF)
        tiny = torch.finfo(scale_N.dtype).tiny
        scale_N = torch.where(scale_N.abs() > tiny, scale_N, torch.full_like(scale_N, float("inf")))
        left_NF = (moved_NF - self._times(changed_NF)) / scale_N[:, None]
        self.left_NMF[:, self.count], self.right_NMF[:, self.count] = left_NF, right_NF
        self.count += 1

    def _times(self, v_NF: Tensor) -> Tensor:
        return _low_rank(self.left_NMF[:, : self.count], self.right_NMF[:, : self.count], v_NF) - v_NF

    def _transposed_times(self, v_NF: Tensor) -> Tensor:
        return _low_rank(self.right_NMF[:, : self.count], self.left_NMF[:, : self.count], v_NF) - v_NF


def _low_rank(left_NMF: Tensor, right_NMF: Tensor, v_NF: Tensor) -> Tensor:
    """left^T right v for each sample."""
    return ((v_NF[:, None] @ right_NMF.mT) @ left_NMF)[:, 0]
