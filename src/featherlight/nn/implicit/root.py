"""Fixed points of any map as a function of its tensors, with exact derivatives of any order.

A fixed point's derivative solves a linear equation, and that solution's derivative solves the transposed one: two functions
cover every order. Linear maps are given as what they are at a point, so that a graph is built once for all of a solver's
steps.

Legend of shapes: N samples, ... a state of any shape.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from featherlight.solvers import FixedPointSolver, Status

Map = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class HowToSolve:
    """What a solve needs besides the map.

    Args:
        solver: finds the states.
        backward_solver: finds gradients.
        strict: whether a sample that does not converge is an error; else it has a status and no gradient.
    """

    solver: FixedPointSolver
    backward_solver: FixedPointSolver
    strict: bool


def root(f: Map, start: Tensor, tensors: tuple[Tensor, ...], how: HowToSolve) -> tuple[Tensor, Tensor, Tensor]:
    """x = f(x, *tensors), its residuals (N,) and its statuses (N,).

    Args:
        f: of a state (N, ...) and tensors; each sample on its own, twice differentiable for a double backward.
        start: (N, ...).
        tensors: all that gradients are wanted of.
        how: the solvers and what to do with failures.

    Raises:
        FixedPointError: a sample did not converge, here or in a later backward pass.
    """
    return _Root.apply(f, how, start, *tensors)


class _Linear(Protocol):
    """A map that is linear in its first argument and has a value at the others."""

    def at(self, x: Tensor, *tensors: Tensor) -> Callable[[Tensor], Tensor]: ...


@dataclass(frozen=True)
class _Pullback:
    """v -> v df/dx."""

    f: Map

    def at(self, x: Tensor, *tensors: Tensor) -> Callable[[Tensor], Tensor]:
        pull = torch.func.vjp(lambda x: self.f(x, *tensors), x)[1]
        return lambda v: pull(v)[0]


@dataclass(frozen=True)
class _Transposed:
    """The transpose of a linear map, which is its own derivative's pullback."""

    linear: _Linear

    def at(self, x: Tensor, *tensors: Tensor) -> Callable[[Tensor], Tensor]:
        pull = torch.func.vjp(self.linear.at(x, *tensors), torch.zeros_like(x))[1]
        return lambda v: pull(v)[0]


@dataclass(frozen=True)
class _Mapped:
    """A map or linear map for which a new first axis, put before the samples by vmap, is one with them."""

    f: Map
    size: int
    dims: tuple[int | None, ...]

    def __call__(self, x: Tensor, *tensors: Tensor) -> Tensor:
        rows = x.unflatten(0, (self.size, -1))
        return torch.func.vmap(self.f, in_dims=(0, *self.dims))(rows, *tensors).flatten(0, 1)


@dataclass(frozen=True)
class _MappedLinear:
    linear: _Linear
    size: int
    dims: tuple[int | None, ...]

    def at(self, x: Tensor, *tensors: Tensor) -> Callable[[Tensor], Tensor]:
        rows = x.unflatten(0, (self.size, -1))

        def one(v: Tensor, x: Tensor, *tensors: Tensor) -> Tensor:
            return self.linear.at(x, *tensors)(v)

        several = torch.func.vmap(one, in_dims=(0, 0, *self.dims))
        return lambda v: several(v.unflatten(0, (self.size, -1)), rows, *tensors).flatten(0, 1)


class _Root(torch.autograd.Function):
    """x of x = f(x, *tensors)."""

    @staticmethod
    def forward(f: Map, how: HowToSolve, start: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        found = how.solver(lambda x: f(x, *tensors), start)
        return found.unwrap() if how.strict else found.value, found.residual, found.status

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.f, ctx.how = inputs[:2]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(output[0], output[2], *inputs[3:])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, status, *tensors = ctx.saved_tensors
        if not ctx.how.strict:
            failed = (status != Status.CONVERGED).view(-1, *[1] * (x.ndim - 1))
            x, g = x.masked_fill(failed, 0), g.masked_fill(failed, 0)
        w = _LinearRoot.apply(_Pullback(ctx.f), ctx.how, g, x, *tensors)
        return None, None, None, *_pulled(lambda *t: ctx.f(x, *t), w, tensors, ctx.needs_input_grad[3:])

    @staticmethod
    def vmap(info: Any, dims: Any, f: Map, how: HowToSolve, start: Tensor, *tensors: Tensor) -> tuple[Any, Any]:  # type: ignore[override]
        size = info.batch_size
        begin = _front(start, dims[2], size).flatten(0, 1)
        found = _Root.apply(_Mapped(f, size, tuple(dims[3:])), how, begin, *tensors)
        return tuple(each.unflatten(0, (size, -1)) for each in found), (0, 0, 0)


class _LinearRoot(torch.autograd.Function):
    """w of w = g + l(w), for l linear at (x, *tensors); each sample is scaled to length 1 for the solver's sake."""

    @staticmethod
    def forward(linear: _Linear, how: HowToSolve, g: Tensor, x: Tensor, *tensors: Tensor) -> Tensor:  # type: ignore[override]
        length = torch.linalg.vector_norm(g.flatten(1), dim=1).view(-1, *[1] * (g.ndim - 1))
        length = torch.where(length > 0, length, torch.ones_like(length))
        step, right = linear.at(x, *tensors), g / length
        return how.backward_solver(lambda w: right + step(w), right).unwrap() * length

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.linear, ctx.how = inputs[:2]
        ctx.save_for_backward(output, *inputs[3:])

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        w, *tensors = ctx.saved_tensors
        linear = ctx.linear
        v = _LinearRoot.apply(_Transposed(linear), ctx.how, h, *tensors)
        pulled = _pulled(lambda *t: linear.at(*t)(w), v, tensors, ctx.needs_input_grad[3:])
        return None, None, v, *pulled

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any, dims: Any, linear: _Linear, how: HowToSolve, g: Tensor, x: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, int]:
        size = info.batch_size
        g, x = (_front(each, dim, size).flatten(0, 1) for each, dim in zip((g, x), dims[2:4], strict=True))
        found = _LinearRoot.apply(_MappedLinear(linear, size, tuple(dims[4:])), how, g, x, *tensors)
        return found.unflatten(0, (size, -1)), 0


def _pulled(f: Map, v: Tensor, tensors: list[Tensor], needed: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """v df/dt for the tensors that need it; under transforms all are said to."""
    chosen = [i for i, need in enumerate(needed) if need]
    if not chosen:
        return (None,) * len(tensors)

    def of_chosen(*those: Tensor) -> Tensor:
        every = list(tensors)
        for i, tensor in zip(chosen, those, strict=True):
            every[i] = tensor
        return f(*every)

    found = dict(zip(chosen, torch.func.vjp(of_chosen, *(tensors[i] for i in chosen))[1](v), strict=True))
    return tuple(found.get(i) for i in range(len(tensors)))


def _front(x: Tensor, dim: int | None, size: int) -> Tensor:
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
