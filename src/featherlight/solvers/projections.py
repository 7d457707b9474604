"""Nearest points of simple convex sets, differentiable and without a loop over rows.

The simplex and the L1 ball need one number a vector: the threshold that is taken off its entries. It is found by Newton's
method on the piecewise linear equation `sum(relu(x - threshold)) == radius`, which from below ends exactly after a few
passes; a full sort costs tens of times more. Given the entries above the threshold the projection is affine, so autograd
differentiates it exactly, any number of times. Where the projection has a kink, the derivative of one side is taken.
"""

from typing import Any

import torch
from torch import Tensor

_SORTED_BELOW = 12


def project_simplex(x: Tensor, *, dim: int = -1, radius: float | Tensor = 1.0) -> Tensor:
    """The nearest vectors with entries of at least 0 that sum to `radius`.

    Args:
        x: any shape, floating point. Entries of -inf become 0; a vector with NaN, +inf or only -inf becomes NaN.
        dim: along which the vectors lie.
        radius: at least 0; a number, or a tensor that broadcasts with size 1 in `dim`.

    Returns:
        Shape, dtype and device of `x`; half precision is computed in float32. Differentiable in `x` and `radius`.

    Raises:
        ValueError: no axis, an empty one, numbers that are no floats, a negative radius (of a tensor radius, values are
            not looked at: a negative one gives NaN).

    Cost: 3 passes over `x` a Newton step, of which there are usually 3 to 8, never more than entries in a vector.

    Source: Held, Wolfe, Crowder 1974; Michelot 1986; Condat, "Fast projection onto the simplex and the l1 ball", 2016.
    Newton's steps are Michelot's, with a start that keeps fewer entries.
    """
    x_, radius_ = _checked(x, dim, radius)
    shifted = x_ - x_.detach().amax(dim, keepdim=True)
    found = _threshold(shifted, radius_, dim)
    kept = ~(shifted <= found)
    zero = shifted.new_zeros(())
    total = torch.where(kept, shifted, zero).sum(dim, keepdim=True)
    threshold = (total - radius_) / kept.to(x_).sum(dim, keepdim=True).clamp(min=1) + 0 * found
    projected = torch.where(kept, (shifted - threshold).clamp(min=0), zero)
    return _nan_where_negative(projected, radius_).to(x.dtype)


def project_l1_ball(x: Tensor, *, dim: int = -1, radius: float | Tensor = 1.0) -> Tensor:
    """The nearest vectors whose absolute entries sum to at most `radius`; those inside come back to the bit.

    Args, Returns, Raises, cost: as `project_simplex`; a vector with NaN or an infinity becomes NaN.
    """
    x_, radius_ = _checked(x, dim, radius)
    if isinstance(radius_, Tensor):
        radius_ = radius_.expand([1 if axis == dim % x.ndim else size for axis, size in enumerate(x.shape)])
    projected = _L1Ball.apply(x_, radius_, dim % x.ndim)[0]
    return _nan_where_negative(projected, radius_).to(x.dtype)


def project_linf_rows(a: Tensor, *, bound: float | Tensor = 1.0) -> Tensor:
    """The nearest matrices of infinity norm at most `bound`: each row is projected onto an L1 ball.

    Args:
        a: (..., rows, columns), floating point.
        bound: at least 0; a number, or a tensor that broadcasts to (..., rows, 1), one bound a row.

    Returns:
        Shape, dtype and device of `a`; `a.abs().sum(-1)` is at most `bound` within rounding. Rows inside stay to the bit.

    Raises:
        ValueError: as `project_simplex`, and fewer than 2 axes.
    """
    if a.ndim < 2:
        raise ValueError(
            f"an infinity norm of matrices needs at least 2 axes (..., rows, columns); got shape {tuple(a.shape)}. "
            "For one vector use project_l1_ball."
        )
    return project_l1_ball(a, dim=-1, radius=bound)


