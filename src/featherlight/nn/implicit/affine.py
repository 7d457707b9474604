"""The states x = phi(b + x m) as a function of m and b, with exact derivatives of any order.

Both functions here are solutions of an equation of the same form, so each one's derivative is the other: nothing is
recorded but the solution itself.

Legend of shapes: E matrices solved side by side, N samples, S numbers of a state.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featherlight.nn.implicit.activations import Activation
from featherlight.nn.implicit.engines import Engine
from featherlight.solvers import FixedPoint, Status
from featherlight.solvers.fixed_point.loop import without_autocast


@dataclass(frozen=True, kw_only=True)
class How:
    """What a solve needs besides its tensors.

    Args:
        engine: solves.
        activation: phi.
        strict: whether a sample that does not converge is an error; else it has a status and no gradient.
    """

    engine: Engine
    activation: Activation
    strict: bool


def affine_states(m: Tensor, b: Tensor, start: Tensor | None, how: How) -> tuple[Tensor, Tensor, Tensor]:
    """x = phi(b + x m), its residuals and its statuses.

    Args:
        m: (S, S), or (E, S, S).
        b: (..., N, S), or (E, N, S).
        start: like `b`, or None.
        how: engine, activation and what to do with failures.

    Raises:
        FixedPointError: a sample did not converge, here or in a later backward pass.
    """
    return _States.apply(m, b, start, how)


class _States(torch.autograd.Function):
    """x of x = phi(b + x m)."""

    @staticmethod
    def forward(m: Tensor, b: Tensor, start: Tensor | None, how: How) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        found = _solve(m, how.activation, b, start, how)
        x = found.unwrap() if how.strict else found.value
        return x.view(b.shape), found.residual.view(b.shape[:-1]), found.status.view(b.shape[:-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.how = inputs[3]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(inputs[0], output[0], output[2])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor, None, None]:  # type: ignore[override]
        m, x, status = ctx.saved_tensors
        if not ctx.how.strict:
            failed = (status != Status.CONVERGED)[..., None]
            x, g = x.masked_fill(failed, 0), g.masked_fill(failed, 0)
        w = _Pulled.apply(m.mT, ctx.how.activation.slope(x), g, ctx.how)
        return (_outer(x, w, m) if ctx.needs_input_grad[0] else None), w, None, None

    @staticmethod
    def vmap(info: Any, dims: Any, m: Tensor, b: Tensor, start: Tensor | None, how: How) -> tuple[Any, Any]:  # type: ignore[override]
        m, b, start = _side_by_side(info.batch_size, dims, m, b, start)
        return _States.apply(m, b, start, how), (0, 0, 0)


class _Pulled(torch.autograd.Function):
    """w of w = d * (g + w m): what a gradient g at the states is at their inputs."""

    @staticmethod
    def forward(m: Tensor, d: Tensor, g: Tensor, how: How) -> Tensor:  # type: ignore[override]
        size = torch.linalg.vector_norm(g, dim=-1, keepdim=True).clamp(min=torch.finfo(g.dtype).tiny)
        d_ = d.reshape(_rows(m, g))
        return _solve(m, d_.mul, g / size, None, how).unwrap().view(g.shape) * size

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.how = inputs[3]
        ctx.save_for_backward(*inputs[:3], output)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        m, d, g, w = ctx.saved_tensors
        y = _Pulled.apply(m.mT, d, h, ctx.how)
        return _outer(w, y, m), (h + y @ m.mT) * (g + w @ m), y, None

    @staticmethod
    def vmap(info: Any, dims: Any, m: Tensor, d: Tensor, g: Tensor, how: How) -> tuple[Tensor, int]:  # type: ignore[override]
        m, d, g = _side_by_side(info.batch_size, dims, m, d, g)
        return _Pulled.apply(m, d, g, how), 0


def _solve(m: Tensor, phi: Any, b: Tensor, start: Tensor | None, how: How) -> FixedPoint:
    """With all leading axes in one; autocast would end at tolerances no solver can reach."""
    shape = _rows(m, b)
    with without_autocast(b.device):
        return how.engine.solve(
            m.reshape(-1, *m.shape[-2:]) if m.ndim > 2 else m,
            phi,
            b.reshape(shape),
            None if start is None else start.reshape(shape),
        )


def _rows(m: Tensor, b: Tensor) -> tuple[int, ...]:
    return (b.numel() // b.shape[-1], b.shape[-1]) if m.ndim == 2 else (m[..., 0, 0].numel(), *b.shape[-2:])


def _outer(x: Tensor, w: Tensor, m: Tensor) -> Tensor:
    """x^T w of each matrix, summed over the samples it is for."""
    return x.flatten(0, -2).mT @ w.flatten(0, -2) if m.ndim == 2 else x.mT @ w


def _side_by_side(size: int, dims: Any, m: Tensor, first: Tensor, second: Tensor | None) -> tuple[Tensor, Tensor, Any]:
    """The mapped axis of each in front; a matrix gets one only if it has to."""

    def front(x: Tensor, dim: int | None) -> Tensor:
        return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)

    m = m if dims[0] is None and m.ndim == 2 else front(m, dims[0])
    return m, front(first, dims[1]), None if second is None else front(second, dims[2])
