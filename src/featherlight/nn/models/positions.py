"""How a Transformer knows where a token stands: parts that are added to the tokens, or that turn queries and keys.

Legend of shapes: B sequences, T positions, D features, H heads, E features of a head.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Positions(Protocol):
    """Makes what tells positions; both layers take `(x, start)`, `start` being the position of the first token of `x`."""

    def added(self, max_length: int, width: int) -> nn.Module:
        """A layer from tokens (B, T, D) to tokens with their positions."""
        ...

    def turned(self, max_length: int, head_width: int) -> nn.Module:
        """A layer from queries or keys (B, H, T, E) to such that know their positions."""
        ...


@dataclass(frozen=True)
class LearnedPositions:
    """A vector for each position, learned. Source: Gehring et al. 2017; Radford et al. 2019."""

    def added(self, max_length: int, width: int) -> nn.Module:
        """Adds rows of a table that starts at scale 0.02."""
        return _Table(nn.Parameter(0.02 * torch.randn(max_length, width)))

    def turned(self, max_length: int, head_width: int) -> nn.Module:
        """Changes nothing."""
        return _Unchanged()


@dataclass(frozen=True, kw_only=True)
class Sinusoidal:
    """Sines and cosines of each position at many frequencies.

    Args:
        base: of the longest wave length, 2 pi `base`.

    Source: Vaswani et al. 2017, section 3.5.
    """

    base: float = 10000.0

    def added(self, max_length: int, width: int) -> nn.Module:
        """Adds rows of a fixed table."""
        angles_TE = _angles(max_length, width + width % 2, self.base)
        return _Table(torch.stack([angles_TE.sin(), angles_TE.cos()], -1).flatten(1)[:, :width])

    def turned(self, max_length: int, head_width: int) -> nn.Module:
        """Changes nothing."""
        return _Unchanged()


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Turns pairs of features of queries and keys by angles that grow with the position, so that scores go by distance.

    Args:
        base: of the slowest turn.

    Source: Su et al. 2021 (RoFormer), section 3.2. Feature i is paired with feature i + E/2, as Llama pairs them.
    """

    base: float = 10000.0

    def added(self, max_length: int, width: int) -> nn.Module:
        """Changes nothing."""
        return _Unchanged()

    def turned(self, max_length: int, head_width: int) -> nn.Module:
        """Turns; raises ValueError where a head has an odd number of features."""
        if head_width % 2:
            raise ValueError(
                f"rotary positions turn pairs of features, so that a head needs an even number of them; got {head_width}. Change "
                "the width or the number of heads."
            )
        return _Turned(_angles(max_length, head_width, self.base))


class _Unchanged(nn.Module):
    def forward(self, x: Tensor, start: int) -> Tensor:
        return x


class _Table(nn.Module):
    """Adds the rows of a table."""

    table_TD: Tensor

    def __init__(self, table_TD: Tensor) -> None:
        super().__init__()
        if isinstance(table_TD, nn.Parameter):
            self.table_TD = table_TD
        else:
            self.register_buffer("table_TD", table_TD, persistent=False)

    def forward(self, x_BTD: Tensor, start: int) -> Tensor:
        return x_BTD + self.table_TD[start : start + x_BTD.shape[1]].to(x_BTD.dtype)


class _Turned(nn.Module):
    """Turns pairs of features."""

    cos_TE: Tensor
    sin_TE: Tensor

    def __init__(self, angles_Te: Tensor) -> None:
        super().__init__()
        self.register_buffer("cos_TE", angles_Te.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin_TE", angles_Te.sin().repeat(1, 2), persistent=False)

    def forward(self, x_BHTE: Float[Tensor, "B H T E"], start: int) -> Float[Tensor, "B H T E"]:
        rows = slice(start, start + x_BHTE.shape[2])
        low, high = x_BHTE.chunk(2, -1)
        across = torch.cat([-high, low], -1)
        return x_BHTE * self.cos_TE[rows].to(x_BHTE.dtype) + across * self.sin_TE[rows].to(x_BHTE.dtype)


def _angles(length: int, width: int, base: float) -> Float[Tensor, "T e"]:
    """Of each position at each of `width / 2` frequencies."""
    rates_e = torch.exp(-math.log(base) * torch.arange(0, width, 2) / width)
    return torch.arange(length)[:, None] * rates_e
