"""Fake quantizers: modules that round activations and weights to grids, and find or learn these grids.

Whatever a save must keep of them is a buffer or a parameter.

Legend of shapes: C channels.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.functional import fake_quantize, fake_quantize_learned, grid_codes, symmetric_high
from featherlight.transforms.quantize.ranges import least_squares_scales
from featherlight.transforms.statistics import statistics_are_frozen


@dataclass(frozen=True, kw_only=True)
class ActivationGrid:
    """The grid of activations, one for a whole tensor.

    Args:
        bits: 8, or fewer in simulation.
        symmetric: whether ranges are as wide below 0 as above it; 0 is then always number 128 (of 8 bits). Else a range is as
            wide as the values, and takes in 0.
    """

    bits: int = 8
    symmetric: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"`bits` of activations must be from 2 to 8; got {self.bits}.")

    @property
    def levels(self) -> int:
        """The highest whole number; the lowest is 0."""
        return (1 << self.bits) - 1

    def fitted(self, low: Tensor, high: Tensor) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Scale and zero point of a range, which takes in 0; a range of nothing but 0 has a scale of 1.

        0 stands on the grid exactly, so that padding with zeros is exact.
        """
        if self.symmetric:
            middle = (self.levels + 1) // 2
            scale = torch.maximum(-low, high) / (self.levels - middle)
            zero_point = torch.full_like(scale, middle)
        else:
            scale = (high - low) / self.levels
            zero_point = torch.round(-low / scale.clamp(min=_TINY))
        found = scale > _TINY
        return torch.where(found, scale, torch.ones_like(scale)), zero_point.clamp(0, self.levels)


_TINY = 1e-30


class ActivationQuantizer(Protocol):
    """Rounds activations to the grid of a range, which it follows in training."""

    grid: ActivationGrid

    def scale_and_zero(self) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The present grid."""
        ...

    def observe(self, x: Tensor) -> None:
        """Takes a batch into account, unless statistics are frozen."""
        ...

    def set_range(self, low: float, high: float) -> None:
        """Starts from a range that calibration has found; it takes in 0."""
        ...

    def rounded(self, x: Tensor) -> Tensor:
        """`x` on the grid, with gradients."""
        ...


class MovingRange(nn.Module):
    """A range that follows the lowest and highest values of batches as moving averages; the first batch starts it.

    Args:
        grid: its kind.
        momentum: weight of a batch.

    Attributes:
        low: the lower end.
        high: the upper end.
        batches: how many were taken into account; the counter of saves and tests.

    Source: Jacob et al. 2018, section 3.1.
    """

    low: Tensor
    high: Tensor
    batches: Tensor

    def __init__(self, grid: ActivationGrid, momentum: float) -> None:
        super().__init__()
        self.grid = grid
        self._momentum = momentum
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """One pass over `x`."""
        if statistics_are_frozen():
            return
        low, high = _ends(x)
        share = torch.where(self.batches == 0, 1.0, self._momentum)
        self.low.lerp_(low.to(self.low), share)
        self.high.lerp_(high.to(self.high), share)
        self.batches += 1

    @torch.no_grad()
    def set_range(self, low: float, high: float) -> None:
        """Starts there."""
        self.low.fill_(min(low, 0.0))
        self.high.fill_(max(high, 0.0))
        self.batches.fill_(1)

    def scale_and_zero(self) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The present grid."""
        return self.grid.fitted(self.low, self.high)

    def rounded(self, x: Tensor) -> Tensor:
        """With gradients straight through within the range."""
        scale, zero_point = self.scale_and_zero()
        return fake_quantize(x, scale, zero_point, 0, self.grid.levels)


