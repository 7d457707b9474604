"""Steps under piecewise linear constraints: which state each coordinate has at the optimum, then one differentiable formula.

Legend of shapes: B batch axes, N coordinates.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from featherlight.solvers.convex.metrics import KroneckerMetric, VectorMetric
from featherlight.solvers.convex.outcome import ConvexSolution, ConvexStatus
from featherlight.solvers.convex.pieces import Pieces, Shared, at_state, excess
from featherlight.solvers.convex.pivoting import find_states
from featherlight.solvers.convex.program import Program, none_of


def solve_pieces(program: Program, pieces: Pieces, max_steps: int) -> ConvexSolution:
    """The optimal steps, connected to the graph by the optimality conditions at the states that were found."""
    metric = program.metric
    assert not isinstance(metric, KroneckerMetric)
    state, tight, found = _search(program, pieces, max_steps)
    status = torch.where(program.usable_B & ~found, int(ConvexStatus.NOT_CONVERGED), program.status_B)
    program = program._replace(status_B=status.to(torch.int8))
    here = at_state(pieces, state)
    side = -(program.gradient_BN + here.slope_BN + metric.apply(here.base_BN))
    if pieces.shared is None:
        step = here.base_BN + metric.solve_columns(side[..., None], here.free_BN)[..., 0]
        multiplier = torch.zeros_like(side[..., 0])
    else:
        solved = metric.solve_columns(torch.stack((side, here.weight_BN), -1), here.free_BN)
        plain, along = solved[..., 0], solved[..., 1]
        total = (here.weight_BN * (program.point_BN + plain)).sum(-1) - pieces.shared.radius_B
        curvature = (here.weight_BN * along).sum(-1)
        tight = tight & (curvature > 0)
        multiplier = torch.where(tight, total / torch.where(tight, curvature, 1), 0)
        step = here.base_BN + plain - multiplier[..., None] * along
    degenerate, residual = _judge(program, pieces, state, step, multiplier, tight)
    return program.solution(step, degenerate_B=degenerate, residual_B=residual)


@torch.no_grad()
def _judge(
    program: Program, pieces: Pieces, state: Tensor, step: Tensor, multiplier: Tensor, tight: Tensor
) -> tuple[Tensor, Tensor]:
    """Whether a derivative jumps there, and how far the step is from the conditions of optimality."""
    margin = none_of(step.dtype)
    pieces, here = _detached(pieces), at_state(_detached(pieces), state)
    terms = program.gradient_BN, program.metric.apply(step)
    off = excess(pieces, state, here, step, terms, multiplier)
    worst = torch.maximum(off.low_BN, off.high_BN)
    degenerate = (worst > -margin).any(-1)
    residual = torch.maximum(worst.clamp(min=0), off.slack_BN).amax(-1)
    if pieces.shared is None:
        return degenerate, residual
    radius = pieces.shared.radius_B
    total = (here.weight_BN * (program.point_BN + step)).sum(-1)
    over = (total - radius) / (radius + program.point_BN.abs().amax(-1)).clamp(min=torch.finfo(step.dtype).tiny)
    residual = torch.maximum(residual, torch.where(tight, over.abs(), over.clamp(min=0) * (radius > 0)))
    if not pieces.shared.is_equality:
        size = (terms[0].abs() + terms[1].abs()).amax(-1)
        degenerate = degenerate | torch.where(tight, multiplier <= margin * size, over > -margin)
    return degenerate | (radius == 0), residual


def _detached(pieces: Pieces) -> Pieces:
    shared = pieces.shared
    if shared is not None:
        shared = Shared(shared.weights, shared.radius_B.detach(), shared.is_equality)
    return Pieces(pieces.kinks_BNS.detach(), pieces.slopes_BNT.detach(), shared)


@torch.compiler.disable(reason="the number of steps depends on values")
def _search(program: Program, pieces: Pieces, max_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    metric = program.metric
    assert not isinstance(metric, KroneckerMetric)
    radius = program.gradient_BN.new_zeros(program.batch) if pieces.shared is None else pieces.shared.radius_B
    joined = None if pieces.shared is None else (pieces.shared.weights, pieces.shared.is_equality)
    tensors = (program.gradient_BN, program.point_BN, pieces.kinks_BNS, pieces.slopes_BNT, radius)
    tensors = (*tensors, *_expanded(metric, program.batch))
    return _FindStates.apply((type(metric), joined, max_steps), *(tensor.detach() for tensor in tensors))


def _expanded(metric: VectorMetric, batch: torch.Size) -> tuple[Tensor, ...]:
    return tuple(
        tensor.expand(*batch, *tensor.shape[-ndim:])
        for tensor, ndim in zip(metric.tensors, metric.tensor_ndims, strict=True)
    )


class _FindStates(Function):
    """The search looks at values, which vmap allows inside a function with a rule of its own only."""

    @staticmethod
    def forward(rule: tuple[Any, ...], *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        kind, shared, max_steps = rule
        batch = tensors[0].shape[:-1]
        rows = [tensor.flatten(0, len(batch) - 1) if batch else tensor[None] for tensor in tensors]
        gradient, point, kinks, slopes, radius, *own = rows
        joined = None if shared is None else Shared(shared[0], radius, shared[1])
        found = find_states(gradient, kind(*own), point, Pieces(kinks, slopes, joined), max_steps)
        return tuple(each.reshape((*batch, *each.shape[1:])) for each in found)  # type: ignore[return-value]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:  # type: ignore[override]
        return (None,) * 8

    @staticmethod
    def vmap(info: Any, dims: Any, rule: tuple[Any, ...], *tensors: Tensor) -> tuple[Any, Any]:  # type: ignore[override]
        moved = [
            tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip(tensors, dims[1:], strict=True)
        ]
        return _FindStates.apply(rule, *moved), (0, 0, 0)
