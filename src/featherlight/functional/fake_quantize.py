"""Floats rounded to the few numbers that whole numbers of some bits stand for, with gradients that go straight through.

A whole number q from `low` to `high` stands for `scale * (q - zero_point)`. Rounding is to the nearest, halves to the even
neighbour: what `QuantizeLinear` of ONNX does, and `torch.round`.

Legend of shapes: C channels.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def grid_codes(
    x: Float[Tensor, "..."], scale: Float[Tensor, "..."], zero_point: Tensor | float, low: float, high: float
) -> Float[Tensor, "..."]:
    """The whole numbers that stand for `x`, as floats: `clamp(round(x / scale) + zero_point, low, high)`.

    Args:
        x: any shape.
        scale: what one unit is worth, broadcast against `x`.
        zero_point: what stands for 0, broadcast against `x`.
        low: lowest whole number.
        high: highest.
    """
    return (torch.round(x / scale) + zero_point).clamp(low, high)


def fake_quantize(
    x: Float[Tensor, "..."], scale: Float[Tensor, "..."], zero_point: Tensor | float, low: float, high: float
) -> Float[Tensor, "..."]:
    """`x` rounded to the grid, in the dtype of `x`.

    The gradient of `x` is that of what comes out where `x` lies within the range, and 0 outside. There is none of `scale`.

    Args:
        x: any shape.
        scale: broadcast against `x`.
        zero_point: broadcast against `x`.
        low: lowest whole number.
        high: highest.

    Source: Jacob et al. 2018, equation 12; the gradient: Bengio et al. 2013.
    """
    return _Rounded.apply(x, scale, zero_point, low, high)


def fake_quantize_learned(
    x: Float[Tensor, "..."], scale: Float[Tensor, "..."], zero_point: Tensor | float, low: float, high: float
) -> Float[Tensor, "..."]:
    """The same with a gradient of the scale, made smaller by `1 / sqrt(count * (high - zero_point))`.

    Within the range a unit of scale moves what comes out by `round(x / scale) - x / scale`, and outside by the whole number
    at that end, as counted from `zero_point`. `count` is how many numbers share a scale.

    Args:
        x: any shape.
        scale: positive, broadcast against `x`.
        zero_point: one number; for a grid about 0, 0.
        low: lowest whole number.
        high: highest.

    Source: Esser et al. 2020 (LSQ), equations 1 to 3 and section 2.2.
    """
    return _Learned.apply(x, scale, zero_point, low, high)


def symmetric_high(bits: int) -> int:
    """The highest whole number of a signed grid that is the same to both sides: 127 for 8 bits, 1 for 2.

    Raises:
        ValueError: `bits` is not from 2 to 8.
    """
    if not 2 <= bits <= 8:
        raise ValueError(
            f"`bits` of weights must be from 2 to 8; got {bits}. With 1 there is no grid that is symmetric about 0."
        )
    return (1 << (bits - 1)) - 1


def _wide(x: Tensor) -> Tensor:
    """Halves of floats have too few bits to round with."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | float, low: float, high: float) -> Tensor:
        units = torch.round(_wide(x) / scale) + zero_point
        kept = units.clamp(low, high)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(units == kept)
        return ((kept - zero_point) * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        return (grad * ctx.saved_tensors[0] if ctx.needs_input_grad[0] else None), None, None, None, None


class _Learned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | float, low: float, high: float) -> Tensor:
        units = _wide(x) / scale
        rounded = torch.round(units) + zero_point
        kept = rounded.clamp(low, high)
        ctx.save_for_backward(
            units, rounded, kept, scale, torch.as_tensor(zero_point, dtype=units.dtype, device=x.device)
        )
        ctx.high = high
        return ((kept - zero_point) * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        units, rounded, kept, scale, zero_point = ctx.saved_tensors
        inside = rounded == kept
        grad_x = (grad * inside) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None, None, None
        slope = (kept - zero_point) - torch.where(inside, units, torch.zeros_like(units))
        count = units.numel() // max(scale.numel(), 1)
        damping = (count * (ctx.high - zero_point).clamp(min=1)).rsqrt()
        return grad_x, (grad * slope).sum_to_size(scale.shape) * damping, None, None, None