def project_box(x: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """The nearest point with every entry between `low` and `high`, which broadcast; at a bound the derivative is 1.

    Raises:
        ValueError: numbers `low` and `high` of an empty box (of tensors, values are not looked at).
    """
    if not isinstance(low, Tensor) and not isinstance(high, Tensor) and not low <= high:
        raise ValueError(f"the box is empty: `low` is {low} and `high` is {high}. Give `low` <= `high`.")
    like = {"dtype": x.dtype, "device": x.device}
    return torch.minimum(torch.maximum(x, torch.as_tensor(low, **like)), torch.as_tensor(high, **like))


def project_l2_ball(x: Tensor, *, dim: int = -1, radius: float | Tensor = 1.0) -> Tensor:
    """The nearest vectors of Euclidean length at most `radius`; those inside come back to the bit.

    Args, Returns, Raises: as `project_simplex`; a vector with NaN or an infinity becomes NaN.
    """
    x_, radius_ = _checked(x, dim, radius)
    largest = x_.detach().abs().amax(dim, keepdim=True)
    unit = torch.where(largest > 0, largest, torch.ones_like(largest))
    square = (x_ / unit).square().sum(dim, keepdim=True)
    inside = square.detach().sqrt() * unit <= radius_
    scale = radius_ / unit * torch.where(inside, torch.ones_like(square), square).rsqrt()
    return _nan_where_negative(torch.where(inside, x_, x_ * scale), radius_).to(x.dtype)


def _threshold(x: Tensor, radius: float | Tensor, dim: int) -> Tensor:
    """What is taken off the entries, without a derivative: callers compute it again from the entries it leaves.

    It is NaN where a vector is not finite, and callers add it times 0 so that such a vector comes back as NaN.
    """
    x, radius = x.detach(), torch.as_tensor(radius, dtype=x.dtype, device=x.device).detach()
    found = _by_sorting(x, radius, dim) if _is_sorted(x, dim) else _ByNewton.apply(x, radius, dim)
    return torch.where(found.isfinite(), found, torch.full_like(found, float("nan")))


def _is_sorted(x: Tensor, dim: int) -> bool:
    """Whether sorting is the way: Newton's steps look at values, which a compiled graph cannot."""
    return torch.compiler.is_compiling() or x.shape[dim] < _SORTED_BELOW


class _L1Ball(torch.autograd.Function):
    """The projection and its thresholds, 0 for vectors inside; given the entries that stay it is affine."""

    @staticmethod
    def forward(x: Tensor, radius: float | Tensor, dim: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        size = x.abs()
        if _is_sorted(x, dim):
            inside = size.sum(dim, keepdim=True) <= radius
            threshold = _by_sorting(size, radius, dim).clamp(min=0).masked_fill(inside, 0)
        else:
            threshold = _by_newton(size, radius, dim, True)
        threshold = threshold + 0 * threshold
        return x - x.clamp(-threshold, threshold), threshold

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output)
        ctx.dim = inputs[2]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override]
        projected, threshold = ctx.saved_tensors
        signs = projected.detach().sign()
        kept = signs * signs
        mean = (signs * gradient).sum(ctx.dim, keepdim=True) / kept.sum(ctx.dim, keepdim=True).clamp(min=1)
        outside = threshold > 0
        of_x = torch.where(outside, kept * gradient - signs * mean, gradient)
        return of_x, mean * outside if ctx.needs_input_grad[1] else None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, radius: float | Tensor, dim: int) -> tuple[Any, Any]:  # type: ignore[override]
        x = x.movedim(in_dims[0], 0) if in_dims[0] is not None else x.expand(info.batch_size, *x.shape)
        if isinstance(radius, Tensor) and in_dims[1] is not None:
            radius = radius.movedim(in_dims[1], 0)
        return _L1Ball.apply(x, radius, dim + 1), (0, 0)


class _ByNewton(torch.autograd.Function):
    """Newton's steps look at values, which vmap allows inside a function with a rule of its own only."""

    @staticmethod
    def forward(x: Tensor, radius: Tensor, dim: int) -> Tensor:  # type: ignore[override]
        return _by_newton(x, radius, dim, False)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:  # type: ignore[override]
        return None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, radius: Tensor, dim: int) -> tuple[Tensor, int]:  # type: ignore[override]
        dim = dim % (x.ndim - (in_dims[0] is not None))
        x = x.movedim(in_dims[0], 0) if in_dims[0] is not None else x.expand(info.batch_size, *x.shape)
        if in_dims[1] is not None:
            radius = radius.movedim(in_dims[1], 0)
            radius = radius.reshape(len(radius), *[1] * (x.ndim - radius.ndim), *radius.shape[1:])
        return _ByNewton.apply(x, radius, dim + 1), 0


def _by_newton(x: Tensor, radius: float | Tensor, dim: int, at_least_zero: bool) -> Tensor:
    """From a start below the threshold each step ends below it, so the entries above only become fewer."""
    size = x.shape[dim]
    threshold = torch.maximum(x.amax(dim, keepdim=True) - radius, (x.sum(dim, keepdim=True) - radius) / size)
    if at_least_zero:
        threshold = threshold.clamp_(min=0)
    room, before = torch.empty_like(x), None
    for _ in range(size + 1):
        torch.sub(x, threshold, out=room).relu_()
        excess = (room.sum(dim, keepdim=True) - radius).clamp_(min=0)
        count = room.sign_().sum(dim, keepdim=True)
        threshold = threshold + excess / count.clamp(min=1)
        if before is not None and not bool((before > count).any()):
            break
        before = count
    return threshold


def _by_sorting(x: Tensor, radius: float | Tensor, dim: int) -> Tensor:
    """The same from the sorted entries, in a fixed number of operations: less work for short vectors."""
    ordered = x.sort(dim, descending=True).values
    rank_shape = [1] * x.ndim
    rank_shape[dim] = -1
    ranks = torch.arange(1, x.shape[dim] + 1, dtype=x.dtype, device=x.device).reshape(rank_shape)
    return ((ordered.cumsum(dim) - radius) / ranks).amax(dim, keepdim=True)


def _checked(x: Tensor, dim: int, radius: float | Tensor) -> tuple[Tensor, float | Tensor]:
    """Both in at least float32."""
    if not x.is_floating_point():
        raise ValueError(f"a projection needs floating-point numbers; got {x.dtype}. Convert with `.float()`.")
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"`dim` {dim} is not an axis of a tensor of shape {tuple(x.shape)}.")
    if x.shape[dim] == 0:
        raise ValueError(
            f"vectors along axis {dim} of shape {tuple(x.shape)} have no entries, so there is nothing to project."
        )
    wide: Tensor = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if not isinstance(radius, float | int):
        one_each = list(x.shape)
        one_each[dim] = 1
        if radius.ndim > x.ndim or any(
            r not in (1, s) for r, s in zip(radius.shape[::-1], one_each[::-1], strict=False)
        ):
            raise ValueError(
                f"radii of shape {tuple(radius.shape)} do not fit vectors along axis {dim} of shape {tuple(x.shape)}: they "
                f"must broadcast to {tuple(one_each)}."
            )
        return wide, radius.to(wide)
    if not 0 <= radius < float("inf"):
        raise ValueError(f"a radius must be a finite number of at least 0; got {radius}.")
    return wide, float(radius)


def _nan_where_negative(projected: Tensor, radius: float | Tensor) -> Tensor:
    if not isinstance(radius, Tensor):
        return projected
    return torch.where(radius >= 0, projected, torch.full_like(radius, float("nan")))
