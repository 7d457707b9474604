"""Diagonal metrics with bounds and an L1 term: each coordinate is on its own, and its step is a formula.

Legend of shapes: B batch axes, N coordinates.
"""

import torch
from torch import Tensor

from featherlight.solvers.convex.metrics import DiagonalMetric
from featherlight.solvers.convex.outcome import ConvexSolution
from featherlight.solvers.convex.pieces import Limits
from featherlight.solvers.convex.program import Program, none_of


def solve_separable(program: Program, limits: Limits) -> ConvexSolution:
    """The steps: shrunk towards 0 by the L1 term, then cut at the bounds, at which coordinates count as held."""
    m, x, metric = program.gradient_BN, program.point_BN, program.metric
    assert isinstance(metric, DiagonalMetric)
    step = -metric.solve(m)
    touching = torch.zeros_like(step, dtype=torch.bool)
    if limits.strength is not None:
        shrink, reached = metric.solve(limits.strength.expand_as(m)), (x + step).detach()
        size = reached.abs()
        touching = _near(size, shrink) & (shrink > 0)
        step = torch.where(size <= shrink, -x, step - reached.sign() * shrink)
    for bound, above in ((limits.lower - x, False), (limits.upper - x, True)):
        touching = touching | (_near(step, bound) & bound.isfinite())
        step = torch.where(step >= bound if above else step <= bound, bound, step)
    return program.solution(step, degenerate_B=touching.any(-1))


@torch.no_grad()
def _near(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs() <= none_of(a.dtype) * (a.abs() + b.abs())
