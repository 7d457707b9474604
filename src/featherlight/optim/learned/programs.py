"""The program of a step: closed forms where there is no constraint and no penalty, elsewhere the kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from featherlight.optim.learned.inverses import DiagonalInverse, Inverse, KroneckerInverse, MirrorInverse
from featherlight.optim.learned.protocols import Tensors, Terms
from featherlight.optim.learned.sets import L1Penalty, PointIn, StepIn
from featherlight.solvers import project_box
from featherlight.solvers.convex import Box, Constraint, ConvexStatus, DiagonalMetric, L1Prox, solve_convex_step


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
    if isinstance(inverse, DiagonalInverse) and (constraint is None or isinstance(constraint, Box)):
        center = -inverse.times(linear) if drift is None else drift - inverse.times(linear)
        return _entrywise(center, inverse, torch.zeros_like(point) if on_step else point, constraint, prox)
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


def _entrywise(
    center: Tensor, inverse: DiagonalInverse, point: Tensor, box: Box | None, prox: L1Prox | None
) -> tuple[Tensor, Tensor]:
    """Soft thresholds, then the nearest number in the box: where nothing couples the entries, that is the solution.

    `solve_convex_step` has it too, and says besides which entries have a derivative of one side only; a step needs no more than
    the numbers, which come in a fifth of the time.
    """
    moved = point.to(center) + center
    if prox is not None:
        by = inverse.diagonal * torch.as_tensor(prox.strength).to(center)
        moved = moved.sign() * (moved.abs() - by).clamp(min=0)
    status = torch.zeros((), dtype=torch.int8, device=center.device)
    if box is not None:
        low, high = (_shaped(torch.as_tensor(bound).to(center), center.shape) for bound in (box.lower, box.upper))
        moved = project_box(moved, low, high)
        status = torch.where((low > high).any(), int(ConvexStatus.INFEASIBLE), status).to(torch.int8)
    return torch.where(status == ConvexStatus.SOLVED, moved - point.to(center), 0.0), status


def _shaped(bound: Tensor, shape: torch.Size) -> Tensor:
    """Bounds of all entries in order, as the tensor that they are of."""
    return bound.reshape(shape) if bound.numel() == shape.numel() else bound


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
