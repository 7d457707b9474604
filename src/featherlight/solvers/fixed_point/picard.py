"""Picard's iteration."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from featherlight.solvers.fixed_point.loop import check_limits, iterate
from featherlight.solvers.fixed_point.outcome import FixedPoint


@dataclass(frozen=True, kw_only=True)
class Picard:
    """x <- f(x), or a mean of both: the least work a step, and sure for a contraction.

    Args:
        max_steps: evaluations of the map.
        tolerance: of |f(x) - x| / |f(x)|; None is 1e-12 in float64, 1e-5 in float32, 1e-2 in half precision.
        damping: share of f(x) in the next point, in (0, 1].
        check_every: the residual is looked at in every so-many-th step; None is the first, then as far apart as the square
            root of the steps.
    """

    max_steps: int = 1000
    tolerance: float | None = None
    damping: float = 1.0
    check_every: int | None = None

    def __post_init__(self) -> None:
        check_limits(self.max_steps, self.tolerance, self.check_every)
        if not 0 < self.damping <= 1:
            raise ValueError(f"`damping` must be in (0, 1], the share of f(x) in the next point; got {self.damping}.")

    def __call__(self, f: Callable[[Tensor], Tensor], start: Tensor) -> FixedPoint:
        """Searches from `start`, (N, ...)."""
        return iterate(
            f,
            start,
            _Mean(self.damping),
            max_steps=self.max_steps,
            tolerance=self.tolerance,
            check_every=self.check_every,
        )


class _Mean:
    def __init__(self, damping: float) -> None:
        self.damping = damping

    def next(self, x_NF: Tensor, fx_NF: Tensor) -> Tensor:
        return fx_NF if self.damping == 1 else torch.lerp(x_NF, fx_NF, self.damping)
