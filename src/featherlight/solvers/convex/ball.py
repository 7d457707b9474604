"""Steps within a Euclidean ball: one multiplier, the root of a secular equation.

Legend of shapes: B batch axes, N coordinates of an element, or the P times Q of a matrix.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from featherlight.solvers.convex.constraints import L2Ball
from featherlight.solvers.convex.metrics import DiagonalMetric, KroneckerMetric, Metric
from featherlight.solvers.convex.outcome import ConvexSolution, ConvexStatus
from featherlight.solvers.convex.program import Program, none_of, over_event

_MOST_STEPS = 60


def solve_l2_ball(program: Program, ball: L2Ball) -> ConvexSolution:
    """The steps to x + d in the ball.

    The multiplier is found without a graph, by Newton's method on 1 / |y| - 1 / radius, which from 0 comes to the root from
    one side; two more such steps with a graph give it derivatives up to the third.

    Source: More, Sorensen 1983.
    """
    radius = program.numbers(ball.radius).expand(program.batch)
    program = program.excluding(radius.isfinite(), ~(radius < 0))
    radius = torch.where(program.usable_B & (radius > 0), radius, 0)
    event = program.metric.event_ndim
    metric, linear = program.metric, program.gradient_BN - program.metric.apply(program.point_BN)
    with torch.no_grad():
        multiplier, active, found = _multiplier(program, linear, radius)
    program = program._replace(
        status_B=torch.where(program.usable_B & ~found, int(ConvexStatus.NOT_CONVERGED), program.status_B).to(
            torch.int8
        )
    )
    active = active & found
    reach = torch.where(active, radius, 1)
    for _ in range(2):
        y = _shifted_solve(metric, multiplier, -linear)
        length = torch.where(over_event(active, event), y, 1).square().flatten(-event).sum(-1).sqrt()
        slope = (y * _shifted_solve(metric, multiplier, y)).flatten(-event).sum(-1)
        change = length.square() / torch.where(active, slope, 1) * (length - reach) / reach
        multiplier = torch.where(active, multiplier + change, 0)
    inside = metric.solve(-program.gradient_BN)
    y = _shifted_solve(metric, multiplier, -linear)
    nothing = over_event(radius == 0, event)
    step = torch.where(over_event(active, event), y - program.point_BN, inside)
    step = torch.where(nothing, -program.point_BN, step)
    degenerate, residual = _judge(program, radius, step, multiplier, active)
    return program.solution(step, degenerate_B=degenerate, residual_B=residual)


@torch.no_grad()
def _judge(program: Program, radius: Tensor, step: Tensor, multiplier: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    event, tiny = program.metric.event_ndim, torch.finfo(step.dtype).tiny
    margin = none_of(step.dtype)
    y, curved = program.point_BN + step, program.metric.apply(step)
    pulled = over_event(multiplier, event) * y
    size = (program.gradient_BN.abs() + curved.abs() + pulled.abs()).flatten(-event).amax(-1).clamp(min=tiny)
    off = (program.gradient_BN + curved + pulled).abs().flatten(-event).amax(-1) / size
    length = y.flatten(-event).square().sum(-1).sqrt()
    over = (length - radius) / radius.clamp(min=tiny)
    residual = torch.where(radius > 0, torch.maximum(off, torch.where(active, over.abs(), over.clamp(min=0))), 0)
    at_edge = torch.where(active, pulled.abs().flatten(-event).amax(-1) <= margin * size, over > -margin)
    return (radius == 0) | at_edge, residual


def _shifted_solve(metric: Metric, shift: Tensor, x: Tensor) -> Tensor:
    """(H + shift I)^-1 x."""
    if isinstance(metric, KroneckerMetric):
        return metric.solve_shifted(x, shift)
    return metric.shifted(shift).solve(x)


def _multiplier(program: Program, linear: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The multiplier, whether the ball is touched, and whether the search ended; no graph."""
    metric = program.metric
    if isinstance(metric, KroneckerMetric):
        (a, u), (b, v) = (torch.linalg.eigh(0.5 * (each + each.mT)) for each in metric.tensors)
        linear = (u.mT @ linear @ v).flatten(-2)
        metric = DiagonalMetric((a[..., :, None] * b[..., None, :]).flatten(-2))
    tensors = [
        tensor.detach().expand(*program.batch, *tensor.shape[-ndim:])
        for tensor, ndim in zip(metric.tensors, metric.tensor_ndims, strict=True)
    ]
    return _Multiplier.apply(type(metric), linear.detach(), radius.detach(), *tensors)


class _Multiplier(Function):
    """The search looks at values, which vmap allows inside a function with a rule of its own only."""

    @staticmethod
    def forward(
        kind: Callable[..., Any], linear: Tensor, radius: Tensor, *own: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        return _newton(kind(*own), linear, radius)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:  # type: ignore[override]
        return (None,) * 5

    @staticmethod
    def vmap(info: Any, dims: Any, kind: Callable[..., Any], *tensors: Tensor) -> tuple[Any, Any]:  # type: ignore[override]
        moved = [
            tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip(tensors, dims[1:], strict=True)
        ]
        return _Multiplier.apply(kind, *moved), (0, 0, 0)


def _newton(metric: Any, linear: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each element's number of steps is its own, so that no other element changes its bits."""
    tolerance = 8 * torch.finfo(linear.dtype).eps
    multiplier = torch.zeros_like(radius)
    y = metric.solve(-linear)
    length = y.square().sum(-1).sqrt()
    active = (length > radius) & (radius > 0)
    open_, reach = active, torch.where(active, radius, 1)
    for _ in range(_MOST_STEPS):
        if not bool(open_.any()):
            break
        shifted = metric.shifted(multiplier)
        y = shifted.solve(-linear)
        length = y.square().sum(-1).sqrt()
        slope = (y * shifted.solve(y)).sum(-1)
        change = length.square() / torch.where(open_, slope, 1) * (length - reach) / reach
        change = change.clamp(min=0)
        multiplier = torch.where(open_, multiplier + change, multiplier)
        open_ = open_ & (change > tolerance * multiplier) & ((length - reach) > tolerance * reach)
    return multiplier, active, ~open_
