"""Steps to points that fulfil linear equations: one small system of multipliers.

Legend of shapes: B batch axes, N coordinates, M equations.
"""

import torch
from torch import Tensor

from featherlight.solvers.convex.constraints import AffineEquality
from featherlight.solvers.convex.linear import product, solve_free
from featherlight.solvers.convex.metrics import KroneckerMetric, Metric
from featherlight.solvers.convex.outcome import ConvexSolution
from featherlight.solvers.convex.program import Program, none_of


def solve_affine(program: Program, equality: AffineEquality) -> ConvexSolution:
    """The steps to points with A (x + d) = b.

    Equations that follow from others are found among the eigenvectors of A H^-1 A' and left out; if they contradict the
    others the element is infeasible.
    """
    a_MN, b_M = program.numbers(equality.matrix_MN), program.numbers(equality.vector_M)
    finite = a_MN.isfinite().flatten(-2).all(-1) & b_M.isfinite().all(-1)
    program = program.excluding(finite, torch.ones_like(finite))
    usable = program.usable_B
    shape = (*program.batch, *a_MN.shape[-2:])
    a_MN = torch.where(usable[..., None, None], a_MN.expand(shape), 0)
    b_M = torch.where(usable[..., None], b_M.expand(shape[:-1]), 0)
    gradient, point = _flat(program.gradient_BN, program.metric), _flat(program.point_BN, program.metric)
    across_NM = _columns(program.metric, a_MN.mT)
    plain = _columns(program.metric, gradient[..., None])[..., 0]
    basis_MM, kept_M = _basis(product(a_MN, across_NM).detach())
    rows_MN = product(basis_MM.mT, a_MN)
    system_MM = product(product(rows_MN, across_NM), basis_MM)
    gap_M = (rows_MN * (point - plain)[..., None, :]).sum(-1) - (basis_MM * b_M[..., :, None]).sum(-2)
    multiplier_M = solve_free(0.5 * (system_MM + system_MM.mT), gap_M[..., None], kept_M)
    step = -plain - product(across_NM, product(basis_MM, multiplier_M))[..., 0]
    with torch.no_grad():
        off, residual = _off(a_MN, b_M, point, step)
    program = program.excluding(torch.ones_like(usable), ~off)
    step = step.reshape(program.gradient_BN.shape)
    return program.solution(step, degenerate_B=~kept_M.all(-1), residual_B=residual)


def _off(a_MN: Tensor, b_M: Tensor, point: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Whether the equations are not fulfilled, and the largest relative error."""
    products = a_MN * (point + step)[..., None, :]
    size = (products.abs().sum(-1) + b_M.abs() + (a_MN * point[..., None, :]).abs().sum(-1)).amax(-1)
    error = (products.sum(-1) - b_M).abs().amax(-1) / size.clamp(min=torch.finfo(size.dtype).tiny)
    return error > 1e3 * none_of(size.dtype), error


def _basis(system_MM: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors, and which of them are not lost in rounding."""
    value_M, basis_MM = torch.linalg.eigh(0.5 * (system_MM + system_MM.mT))
    floor = none_of(value_M.dtype) * value_M.amax(-1, keepdim=True)
    return basis_MM, value_M > floor


def _flat(x: Tensor, metric: Metric) -> Tensor:
    return x.flatten(-2) if isinstance(metric, KroneckerMetric) else x


def _columns(metric: Metric, x_NK: Tensor) -> Tensor:
    """H^-1 of each column."""
    if not isinstance(metric, KroneckerMetric):
        return metric.solve_columns(x_NK)
    columns = x_NK.mT.unflatten(-1, tuple(metric.event_shape))
    left, right = (each[..., None, :, :] for each in metric.tensors)
    return KroneckerMetric(left, right).solve(columns).flatten(-2).mT
