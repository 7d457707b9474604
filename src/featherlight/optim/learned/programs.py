"""The program of a step: closed forms where there is no constraint and no penalty, elsewhere the kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from featherlight.optim.learned.inverses import DiagonalInverse, Inverse, KroneckerInverse, MirrorInverse
from featherlight.optim.learned.protocols import Tensors, Terms
from featherlight.optim.learned.sets import L1Penalty, PointIn, StepIn
from featherlight.solvers.convex import Constraint, DiagonalMetric, L1Prox, solve_convex_step

SOLVED = 0
"""Status of a closed form."""


def solve_steps(
    terms: Terms,
    inverses: Sequence[Inverse | MirrorInverse],
    points: Tensors,
    constraint: PointIn | StepIn | None,
    prox: L1Penalty | None,
) -> tuple[Tensors, Tensor]:
    """`argmin_d m'd + |d - drift|^2_M / 2 + r(x + d)` under the constraint, and the worst status of each tensor, (tensors).

    Args:
        terms: m and the drift.
        inverses: of M, one for each tensor.
        points: x.
        constraint: of x + d or d.
        prox: r.
    """
    drifts: Sequence[Tensor | None] = terms.drift if terms.drift is not None else [None] * len(points)
    penalty = prox.prox() if prox is not None else None
    if isinstance(constraint, StepIn) and constraint.jointly:
        return _jointly(terms.linear, drifts, inverses, points, constraint.of(0), penalty)
    found = []
    for number, (linear, drift, inverse, point) in enumerate(zip(terms.linear, drifts, inverses, points, strict=True)):
        own = constraint.of(number) if constraint is not None else None
        rows = constraint is not None and constraint.rows
        on_step = isinstance(constraint, StepIn)
        found.append(_solve(linear, drift, inverse, point, own, penalty, rows=rows, on_step=on_step))
    return tuple(step for step, _ in found), torch.stack([status for _, status in found])


def _solve(
    linear: Tensor,
    drift: Tensor | None,
    inverse: Inverse | MirrorInverse,
    point: Tensor,
    constraint: Constraint | None,
    prox: L1Prox | None,
    *,
    rows: bool,
    on_step: bool,
) -> tuple[Tensor, Tensor]:
    if isinstance(inverse, MirrorInverse):
        vectors = _vectors(linear, rows), _vectors(point.to(linear), rows)
        solved = solve_convex_step(vectors[0], inverse.mirror(), point_BN=vectors[1], constraint=constraint)
        return solved.step_BN.reshape(linear.shape), solved.status_B.max()
    if constraint is None and prox is None:
        step = -inverse.times(linear)
        return step if drift is None else step + drift, torch.zeros((), dtype=torch.int8, device=step.device)
    if rows and not isinstance(inverse, DiagonalInverse):
        raise ValueError(
            "`rows` of a constraint need step sizes (ScalarSteps, DiagonalSteps, AdaptiveSteps), no matrices."
        )
    metric = inverse.metric(linear.shape)
    if rows:
        metric = DiagonalMetric(_vectors(inverse.metric(linear.shape).diagonal_N.reshape(linear.shape), True))  # pyright: ignore
    shape = (1, linear.shape[0], -1) if isinstance(inverse, KroneckerInverse) else None
    laid = [_vectors(one, rows) if shape is None else one.reshape(shape) for one in (linear, point.to(linear))]
    gradient = laid[0]
    if drift is not None:
        gradient = gradient - metric.apply(_vectors(drift, rows) if shape is None else drift.reshape(shape))
    solved = solve_convex_step(
        gradient, metric, point_BN=None if on_step else laid[1], constraint=constraint, prox=prox
    )
    return solved.step_BN.reshape(linear.shape), solved.status_B.max()


def _jointly(
    linear: Tensors,
    drifts: Sequence[Tensor | None],
    inverses: Sequence[Inverse | MirrorInverse],
    points: Tensors,
    constraint: Constraint | None,
    prox: L1Prox | None,
) -> tuple[Tensors, Tensor]:
    """With all tensors in a row."""
    if not all(isinstance(one, DiagonalInverse) for one in inverses):
        raise ValueError("`jointly` needs step sizes (ScalarSteps, DiagonalSteps, AdaptiveSteps), no matrices.")
    flat = torch.cat([one.reshape(-1) for one in linear])
    sizes = [
        one.diagonal.expand(p.shape).reshape(-1)
        for one, p in zip(inverses, points, strict=True)
        if isinstance(one, DiagonalInverse)
    ]
    drift = None if drifts[0] is None else torch.cat([one.reshape(-1) for one in drifts if one is not None])
    step, status = _solve(
        flat,
        drift,
        DiagonalInverse(torch.cat(sizes)),
        torch.cat([p.reshape(-1) for p in points]),
        constraint,
        prox,
        rows=False,
        on_step=True,
    )
    parts = step.split([p.numel() for p in points])
    return tuple(part.reshape(p.shape) for part, p in zip(parts, points, strict=True)), status.expand(len(points))


def _vectors(tensor: Tensor, rows: bool) -> Tensor:
    return tensor if rows else tensor.reshape(1, -1)
