"""Real factors as whole numbers and shifts, and rounded division of whole numbers.

Legend of shapes: C channels.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

MANTISSA_BITS = 31
_MOST_SHIFT = 62


@dataclass(frozen=True, kw_only=True, eq=False)
class Multipliers:
    """Positive factors `M = mantissa * 2**-shift`, one for each channel.

    In the letters of the paper `M = 2**-n M0` with `n = shift - 31` and `M0 = mantissa * 2**-31`, which lies in [1/2, 1) unless
    the factor is so small that the shift would pass 62. There a factor is below one; here also above, up to 2**30.

    Args:
        mantissa_C: int64, from 0 to 2**31 - 1.
        shift_C: int64, from 1 to 62.

    Raises:
        ValueError: other dtypes, shapes or ranges.

    Source: Jacob et al. 2018, section 2.2, equation 6.
    """

    mantissa_C: Int[Tensor, "C"]
    shift_C: Int[Tensor, "C"]

    def __post_init__(self) -> None:
        mantissa, shift = self.mantissa_C, self.shift_C
        whole = mantissa.dtype == torch.int64 and shift.dtype == torch.int64 and mantissa.shape == shift.shape
        if not whole or mantissa.ndim != 1:
            raise ValueError(
                "mantissas and shifts must be int64 and one for each channel; got "
                f"{mantissa.dtype} {tuple(mantissa.shape)} and {shift.dtype} {tuple(shift.shape)}."
            )
        fits = (mantissa >= 0) & (mantissa < 1 << MANTISSA_BITS) & (shift >= 1) & (shift <= _MOST_SHIFT)
        if not fits.all():
            at = int((~fits).nonzero()[0])
            raise ValueError(
                f"mantissas lie in [0, 2**31) and shifts in [1, 62], or products would not fit into 64 bits; channel {at} has "
                f"{int(mantissa[at])} and {int(shift[at])}."
            )

    @staticmethod
    def nearest(factors_C: Float[Tensor, "C"]) -> "Multipliers":
        """Those next to some real factors; factors that are float32 numbers of at least 2**-32 are hit exactly.

        Raises:
            ValueError: a factor is not finite, not positive, or 2**30 or more.
        """
        factors = factors_C.detach().to(torch.float64)
        fits = torch.isfinite(factors) & (factors > 0) & (factors < 2.0 ** (MANTISSA_BITS - 1))
        if not fits.all():
            at = int((~fits).nonzero()[0])
            raise ValueError(
                f"factors between scales must be positive and below 2**30; channel {at} has {float(factors[at]):g}. A range of "
                "an activation or of a weight is degenerate: calibrate again."
            )
        fraction, exponent = torch.frexp(factors)
        shift = (MANTISSA_BITS - exponent.to(torch.int64)).clamp(max=_MOST_SHIFT)
        mantissa = torch.ldexp(fraction, shift + exponent).round().to(torch.int64)
        carried = mantissa == 1 << MANTISSA_BITS
        return Multipliers(
            mantissa_C=torch.where(carried, mantissa >> 1, mantissa), shift_C=torch.where(carried, shift - 1, shift)
        )

    def factors(self) -> Float[Tensor, "C"]:
        """The factors as float64 numbers, which they are exactly."""
        return torch.ldexp(self.mantissa_C.to(torch.float64), -self.shift_C)

    def times(self, sums: Int[Tensor, "..."], axis: int = 1) -> Int[Tensor, "..."]:
        """`round(M * sums)`, halves to the even neighbour, as int64.

        Args:
            sums: int32 or int64 numbers below 2**31 in magnitude.
            axis: that of the channels; a single factor is for all.
        """
        shape = [1] * sums.ndim
        shape[axis] = -1
        mantissa, shift = self.mantissa_C.view(shape), self.shift_C.view(shape)
        return shifted(sums.to(torch.int64) * mantissa, shift)


def shifted(numbers: Int[Tensor, "..."], shift: Tensor | int) -> Int[Tensor, "..."]:
    """`round(numbers / 2**shift)` of int64 numbers, halves to the even neighbour; `shift` from 1 to 62."""
    amount = torch.as_tensor(shift, dtype=torch.int64, device=numbers.device)
    below = numbers >> amount
    rest = numbers - (below << amount)
    half = torch.ones_like(amount) << (amount - 1)
    return below + ((rest > half) | ((rest == half) & (below % 2 == 1)))


def divided(numbers: Int[Tensor, "..."], divisor: int) -> Int[Tensor, "..."]:
    """`round(numbers / divisor)` of int64 numbers, halves to the even neighbour; a positive divisor below 2**62."""
    below = torch.div(numbers, divisor, rounding_mode="floor")
    twice = 2 * (numbers - below * divisor)
    return below + ((twice > divisor) | ((twice == divisor) & (below % 2 == 1)))


def on_one_shift(first: Multipliers, second: Multipliers) -> tuple[int, int, int]:
    """Mantissas of two single factors with one shift: `(m1, m2, shift)`.

    Exact where one factor is at most 2**20 times the other; else the smaller loses what lies 2**-50 below the larger.
    """
    shifts = [int(one.shift_C) for one in (first, second)]
    shift = min(max(shifts), min(shifts) + 20)
    mantissas = [
        int(one.mantissa_C) << shift - own if own <= shift else int(shifted(one.mantissa_C, own - shift))
        for one, own in zip((first, second), shifts, strict=True)
    ]
    return mantissas[0], mantissas[1], shift
