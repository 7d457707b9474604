"""Weights as small whole numbers times a scale: how they are laid out, rounded and read.

Legend of shapes: R rows, C columns, G groups of a row, W bytes of a row.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_HALVES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class IntegerGrid:
    """Signed whole numbers of 8 or 4 bits, with a scale for each row or for each group of a row's columns.

    The scales are fixed when a weight is first rounded, by the largest magnitude they have to reach; what is stored later
    and lies beyond the ends of the grid is clipped to them. Two numbers of 4 bits share a byte: the first half of a row
    stands in the low halves of its bytes.

    Args:
        bits: 8 or 4.
        columns: C.
        group: columns that share a scale; None is the whole row.

    Memory: `bits` a weight and 32 bits a row, or 16 bits a group.
    """

    bits: int
    columns: int
    group: int | None = None

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ValueError(f"`bits` must be 8 or 4, the sizes there is a layout for; got {self.bits}.")
        if self.group is not None and (self.group < 2 or self.group % 2):
            raise ValueError(
                f"`group` must be an even number of columns that share a scale, or None for a scale a row; got {self.group}."
            )

    @property
    def highest(self) -> int:
        """The largest whole number; the smallest is one further from zero."""
        return 2 ** (self.bits - 1) - 1

    @property
    def padded(self) -> int:
        """C, rounded up to whole groups and whole bytes."""
        unit = self.group if self.group is not None else 2
        return -(-self.columns // unit) * unit

    @property
    def row_bytes(self) -> int:
        """W."""
        return self.padded * self.bits // 8

    def scales(self, weight: Float[Tensor, "R C"]) -> Float[Tensor, "R G"]:
        """What one unit is worth: float32 for rows, bfloat16 for groups; where all weights are zero, the mean of the others."""
        largest = self._grouped(weight.to(torch.float32)).abs().amax(-1)
        scales = largest / self.highest
        positive = scales[scales > 0]
        spare = positive.mean() if positive.numel() else scales.new_ones(())
        scales = torch.where(scales > 0, scales, spare)
        return scales if self.group is None else scales.to(torch.bfloat16)

    def round(
        self, exact: Float[Tensor, "R C"], scales: Float[Tensor, "R G"], *, halves: Int[Tensor, "R C"] | None = None
    ) -> Int[Tensor, "R W"]:
        """Whole numbers of some rows, as stored.

        Args:
            exact: what is rounded, float32 or float64.
            scales: of the rows.
            halves: random numbers in [0, 2**16), by which each is rounded up or down with the odds of the distance; None
                rounds to the nearest. What lies on the grid stays there.
        """
        units = self._grouped(exact) / scales[..., None].to(exact.dtype)
        if halves is None:
            units = units.round_()
        else:
            below = units.floor()
            odds = (units - below).mul_(_HALVES).round_()
            units = below + (self._grouped(halves).to(exact.dtype) < odds)
        codes = units.clamp_(-self.highest - 1, self.highest).to(torch.int8).flatten(1)
        if self.bits == 8:
            return codes
        low, high = (codes + 8).view(torch.uint8).chunk(2, dim=1)
        return low | high << 4

    def values(
        self, codes: Int[Tensor, "R W"], scales: Float[Tensor, "R G"], dtype: torch.dtype
    ) -> Float[Tensor, "R C"]:
        """The weights that stored rows stand for, in a new tensor."""
        units = torch.empty(len(codes), self.padded, dtype=dtype, device=codes.device)
        if self.bits == 8:
            units.copy_(codes)
        else:
            half = self.padded // 2
            units[:, :half] = codes & 15
            units[:, half:] = codes >> 4
            units.sub_(8)
        units.view(len(codes), scales.shape[1], -1).mul_(scales[..., None].to(dtype))
        return units[:, : self.columns]

    def _grouped(self, rows: Tensor) -> Tensor:
        """(R, C) as (R, G, columns of a group), zeros behind the last column."""
        if rows.shape[1] != self.padded:
            rows = torch.nn.functional.pad(rows, (0, self.padded - rows.shape[1]))
        return rows.reshape(len(rows), math.ceil(self.padded / (self.group or self.padded or 1)), -1)
