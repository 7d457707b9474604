"""Which range a grid spans: chosen from calibration data, followed while training, or learned.

Legend of shapes: N bins, K candidates, C channels.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from featherlight.functional import grid_codes

_WEIGHT_CANDIDATES = 40
_LEAST_SHRINK = 0.2


@dataclass(frozen=True, kw_only=True, eq=False)
class Histogram:
    """How often the values of an activation fell into equal bins.

    Attributes:
        counts_N: of the bins, float64.
        low: lowest value seen, where the first bin begins.
        high: highest value seen, where the last bin ends.
    """

    counts_N: Float[Tensor, "N"]
    low: float
    high: float

    @property
    def edges(self) -> Float[Tensor, "N+1"]:
        """Ends of the bins, float64."""
        return torch.linspace(self.low, self.high, len(self.counts_N) + 1, dtype=torch.float64)


class CalibrationRange(Protocol):
    """Chooses the range of an activation from its histogram."""

    def ends(self, seen: Histogram, *, levels: int) -> tuple[float, float]:
        """The lowest and the highest value that are to be told apart; the caller widens them to take in 0.

        Args:
            seen: of the activation on all calibration data.
            levels: how many steps the grid has: 255 with 8 bits.
        """
        ...


@dataclass(frozen=True)
class MinMax:
    """All that was seen. An outlier makes the steps coarse for all others."""

    def ends(self, seen: Histogram, *, levels: int) -> tuple[float, float]:
        """The lowest and the highest value seen."""
        return seen.low, seen.high


@dataclass(frozen=True, kw_only=True)
class Percentile:
    """All but a small share at either end.

    Args:
        share: of the values that lie below the upper end, and above the lower one.

    Source: Krishnamoorthi 2018; Wu et al. 2020 (99.99% is what they take for most networks).
    """

    share: float = 0.9999

    def __post_init__(self) -> None:
        if not 0.5 < self.share <= 1:
            raise ValueError(f"`share` must lie in (0.5, 1]; got {self.share}. 0.9999 cuts one value of 10,000 off.")

    def ends(self, seen: Histogram, *, levels: int) -> tuple[float, float]:
        """To the width of a bin."""
        below = seen.counts_N.cumsum(0) / seen.counts_N.sum()
        last = len(below) - 1
        first = int(torch.searchsorted(below, 1 - self.share, right=True))
        final = int(torch.searchsorted(below, torch.tensor(self.share, dtype=below.dtype)))
        edges = seen.edges
        return float(edges[min(first, last)]), float(edges[min(final, last) + 1])


@dataclass(frozen=True, kw_only=True)
class LeastSquares:
    """What makes the sum of squared errors of rounding and cutting least, among ranges shrunk step by step at either end.

    Args:
        candidates: for each end.

    Source: Banner et al. 2019 and Choukroun et al. 2019 minimize the same error; this searches for it.
    """

    candidates: int = 48

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise ValueError(f"`candidates` must be at least 2 for each end; got {self.candidates}.")

    def ends(self, seen: Histogram, *, levels: int) -> tuple[float, float]:
        """The best pair."""
        edges = seen.edges
        centers_N = (edges[1:] + edges[:-1]) / 2
        shrink = torch.linspace(1.0, 1 / self.candidates, self.candidates, dtype=torch.float64)
        lows = shrink * min(seen.low, 0.0) if seen.low < 0 else shrink.new_zeros(1)
        highs = shrink * max(seen.high, 0.0) if seen.high > 0 else shrink.new_zeros(1)
        low_K, high_K = (one.flatten() for one in torch.meshgrid(lows, highs, indexing="ij"))
        scale_K = ((high_K - low_K) / levels).clamp(min=torch.finfo(torch.float64).tiny)
        zero_K = torch.round(-low_K / scale_K)
        error_K = torch.zeros_like(scale_K)
        filled = seen.counts_N > 0
        for centers, counts in zip(centers_N[filled].split(256), seen.counts_N[filled].split(256), strict=True):
            units = grid_codes(centers, scale_K[:, None], zero_K[:, None], 0, levels) - zero_K[:, None]
            error_K += ((units * scale_K[:, None] - centers).square() * counts).sum(1)
        best = int(error_K.argmin())
        return float(low_K[best]), float(high_K[best])


def least_squares_scales(weight: Tensor, high: int) -> Float[Tensor, "C"]:
    """Scales of the first axis of a weight with the least squared error, among 40 between the largest entry and a fifth of it.

    Args:
        weight: at least one axis; the first is that of the channels.
        high: the highest whole number of the symmetric grid.
    """
    rows = weight.detach().flatten(1) if weight.ndim > 1 else weight.detach()[:, None]
    largest_C = rows.abs().amax(1)
    best_C, least_C = largest_C / high, torch.full_like(largest_C, torch.inf)
    for shrink in torch.linspace(1.0, _LEAST_SHRINK, _WEIGHT_CANDIDATES).tolist():
        scale_C = (largest_C * shrink / high).clamp(min=torch.finfo(rows.dtype).tiny)
        error_C = (grid_codes(rows, scale_C[:, None], 0.0, -high, high) * scale_C[:, None] - rows).square().sum(1)
        better = error_C < least_C
        best_C, least_C = torch.where(better, scale_C, best_C), torch.where(better, error_C, least_C)
    return best_C
