"""The one call: gradients and a metric in, the steps of small convex programs out.

Legend of shapes: B batch axes (any number, also none; they broadcast), N coordinates of an element.
"""

import torch
from torch import Tensor

from featherlight.solvers.convex.active_set import solve_pieces
from featherlight.solvers.convex.affine import solve_affine
from featherlight.solvers.convex.ball import solve_l2_ball
from featherlight.solvers.convex.box import solve_box
from featherlight.solvers.convex.constraints import (
    AffineEquality,
    Box,
    Constraint,
    EntropyMirror,
    L1Ball,
    L1Prox,
    L2Ball,
    LinfBall,
    Simplex,
)
from featherlight.solvers.convex.metrics import DiagonalMetric, FullMetric, KroneckerMetric, Metric
from featherlight.solvers.convex.mirror import solve_mirror
from featherlight.solvers.convex.outcome import ConvexSolution
from featherlight.solvers.convex.pieces import make_limits, make_pieces
from featherlight.solvers.convex.program import Program, begin, check_shapes
from featherlight.solvers.convex.separable import solve_separable
from featherlight.solvers.simplex_qp import compiled


def solve_convex_step(
    gradient_BN: Tensor,
    metric: Metric | EntropyMirror,
    *,
    point_BN: Tensor | None = None,
    constraint: Constraint | None = None,
    prox: L1Prox | None = None,
    max_steps: int = 1000,
) -> ConvexSolution:
    """The steps d = argmin m'd + 1/2 d'H d + r(x + d) subject to x + d in X, one for each element of a batch.

    Differentiable any number of times in gradient, metric, point and the numbers of constraint and prox, by the conditions of
    optimality (of an active L2Ball twice); no graph of the search is kept. Elements are apart from each other: none changes
    the bits of another. Equations of dense metrics are solved in float64 whatever the dtype given. Works under
    torch.func.vmap; under torch.compile the search is a graph break.

    Args:
        gradient_BN: m, (B, N); (B, P, Q) with a KroneckerMetric.
        metric: H. With EntropyMirror the step is that of exponentiated gradient.
        point_BN: x; None is 0, so that the constraint is one on the step itself.
        constraint: X; None is everywhere. Every one goes with Diagonal-, LowRank- and FullMetric; a KroneckerMetric takes
            L2Ball and AffineEquality.
        prox: r; alone, or with Box, LinfBall, L1Ball or Simplex.
        max_steps: most pivots of the active-set search.

    Returns:
        Steps, with a status and a residual for each element. What has no solution has a status that says why, step 0 and
        gradients 0; degenerate elements have one-sided derivatives.

    Raises:
        ValueError: shapes do not fit, or metric, constraint and prox are no pair that is covered.

    Cost: FullMetric: one factorization, O(N^3), a pivot, of which there are usually 3 to 8, and one more for derivatives.

    Source: Gautam, Pfrommer, Sojoudi 2023, arXiv 2303.16952, the update as a convex program.
    """
    if isinstance(metric, EntropyMirror):
        return _mirrored(gradient_BN, metric, point_BN, constraint, prox)
    _check_pair(metric, constraint, prox, max_steps)
    check_shapes(gradient_BN, metric, point_BN)
    if (
        isinstance(metric, FullMetric)
        and isinstance(constraint, Box | LinfBall | None)
        and prox is None
        and compiled.use_kernels(gradient_BN)
    ):
        return solve_box(gradient_BN, metric, point_BN, constraint, max_steps)
    is_affine = isinstance(constraint, AffineEquality)
    program = begin(gradient_BN, metric, point_BN, *_batches(constraint, prox), wide=is_affine)
    if constraint is None and prox is None:
        return _free(program)
    if isinstance(constraint, AffineEquality):
        _check_equations(program, constraint)
        return solve_affine(program, constraint)
    if isinstance(constraint, L2Ball):
        return solve_l2_ball(program, constraint)
    if isinstance(metric, DiagonalMetric) and isinstance(constraint, Box | LinfBall | None):
        return solve_separable(*make_limits(program, constraint, prox))
    return solve_pieces(*make_pieces(program, constraint, prox), max_steps)


def _free(program: Program) -> ConvexSolution:
    """Without constraint or prox: -H^-1 m."""
    return program.solution(-program.metric.solve(program.gradient_BN))


def _mirrored(
    gradient: Tensor,
    mirror: EntropyMirror,
    point: Tensor | None,
    constraint: Constraint | None,
    prox: L1Prox | None,
) -> ConvexSolution:
    if point is None:
        raise ValueError("EntropyMirror measures from a positive point: give `point_BN`.")
    if prox is not None or not (constraint is None or isinstance(constraint, Simplex)):
        raise ValueError(
            f"EntropyMirror goes with Simplex or no constraint, and no prox; got {type(constraint or prox).__name__}. "
            "Take a DiagonalMetric for others."
        )
    return solve_mirror(gradient, mirror, point, constraint)


def _check_pair(metric: Metric, constraint: Constraint | None, prox: L1Prox | None, max_steps: int) -> None:
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1; got {max_steps}.")
    if isinstance(metric, KroneckerMetric) and (
        prox is not None or not (constraint is None or isinstance(constraint, L2Ball | AffineEquality))
    ):
        name = type(constraint).__name__ if constraint is not None else "L1Prox"
        raise ValueError(
            f"a KroneckerMetric goes with L2Ball, AffineEquality or no constraint, and no prox; got {name}. Flatten the "
            "matrices and take `metric.as_full()`, whose memory is (P Q)^2, or a DiagonalMetric."
        )
    if prox is not None and isinstance(constraint, L2Ball | AffineEquality):
        raise ValueError(
            f"L1Prox goes alone or with Box, LinfBall, L1Ball or Simplex; got {type(constraint).__name__}, with which no "
            "kernel is at hand. Leave one of them out, or use cvxpylayers."
        )


def _check_equations(program: Program, equality: AffineEquality) -> None:
    size = program.metric.event_shape.numel()
    if equality.matrix_MN.shape[-1] != size:
        raise ValueError(
            f"the equations are of {equality.matrix_MN.shape[-1]} coordinates and the steps have {size}: "
            f"`matrix_MN` has shape {tuple(equality.matrix_MN.shape)}."
        )


def _batches(constraint: Constraint | None, prox: L1Prox | None) -> list[torch.Size]:
    """Shapes of the batch axes of both parts."""
    found = []
    if isinstance(constraint, Box):
        found += [each.shape[:-1] for each in (constraint.lower, constraint.upper) if isinstance(each, Tensor)]
    elif isinstance(constraint, LinfBall | L2Ball | L1Ball | Simplex) and isinstance(constraint.radius, Tensor):
        found.append(constraint.radius.shape)
    elif isinstance(constraint, AffineEquality):
        found += [constraint.matrix_MN.shape[:-2], constraint.vector_M.shape[:-1]]
    if prox is not None and isinstance(prox.strength, Tensor):
        found.append(prox.strength.shape[:-1])
    return found
