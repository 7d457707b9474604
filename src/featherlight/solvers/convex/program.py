"""A batch of programs, checked and with harmless numbers in place of those that make no sense, and how a step ends.

Legend of shapes: B batch axes, N coordinates of an element (its event axes: two of a Kronecker metric).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from featherlight.solvers.convex.metrics import DiagonalMetric, Metric
from featherlight.solvers.convex.outcome import ConvexSolution, ConvexStatus


def none_of(dtype: torch.dtype) -> float:
    """A relative margin that counts as none."""
    return 2e-13 if dtype == torch.float64 else 4e-6


class Program(NamedTuple):
    """What all kinds of steps have in common.

    Attributes:
        gradient_BN: m, in the dtype that is worked in; 0 where the program has no solution.
        metric: H, the identity where it cannot be used.
        point_BN: x, 0 where the program has no solution.
        status_B: SOLVED so far, or why there is no solution.
        dtype: of the answer.
    """

    gradient_BN: Tensor
    metric: Metric
    point_BN: Tensor
    status_B: Tensor
    dtype: torch.dtype

    @property
    def batch(self) -> torch.Size:
        """Shape of the batch."""
        return self.status_B.shape

    @property
    def usable_B(self) -> Tensor:
        """Elements for which no reason against a solution was found."""
        return self.status_B == ConvexStatus.SOLVED

    def numbers(self, value: Tensor | float) -> Tensor:
        """A part's numbers in the dtype that is worked in."""
        like = self.gradient_BN
        return torch.as_tensor(value, dtype=like.dtype, device=like.device)

    def excluding(self, finite_B: Tensor, feasible_B: Tensor) -> "Program":
        """The program with the verdict on its constraint."""
        status = self.status_B
        solved = status == ConvexStatus.SOLVED
        status = torch.where(solved & ~feasible_B, int(ConvexStatus.INFEASIBLE), status)
        status = torch.where(solved & ~finite_B, int(ConvexStatus.NOT_FINITE), status)
        usable = over_event(status == ConvexStatus.SOLVED, self.metric.event_ndim)
        return self._replace(
            gradient_BN=torch.where(usable, self.gradient_BN, 0),
            point_BN=torch.where(usable, self.point_BN, 0),
            status_B=status.to(torch.int8),
        )

    def solution(
        self, step_BN: Tensor, *, degenerate_B: Tensor | None = None, residual_B: Tensor | None = None
    ) -> ConvexSolution:
        """The outcome, with steps of 0 where there is no solution."""
        status = self.status_B
        if degenerate_B is not None:
            status = torch.where(self.usable_B & degenerate_B, int(ConvexStatus.DEGENERATE), status).to(torch.int8)
        step = torch.where(over_event(self.usable_B, self.metric.event_ndim), step_BN, 0)
        residual = step.new_zeros(()) if residual_B is None else residual_B.detach()
        residual = torch.where(self.usable_B, residual, 0)
        return ConvexSolution(step.to(self.dtype), status, residual.to(self.dtype))


def begin(
    gradient_BN: Tensor, metric: Metric, point_BN: Tensor | None, *batches: torch.Size, wide: bool = False
) -> Program:
    """The program without its constraint.

    Args:
        gradient_BN: m.
        metric: H.
        point_BN: x; None is 0.
        batches: shapes of the constraint's own batch axes.
        wide: whether equations are solved.
    """
    dtype = _work(gradient_BN, wide or not isinstance(metric, DiagonalMetric))
    event = metric.event_ndim
    gradient = gradient_BN.to(dtype)
    point = torch.zeros((), dtype=dtype, device=gradient.device) if point_BN is None else point_BN.to(dtype)
    metric = type(metric)(*(tensor.to(dtype) for tensor in metric.tensors))
    shapes = [gradient.shape[:-event], metric.batch_shape, *batches]
    batch = torch.broadcast_shapes(*shapes, point.shape[:-event] if point.ndim else torch.Size())
    gradient, point = gradient.expand(*batch, *metric.event_shape), point.expand(*batch, *metric.event_shape)
    metric, metric_finite, positive = _usable(metric)
    finite = (gradient.isfinite() & point.isfinite()).flatten(-event).all(-1) & metric_finite
    status = torch.where(positive, int(ConvexStatus.SOLVED), int(ConvexStatus.INDEFINITE)).expand(batch)
    status = torch.where(finite, status, int(ConvexStatus.NOT_FINITE)).to(torch.int8)
    usable = over_event(status == ConvexStatus.SOLVED, event)
    gradient, point = torch.where(usable, gradient, 0), torch.where(usable, point, 0)
    return Program(gradient, metric, point, status, gradient_BN.dtype)


def over_event(value_B: Tensor, event_ndim: int) -> Tensor:
    """With axes of size 1 for the coordinates."""
    return value_B[(..., *[None] * event_ndim)]


def _usable(metric: Metric) -> tuple[Metric, Tensor, Tensor]:
    """The metric with the identity where it is not finite or not positive definite, and both verdicts."""
    finite = torch.ones((), dtype=torch.bool, device=metric.tensors[0].device)
    for tensor, ndim in zip(metric.tensors, metric.tensor_ndims, strict=True):
        finite = finite & tensor.detach().isfinite().flatten(-ndim).all(-1)
    positive = metric.replaced(finite).is_positive()
    return metric.replaced(finite & positive), finite, positive


def _work(gradient: Tensor, wide: bool) -> torch.dtype:
    """float64 where equations are solved, for their number of digits; elsewhere at least float32."""
    if wide and gradient.device.type != "mps":
        return torch.float64
    return gradient.dtype if gradient.dtype in (torch.float32, torch.float64) else torch.float32


def check_shapes(gradient: Tensor, metric: Metric, point: Tensor | None) -> None:
    """A sentence where they do not fit."""
    event = metric.event_ndim
    if not gradient.is_floating_point():
        raise ValueError(f"the gradient must hold floating-point numbers; got {gradient.dtype}.")
    shape = gradient.shape[-event:]
    if gradient.ndim < event or shape != metric.event_shape:
        raise ValueError(
            f"the metric is one of steps of shape {tuple(metric.event_shape)}, the gradient has shape {tuple(gradient.shape)}: "
            f"its last {event} {'axis' if event == 1 else 'axes'} must be the same."
        )
    if point is not None and point.shape[-event:] != shape:
        raise ValueError(
            f"the point has shape {tuple(point.shape)} and the gradient {tuple(gradient.shape)}: the last {event} "
            f"{'axis' if event == 1 else 'axes'} must be the same."
        )
    others = [("the metric", tensor) for tensor in metric.tensors] + ([] if point is None else [("the point", point)])
    for name, tensor in others:
        if tensor.device != gradient.device:
            raise ValueError(f"{name} is on {tensor.device} and the gradient on {gradient.device}. Move one of them.")
