"""At which powers of two the entries of a tensor lie, and what of them a format would lose."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from featherlight.functional.float_formats import FloatFormat, NumberFormat

_LOWEST, _HIGHEST = -150, 127  # of float32, its subnormals included


@dataclass(frozen=True, kw_only=True)
class ExponentCounts:
    """How many entries of a tensor lie at each power of two.

    Attributes:
        counts: by exponent e, entries of 2**e <= |x| < 2**(e + 1); those that no entry has are left out.
        zeros: entries that are zero.
        non_finite: entries that are infinite or NaN.
    """

    counts: Mapping[int, int]
    zeros: int
    non_finite: int

    @property
    def total(self) -> int:
        """All entries."""
        return sum(self.counts.values()) + self.zeros + self.non_finite

    def shares(self, exponents: range) -> list[float]:
        """The share of all entries at each of some exponents; what lies outside is counted at the ends."""
        found = [0] * len(exponents)
        for exponent, count in self.counts.items():
            found[min(max(exponent, exponents.start), exponents.stop - 1) - exponents.start] += count
        return [count / max(self.total, 1) for count in found]


@dataclass(frozen=True, kw_only=True)
class LostShares:
    """What rounding to a format loses.

    Attributes:
        zeroed: share of the non-zero entries that become zero.
        subnormal: share of them that stay above zero with fewer bits; zero for formats of blocks, whose scales move.
        overflowed: share of them that lie beyond the largest number.
        error: the Euclidean norm of the difference over that of the tensor, over the entries that do not overflow.
    """

    zeroed: float
    subnormal: float
    overflowed: float
    error: float


def count_exponents(x: Float[Tensor, "*S"]) -> ExponentCounts:
    """Counts the entries of a tensor (any shape and floating dtype) by their powers of two, which float32 can say."""
    size = x.detach().float().abs().flatten()
    finite = size[size.isfinite()]
    non_zero = finite[finite > 0]
    exponents = torch.frexp(non_zero).exponent.to(torch.int64).sub_(1 + _LOWEST)
    bins = torch.bincount(exponents, minlength=_HIGHEST - _LOWEST + 1).tolist()
    return ExponentCounts(
        counts={exponent: count for exponent, count in enumerate(bins, _LOWEST) if count},
        zeros=len(finite) - len(non_zero),
        non_finite=len(size) - len(finite),
    )


def lost_shares(x: Float[Tensor, "*S"], format: NumberFormat, *, axis: int = -1) -> LostShares:
    """What rounding a tensor (any shape and floating dtype) to a format loses.

    Args:
        x: finite entries; others are left out of the shares, but make their block NaN in a format of blocks.
        format: such as one of `featherlight.functional.FORMATS`.
        axis: along which entries share a scale.
    """
    exact = x.detach().float()
    rounded = format.round(exact, axis)
    counted = exact.isfinite() & (exact != 0)
    num = max(int(counted.sum()), 1)
    size = rounded.abs()
    limits = format if isinstance(format, FloatFormat) else None
    subnormal = torch.zeros_like(counted) if limits is None else (size > 0) & (size < limits.smallest_normal)
    beyond = ~rounded.isfinite() if limits is None else ~rounded.isfinite() | (exact.abs() > _end(limits))
    kept = exact.isfinite() & ~beyond
    error = (rounded - exact)[kept].double().norm() / exact[kept].double().norm().clamp_min(1e-300)
    return LostShares(
        zeroed=float((counted & (size == 0)).sum()) / num,
        subnormal=float((counted & subnormal).sum()) / num,
        overflowed=float((counted & beyond).sum()) / num,
        error=float(error),
    )


def _end(format: FloatFormat) -> float:
    """The largest magnitude that still rounds to the largest number."""
    top = torch.tensor(format.largest, dtype=torch.float64).frexp().exponent.item() - 1
    return format.largest + 2.0 ** (top - format.mantissa_bits - 1)
