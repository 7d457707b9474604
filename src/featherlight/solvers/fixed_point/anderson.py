"""Anderson's acceleration.

Legend of shapes: N samples, F numbers of a state, M remembered steps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from featherlight.solvers.fixed_point.loop import check_limits, iterate
from featherlight.solvers.fixed_point.outcome import FixedPoint


@dataclass(frozen=True, kw_only=True)
class Anderson:
    """The map's value at the affine mixture of the last points whose residual would be least if the map were affine.

    Each sample has its own mixture. A sample whose residual has grown takes a plain step and goes on from there.

    Args:
        memory: M, steps that are mixed besides the last one; it costs 2 M F numbers a sample.
        plain_steps: Picard's steps before the first mixture, which are all that a map that contracts fast needs.
        max_steps: evaluations of the map.
        tolerance: of |f(x) - x| / |f(x)|; None is 1e-12 in float64, 1e-5 in float32, 1e-2 in half precision.
        ridge: is added to the diagonal of the normal equations, relative to their mean diagonal; None is 10 eps.
        check_every: the residual is looked at in every so-many-th step; None is the first, then as far apart as the square
            root of the steps.

    Source: Anderson 1965; Walker and Ni 2011, "Anderson acceleration for fixed-point iterations", the form with
    differences, and its delayed start. The plain step after growth is ours.
    """

    memory: int = 3
    plain_steps: int = 0
    max_steps: int = 500
    tolerance: float | None = None
    ridge: float | None = None
    check_every: int | None = None

    def __post_init__(self) -> None:
        check_limits(self.max_steps, self.tolerance, self.check_every)
        if self.memory < 1:
            raise ValueError(f"`memory` must be at least 1 (Picard() remembers nothing); got {self.memory}.")
        if self.plain_steps < 0:
            raise ValueError(f"`plain_steps` must be at least 0; got {self.plain_steps}.")
        if self.ridge is not None and not 0 <= self.ridge < 1:
            raise ValueError(f"`ridge` must be in [0, 1), relative to the normal equations; got {self.ridge}.")

    def __call__(self, f: Callable[[Tensor], Tensor], start: Tensor) -> FixedPoint:
        """Searches from `start`, (N, ...)."""
        ridge = 10 * torch.finfo(start.dtype).eps if self.ridge is None else self.ridge
        return iterate(
            f,
            start,
            _Mixture(self.memory, ridge, self.plain_steps),
            max_steps=self.max_steps,
            tolerance=self.tolerance,
            check_every=self.check_every,
        )


class _Mixture:
    """Differences of residuals and of values from step to step, the oldest overwritten, and products of the former."""

    def __init__(self, memory: int, ridge: float, plain_steps: int) -> None:
        self.memory = memory
        self.ridge = ridge
        self.plain = plain_steps
        self.count = 0
        self.before: tuple[Tensor, Tensor, Tensor] | None = None
        self.residuals_NMF = self.values_NMF = self.products_NMM = torch.empty(0)

    def next(self, x_NF: Tensor, fx_NF: Tensor) -> Tensor:
        if self.plain > 0:
            self.plain -= 1
            return fx_NF
        residual_NF = fx_NF - x_NF
        square_N = torch.linalg.vecdot(residual_NF, residual_NF)
        before, self.before = self.before, (residual_NF, fx_NF, square_N)
        if before is None:
            self._make_room(x_NF)
            return fx_NF
        slot = self.count % self.memory
        self.count += 1
        change_NF = residual_NF - before[0]
        self.residuals_NMF[:, slot] = change_NF
        torch.sub(fx_NF, before[1], out=self.values_NMF[:, slot])
        used = min(self.count, self.memory)
        changes_NMF = self.residuals_NMF[:, :used]
        row_NM = torch.linalg.vecdot(changes_NMF, change_NF[:, None])
        self.products_NMM[:, slot, :used] = row_NM
        self.products_NMM[:, :used, slot] = row_NM
        right_NM = torch.linalg.vecdot(changes_NMF, residual_NF[:, None])
        shares_NM = _solve(self.products_NMM[:, :used, :used], right_NM, self.ridge)
        shares_NM = torch.where((square_N <= before[2])[:, None], shares_NM, torch.zeros_like(shares_NM))
        return fx_NF - (shares_NM[..., None] * self.values_NMF[:, :used]).sum(1)

    def _make_room(self, x_NF: Tensor) -> None:
        count, size = x_NF.shape
        self.residuals_NMF = x_NF.new_zeros(count, self.memory, size)
        self.values_NMF = torch.zeros_like(self.residuals_NMF)
        self.products_NMM = x_NF.new_zeros(count, self.memory, self.memory)


def _solve(matrix_NMM: Tensor, right_NM: Tensor, ridge: float) -> Tensor:
    """Small systems, all samples at once; what is singular is held by the ridge."""
    diagonal_NM = matrix_NMM.diagonal(dim1=1, dim2=2)
    floor = torch.finfo(right_NM.dtype).tiny
    if right_NM.shape[1] == 1:
        return right_NM / (diagonal_NM * (1 + ridge) + floor)
    held_NMM = matrix_NMM.clone()
    held_NMM.diagonal(dim1=1, dim2=2).add_(diagonal_NM.mean(1, keepdim=True), alpha=ridge).add_(floor)
    return torch.linalg.solve_ex(held_NMM, right_NM).result
