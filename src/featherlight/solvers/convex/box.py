"""Full metrics in a box, or everywhere, through the compiled kernels, where those can be used.

Legend of shapes: B elements, M matrices, N coordinates.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from featherlight.solvers.convex.constraints import Box, LinfBall
from featherlight.solvers.convex.linear import solve_free, sum_to, symmetric
from featherlight.solvers.convex.metrics import FullMetric
from featherlight.solvers.convex.outcome import ConvexSolution, ConvexStatus
from featherlight.solvers.simplex_qp.compiled import share_out

_ELEMENTS_A_THREAD = 8


def solve_box(
    gradient: Tensor, metric: FullMetric, point: Tensor | None, box: Box | LinfBall | None, max_steps: int
) -> ConvexSolution:
    """As `solve_convex_step`, of a problem that was checked."""
    m = gradient.double()
    low, high = _bounds(box, m, None if point is None else point.double())
    matrix = metric.matrix_NN.double()
    batch = torch.broadcast_shapes(m.shape[:-1], low.shape[:-1], high.shape[:-1], matrix.shape[:-2])
    if matrix.shape[:-2].numel() > 1:
        matrix = matrix.expand(*batch, *matrix.shape[-2:])
    m, low, high = (x.expand(*batch, m.shape[-1]) for x in (m, low, high))
    step, status, residual, _, _ = _BoxStep.apply(m, matrix, low, high, max_steps)
    return ConvexSolution(step.to(gradient.dtype), status, residual.to(gradient.dtype))


def _bounds(box: Box | LinfBall | None, like: Tensor, point: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of the step; nan where the point is not finite."""
    if box is None:
        far = like.new_full((1,), torch.inf)
        low, high = -far, far
    elif isinstance(box, LinfBall):
        radius = torch.as_tensor(box.radius, dtype=like.dtype)[..., None]
        low, high = -radius, radius
    else:
        low, high = (torch.as_tensor(bound, dtype=like.dtype) for bound in (box.lower, box.upper))
    if point is None:
        return low, high
    finite = point.isfinite()
    return torch.where(finite, low - point, torch.nan), torch.where(finite, high - point, torch.nan)


class _BoxStep(Function):
    """From programs to steps; the backward of the backward is written in torch."""

    @staticmethod
    def forward(  # type: ignore[override]
        m: Tensor, matrix: Tensor, low: Tensor, high: Tensor, max_steps: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        from featherlight.solvers.convex import box_kernel as kernel

        batch, n = m.shape[:-1], m.shape[-1]
        count = batch.numel()
        out = (
            m.new_empty(count, n),
            torch.empty(count, n, dtype=torch.int8),
            m.new_empty(count, n, n),
            torch.empty(count, dtype=torch.int8),
            m.new_empty(count),
        )
        programs, target = _programs(m, matrix, low, high), kernel.Output(*(x.numpy() for x in out))

        def some(first: int, last: int) -> None:
            kernel.solve_elements(first, last, programs, kernel.make_room(n), max_steps, target)

        share_out(count, _ELEMENTS_A_THREAD, some)
        step, state, factor, status, residual = out
        return (
            step.reshape(m.shape),
            status.reshape(batch),
            residual.reshape(batch),
            state.reshape(m.shape),
            factor.reshape(*batch, n, n),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[1:4], *output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if gradient is None:
            return (None,) * 5
        matrix, low, high, step, status, residual, state, factor = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_adjoint_in_torch(gradient, matrix, step, status, state), None
        return *_adjoint(gradient, matrix, low, high, step, status, residual, state, factor), None

    @staticmethod
    def vmap(info: Any, dims: Any, *inputs: Any) -> tuple[Any, Any]:  # type: ignore[override]
        m, matrix, low, high = (_front(x, dim, info.batch_size) for x, dim in zip(inputs[:4], dims[:4], strict=True))
        if matrix.ndim <= m.ndim:
            matrix = matrix[(slice(None), *[None] * (m.ndim + 1 - matrix.ndim))].expand(*m.shape, m.shape[-1])
        return _BoxStep.apply(m, matrix, low, high, inputs[4]), (0,) * 5


def _adjoint_in_torch(
    gradient: Tensor, matrix: Tensor, step: Tensor, status: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of m, H and both bounds, with a graph."""
    from featherlight.solvers.convex import box_kernel as kernel

    solved = status <= ConvexStatus.DEGENERATE
    g = torch.where(solved[..., None], gradient, 0)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    h = symmetric(torch.where(solved[..., None, None], matrix, eye))
    w = solve_free(h, g[..., None], state == kernel.FREE)[..., 0]
    outer = w[..., :, None] * step[..., None, :]
    rest = g - (h * w[..., None, :]).sum(-1)
    of_low, of_high = (torch.where(state == side, rest, 0) for side in (kernel.LOWER, kernel.UPPER))
    return -w, sum_to(-symmetric(outer), matrix.shape), of_low, of_high


def _adjoint(gradient: Tensor, matrix: Tensor, low: Tensor, high: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
    """Gradients of m, H and both bounds, without a graph."""
    from featherlight.solvers.convex import box_kernel as kernel

    step, status, residual, state, factor = saved
    n, count = step.shape[-1], status.numel()
    own = matrix.shape[:-2].numel() == count
    of_matrix = matrix.new_empty(count if own else 1, n, n)
    gradient = gradient.reshape(-1, n).contiguous()
    of_m, of_low, of_high = (torch.empty_like(gradient) for _ in range(3))
    target = kernel.Adjoint(*(x.numpy() for x in (gradient, of_m, of_matrix, of_low, of_high)))
    programs = _programs(step, matrix, low, high)
    tensors = (
        step.reshape(-1, n),
        state.reshape(-1, n),
        factor.reshape(-1, n, n),
        status.flatten(),
        residual.flatten(),
    )
    found = kernel.Output(*(x.contiguous().numpy() for x in tensors))

    def some(first: int, last: int) -> None:
        kernel.adjoint_elements(first, last, programs, found, kernel.make_room(n), target)

    share_out(count, _ELEMENTS_A_THREAD, some)
    if not own:
        of_matrix = symmetric(of_m.mT @ step.reshape(-1, n))
    of_m, of_low, of_high = (x.reshape(step.shape) for x in (of_m, of_low, of_high))
    return of_m, of_matrix.reshape(matrix.shape), of_low, of_high


def _programs(m: Tensor, matrix: Tensor, low: Tensor, high: Tensor) -> Any:
    from featherlight.solvers.convex import box_kernel as kernel

    n = m.shape[-1]
    rows = (m.reshape(-1, n), matrix.reshape(-1, n, n), low.reshape(-1, n), high.reshape(-1, n))
    return kernel.Programs(*(x.detach().contiguous().numpy() for x in rows))


def _front(x: Tensor, dim: int | None, size: int) -> Tensor:
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