class LearnedRange(nn.Module):
    """A range whose scale is learned with the weights; the first batch, or calibration, starts it. The zero point stays.

    Args:
        grid: its kind.

    Attributes:
        log_scale: logarithm of the learned scale, so that an optimizer whose steps have one length moves it by a share.
        zero_point: as the start has it.
        batches: 0 until it is started.

    Source: Esser et al. 2020 (LSQ), who learn the scale itself; its logarithm: Jain et al. 2020; other zero points: Bhalgat
    et al. 2020 (LSQ+), who learn them too.
    """

    zero_point: Tensor
    batches: Tensor

    def __init__(self, grid: ActivationGrid) -> None:
        super().__init__()
        self.grid = grid
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("zero_point", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """The first batch starts the range."""
        if not statistics_are_frozen() and not int(self.batches):
            self._start(*_ends(x))

    @torch.no_grad()
    def set_range(self, low: float, high: float) -> None:
        """Starts there."""
        self._start(self.zero_point.new_tensor(min(low, 0.0)), self.zero_point.new_tensor(max(high, 0.0)))

    def scale_and_zero(self) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The present grid."""
        return self.log_scale.exp(), self.zero_point

    def rounded(self, x: Tensor) -> Tensor:
        """With gradients of `x` and of the scale."""
        scale, zero_point = self.scale_and_zero()
        return fake_quantize_learned(x, scale, zero_point, 0, self.grid.levels)

    def _start(self, low: Tensor, high: Tensor) -> None:
        scale, zero_point = self.grid.fitted(low, high)
        self.log_scale.copy_(scale.log())
        self.zero_point.copy_(zero_point)
        self.batches.fill_(1)


class WeightQuantizer(nn.Module):
    """Rounds weights to whole numbers that are symmetric about 0, with a scale for each channel of the first axis.

    Args:
        weight: as it is at the start.
        bits: 8, or fewer in simulation.
        learned: whether scales are learned, from those with the least squared error on; else they follow the largest entry
            of each channel.

    Attributes:
        log_scale_C: logarithms of the learned scales; None where they follow.
        shrink_C: share of the largest entry that ranges take in where they follow; 1 unless calibration has found better.

    Source: Krishnamoorthi 2018, section 3.1.3; learned: Esser et al. 2020, who start from twice the mean, which is too coarse
    for 8 bits.
    """

    log_scale_C: nn.Parameter | None
    shrink_C: Tensor

    def __init__(self, weight: Tensor, *, bits: int, learned: bool) -> None:
        super().__init__()
        self.high = symmetric_high(bits)
        made = None if not learned else nn.Parameter(_positive(least_squares_scales(weight, self.high)).log())
        self.register_parameter("log_scale_C", made)
        self.register_buffer("shrink_C", torch.ones(len(weight), dtype=weight.dtype, device=weight.device))

    def scales(self, weight: Tensor) -> Float[Tensor, "C"]:
        """What one unit is worth in each channel; a channel of zeros has the largest scale of the others."""
        if self.log_scale_C is not None:
            return self.log_scale_C.exp()
        largest = weight.detach().flatten(1).abs().amax(1) * self.shrink_C
        return _positive(largest / self.high)

    def forward(self, weight: Tensor) -> Tensor:
        """`weight` on its grid, with gradients."""
        scale = self.scales(weight).view(-1, *[1] * (weight.ndim - 1))
        call = fake_quantize if self.log_scale_C is None else fake_quantize_learned
        return call(weight, scale, 0.0, -self.high, self.high)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> tuple[Tensor, Float[Tensor, "C"]]:
        """The whole numbers, as floats, and the scales."""
        scale = self.scales(weight).detach()
        return grid_codes(weight, scale.view(-1, *[1] * (weight.ndim - 1)), 0.0, -self.high, self.high), scale

    @torch.no_grad()
    def fit(self, weight: Tensor) -> None:
        """Takes the scales with the least squared error."""
        best = least_squares_scales(weight, self.high)
        if self.log_scale_C is not None:
            self.log_scale_C.copy_(_positive(best).log())
            return
        largest = weight.flatten(1).abs().amax(1) / self.high
        self.shrink_C.copy_(torch.where(largest > 0, best / largest.clamp(min=_TINY), 1.0))


def _ends(x: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value, or 0."""
    low, high = x.detach().aminmax()
    return low.clamp(max=0), high.clamp(min=0)


def _positive(scale_C: Tensor) -> Tensor:
    fallback = torch.where(scale_C.amax() > _TINY, scale_C.amax(), 1.0)
    return torch.where(scale_C > _TINY, scale_C, fallback).detach()
