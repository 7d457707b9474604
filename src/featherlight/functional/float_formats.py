"""Numbers of few bits in emulation: any tensor rounded to what a format can say, exactly and on any machine.

Legend of shapes: S any shape, R blocks, K entries of a block.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

_WIDTHS = {torch.float32: (torch.int32, 23, 127), torch.float64: (torch.int64, 52, 1023)}


class NumberFormat(Protocol):
    """Something tensors can be rounded to."""

    @property
    def name(self) -> str:
        """For people and tables."""
        ...

    def round(self, exact: Float[Tensor, "*S"], axis: int = -1) -> Float[Tensor, "*S"]:
        """The nearest that the format can say, in the dtype of `exact`, which is float32 or float64.

        Args:
            exact: any shape.
            axis: along which entries share a scale, for formats of blocks.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class FloatFormat:
    """A sign, an exponent and a mantissa, with subnormals below the smallest normal number.

    Args:
        name: for people and tables.
        bias: what is taken from a stored exponent; the smallest normal number is 2**(1 - bias).
        mantissa_bits: stored ones; the leading one is implied.
        largest: the largest finite number.
        beyond: what a larger one becomes: infinity, NaN for formats without infinity, or the largest number.
        dtype: torch's own, where there is one that every version rounds to in the same way.
    """

    name: str
    bias: int
    mantissa_bits: int
    largest: float
    beyond: float
    dtype: torch.dtype | None = None

    @property
    def smallest_normal(self) -> float:
        """Smaller numbers have fewer bits."""
        return 2.0 ** (1 - self.bias)

    @property
    def smallest(self) -> float:
        """The smallest above zero."""
        return 2.0 ** (1 - self.bias - self.mantissa_bits)

    def round(self, exact: Float[Tensor, "*S"], axis: int = -1) -> Float[Tensor, "*S"]:
        """The nearest numbers of the format, ties to the even mantissa; what lies beyond `largest` becomes `beyond`."""
        rounded = self._nearest(exact)
        size = rounded.abs()
        return torch.where(size > self.largest, torch.full_like(size, self.beyond).copysign_(exact), rounded)

    def saturate(self, exact: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
        """As `round`, but what lies beyond the largest number becomes the largest, infinity included."""
        return self._nearest(exact.clamp(-self.largest, self.largest))

    def _nearest(self, exact: Tensor) -> Tensor:
        """Rounded as if exponents had no upper end."""
        if self.dtype is not None and exact.dtype == torch.float32:
            return exact.to(self.dtype).to(torch.float32)
        exponents = torch.frexp(exact).exponent.sub_(1).clamp_(min=1 - self.bias)
        quanta = power_of_two(exponents.sub_(self.mantissa_bits), exact.dtype)
        return (exact / quanta).round_().mul_(quanta)


Scales = Callable[[Float[Tensor, "*R 1"], FloatFormat], Float[Tensor, "*R 1"]]
"""From the largest magnitudes of blocks and the format of their entries to the blocks' scales."""


@dataclass(frozen=True, kw_only=True)
class BlockFormat:
    """Blocks of entries of few bits that share a scale.

    Args:
        name: for people and tables.
        element: of the entries; they saturate.
        block: K, entries in a row that share a scale; None is the whole tensor. The last block of a row may be shorter.
        scales: how they are made.

    Raises:
        ValueError: a block of no entries.
    """

    name: str
    element: FloatFormat
    block: int | None
    scales: Scales

    def __post_init__(self) -> None:
        if self.block is not None and self.block < 1:
            raise ValueError(f"`block` must be at least 1 entry, or None for the whole tensor; got {self.block}.")

    def round(self, exact: Float[Tensor, "*S"], axis: int = -1) -> Float[Tensor, "*S"]:
        """Each block in units of its scale, rounded; a block that holds an infinity or NaN becomes NaN."""
        if self.block is None or exact.ndim == 0:
            return self._of_blocks(exact.reshape(1, -1)).reshape(exact.shape)
        rows = exact.movedim(axis, -1)
        length = rows.shape[-1]
        padded = torch.nn.functional.pad(rows, (0, -length % self.block))
        rounded = self._of_blocks(padded.unflatten(-1, (-1, self.block)))
        return rounded.flatten(-2)[..., :length].movedim(-1, axis)

    def _of_blocks(self, blocks_RK: Tensor) -> Tensor:
        if not blocks_RK.numel():
            return blocks_RK
        largest = blocks_RK.abs().amax(-1, keepdim=True)
        scales = self.scales(largest, self.element).where(largest.isfinite(), torch.nan)
        units = torch.where(scales == 0, 0.0, blocks_RK / scales)
        return self.element.saturate(units) * scales


def float32_scales(largest: Float[Tensor, "*R 1"], element: FloatFormat) -> Float[Tensor, "*R 1"]:
    """Scales that bring the largest entry of a block to the largest number of the format."""
    scales = largest / element.largest
    return scales.where(scales > 0, 1.0)


def power_of_two_scales(largest: Float[Tensor, "*R 1"], element: FloatFormat) -> Float[Tensor, "*R 1"]:
    """Scales of 8 bits, all of them exponent (E8M0): the powers of two from 2**-127 to 2**127.

    Source: OCP Microscaling Formats (MX) v1.0, section 6.3.
    """
    _, top = math.frexp(element.largest)
    exponents = torch.frexp(largest).exponent.sub_(top).clamp_(-127, 127)
    return 1 / power_of_two(exponents.neg_(), largest.dtype)


def two_level_scales(largest: Float[Tensor, "*R 1"], element: FloatFormat) -> Float[Tensor, "*R 1"]:
    """Scales in E4M3 times one float32 scale of the tensor, which brings the largest of them to the end of E4M3.

    Source: NVIDIA 2025, "Pretraining large language models with NVFP4" (arXiv 2509.25149, appendix C).
    """
    of_tensor = largest.amax() / (E4M3.largest * element.largest)
    of_tensor = of_tensor.where(of_tensor > 0, 1.0)
    return E4M3.saturate(largest / element.largest / of_tensor) * of_tensor


def power_of_two(exponents: Tensor, dtype: torch.dtype) -> Tensor:
    """2**exponents, exactly; exponents are those of normal numbers of float32 or float64."""
    integers, mantissa_bits, bias = _WIDTHS[dtype]
    return ((exponents.to(integers) + bias) << mantissa_bits).view(dtype)


FP16 = FloatFormat(
    name="fp16", bias=15, mantissa_bits=10, largest=65504.0, beyond=math.inf, dtype=torch.float16
)  # fmt: skip
BF16 = FloatFormat(
    name="bf16",
    bias=127,
    mantissa_bits=7,
    largest=torch.finfo(torch.bfloat16).max,
    beyond=math.inf,
    dtype=torch.bfloat16,
)
E4M3 = FloatFormat(name="e4m3", bias=7, mantissa_bits=3, largest=448.0, beyond=math.nan)
E5M2 = FloatFormat(name="e5m2", bias=15, mantissa_bits=2, largest=57344.0, beyond=math.inf)
E2M1 = FloatFormat(name="e2m1", bias=1, mantissa_bits=1, largest=6.0, beyond=6.0)

FORMATS: Mapping[str, NumberFormat] = {
    one.name: one
    for one in (
        FP16,
        BF16,
        E4M3,
        E5M2,
        BlockFormat(name="scaled_e4m3", element=E4M3, block=None, scales=float32_scales),
        BlockFormat(name="scaled_e5m2", element=E5M2, block=None, scales=float32_scales),
        BlockFormat(name="mxfp8", element=E4M3, block=32, scales=power_of_two_scales),
        BlockFormat(name="mxfp8_e5m2", element=E5M2, block=32, scales=power_of_two_scales),
        BlockFormat(name="mxfp4", element=E2M1, block=32, scales=power_of_two_scales),
        BlockFormat(name="nvfp4", element=E2M1, block=16, scales=two_level_scales),
    )
}
"""Formats by the names that configs use. E4M3 and E5M2 as such overflow; as "scaled_..." a scale fits them to a tensor."""


def round_to(x: Float[Tensor, "*S"], format: NumberFormat, *, axis: int = -1) -> Float[Tensor, "*S"]:
    """The nearest of `x` that a format can say, in the dtype of `x`; the gradient passes straight through.

    Args:
        x: any shape, a floating dtype; 16-bit ones are rounded by way of float32.
        format: one of `FORMATS`, or your own.
        axis: along which entries share a scale.

    Raises:
        ValueError: `x` holds whole numbers, or has no such axis.

    Cost: about ten passes over `x`, in float32 or wider.
    """
    if not x.is_floating_point():
        raise ValueError(f"`x` must hold floating-point numbers to be rounded to {format.name}; got {x.dtype}.")
    if x.ndim and not -x.ndim <= axis < x.ndim:
        raise ValueError(f"`axis` must be one of the {x.ndim} axes of `x`; got {axis}.")
    return _StraightThrough.apply(x, format, axis)  # pyright: ignore[reportReturnType]


class _StraightThrough(torch.autograd.Function):
    """The derivative of rounding, taken to be one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, format: NumberFormat, axis: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        exact = x if x.dtype in _WIDTHS else x.to(torch.float32)
        return format.round(exact, axis).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient, None, None
