"""Codes as tables of tokens, which a prior can learn and draw, and back.

Legend of shapes: B examples, s positions by row and column or time, T all positions, S slots of a position, k mixed codes.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from featherlight.nn.vector_quantizers import Codes


@dataclass(frozen=True, kw_only=True)
class TokenTable:
    """How the codes of a position are told as tokens: indices, then shares of all mixed codes but the last.

    Attributes:
        num_codes: of a codebook.
        code_shape: axes of the codes behind those of the positions.
        units: parts that the shares of mixed codes are counted in; None where there are no shares.
    """

    num_codes: int
    code_shape: tuple[int, ...]
    units: int | None = None

    @property
    def slots(self) -> tuple[int, ...]:
        """How many values each token of a position can have."""
        indices = math.prod(self.code_shape)
        if self.units is None:
            return (self.num_codes,) * indices
        return (self.num_codes + 1,) * indices + (self.units + 1,) * (indices - indices // self.code_shape[-1])

    def to_tokens(self, codes: Codes) -> Int[Tensor, "B T S"]:
        """The tokens of codes; the index of a code that is not there is `num_codes`."""
        axes = len(self.code_shape)
        last = codes.indices.ndim - axes
        indices = codes.indices.flatten(1, last - 1).flatten(2) if axes else codes.indices.flatten(1)[..., None]
        if self.units is None:
            return indices
        assert codes.weights is not None, "mixed codes have shares"
        shares = (codes.weights * self.units).round().long()[..., :-1].flatten(1, last - 1).flatten(2)
        return torch.cat([torch.where(indices < 0, self.num_codes, indices), shares], -1)

    def to_codes(self, tokens: Int[Tensor, "B T S"], positions: tuple[int, ...]) -> Codes:
        """Codes of tokens. Shares that sum to more than a whole, as a prior may draw them, are cut in their order.

        Args:
            tokens: as of `to_tokens`.
            positions: sizes whose product is T.
        """
        shape = (len(tokens), *positions, *self.code_shape)
        count = math.prod(self.code_shape)
        indices = tokens[..., :count].reshape(shape)
        if self.units is None:
            return Codes(indices)
        given = tokens[..., count:].reshape(*shape[:-1], self.code_shape[-1] - 1)
        there = indices < self.num_codes
        there[..., 0] = True
        given = torch.where(there[..., :-1], given, 0)
        spent = given.cumsum(-1).clamp(max=self.units)
        shares = torch.cat([spent[..., :1], spent.diff(dim=-1), self.units - spent[..., -1:]], -1)
        shares[..., 0] += torch.where(there[..., -1], 0, shares[..., -1])
        shares[..., -1] = torch.where(there[..., -1], shares[..., -1], 0)
        indices = torch.where(indices < self.num_codes, indices, torch.where(shares > 0, 0, -1))
        return Codes(indices, shares / self.units)
