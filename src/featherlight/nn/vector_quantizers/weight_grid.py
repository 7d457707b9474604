"""Weights of mixed codes that can be stored: shares that are whole multiples of one unit.

Legend of shapes: ... are positions, K codes of a codebook, k codes that are mixed at a position, m units of a whole.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class WeightGrid:
    """Shares of mixed codes are multiples of 1/m that sum to 1, with m = 2 ** bits - 1.

    A share of two codes then takes `bits` bits, since the other follows from it.

    Args:
        bits: 2 to 5.

    Attributes:
        units: m.

    Raises:
        ValueError: another number of bits.
    """

    bits: int

    def __post_init__(self) -> None:
        if self.bits not in (2, 3, 4, 5):
            raise ValueError(
                f"`bits` of a grid of weights must be 2, 3, 4 or 5; got {self.bits}. With 1 bit nothing is mixed, and above 5 "
                "more codes say more than finer weights; `weight_grid=None` leaves the weights as they are."
            )

    @property
    def units(self) -> int:
        """m, the parts that a whole is cut into."""
        return 2**self.bits - 1

    def nearest(self, weights: Float[Tensor, "... k"]) -> Float[Tensor, "... k"]:
        """The point of the grid nearest to each row of weights, with the gradient of the weights themselves.

        Args:
            weights: shares of at least 0 that sum to 1, on the last axis; rows of zeros (masked positions) stay so. A
                share of 0 stays 0.

        Returns:
            Shares of the same shape and dtype; ties go to the code that stands first.

        Cost: k^2 comparisons a row for up to 8 codes, a sort for more.
        Source: largest-remainder rounding, which is the nearest lattice point of the simplex in every L_p norm (Bomze,
        Gollowitzer and Yildirim, "Rounding on the standard simplex", 2014). The gradient is straight through.
        """
        scaled = weights.detach() * self.units
        floors = scaled.floor()
        missing = (self.units - floors.sum(-1, keepdim=True)).round()
        raised = _order(scaled - floors) < missing
        present = scaled.sum(-1, keepdim=True) > self.units / 2
        rounded = torch.where(present, floors + raised, 0) / self.units
        return rounded + (weights - weights.detach())

    def num_points(self, num_codes: int, num_mixed: int) -> int:
        """How many mixtures there are of up to k of K codes: each set of codes with each way to share all units among it.

        Neither the order of the codes nor codes without a share are counted, so `log2` of it is what a position takes at
        a fixed length, its mixture being numbered. For many codes that is log2 k! under k indices and the weights.
        """
        return sum(math.comb(num_codes, size) * math.comb(self.units - 1, size - 1) for size in range(1, num_mixed + 1))


def _order(remainders: Float[Tensor, "... k"]) -> Tensor:
    """How many stand before each remainder when the largest comes first and equal ones stay in their order."""
    count = remainders.shape[-1]
    if count > 8:
        return remainders.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    places = torch.arange(count, device=remainders.device)
    mine, other = remainders[..., :, None], remainders[..., None, :]
    before = (other > mine) | ((other == mine) & (places[None, :] < places[:, None]))
    return before.sum(-1)
