"""Grouped (product) quantization: each quantizer takes its own share of the features.

Legend of shapes: ... are positions (batch, time, rows, columns), N all of them, F features, Q groups.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.nn.vector_quantizers.parts import check_parts, part_codes, stack_codes, to_row_codes
from featherlight.nn.vector_quantizers.positions import to_rows
from featherlight.nn.vector_quantizers.results import Codes, Quantized, Quantizer


class GroupedQuantizer(nn.Module):
    """Quantizers side by side: the first takes the first features, the next those behind them, and so on.

    Codes have an axis of groups, Q, behind those of the positions.

    Args:
        groups: quantizers of any numbers of features and the same `code_shape`, in the order of their features.
        channel_axis: where features stand in the inputs; 1 for images (N, C, H, W). The groups' own is not used.

    Attributes:
        dim: F, the sum of the groups' features.
        groups: as given.

    Raises:
        ValueError: no groups, or groups that do not fit together.

    Cost: that of the groups; at equal bits their codebooks are far smaller than a single one.
    Source: Jégou, Douze, Schmid 2011, "Product quantization for nearest neighbor search", section II.C.
    """

    def __init__(self, groups: Sequence[Quantizer], *, channel_axis: int = -1) -> None:
        super().__init__()
        self.groups = nn.ModuleList(check_parts("groups", groups, same_dim=False))
        self.dim, self.channel_axis = sum(group.dim for group in groups), channel_axis

    @property
    def bits_per_position(self) -> float:
        """The sum over the groups."""
        return sum(group.bits_per_position for group in self._groups())

    @property
    def code_shape(self) -> tuple[int, ...]:
        """(Q,) and the axes of the groups."""
        return (len(self.groups), *self._groups()[0].code_shape)

    def forward(self, x: Float[Tensor, "..."], *, mask: Tensor | None = None) -> Quantized:
        """Quantizes each share of the features of `x`; their auxiliary losses are added. See `Quantizer`."""
        positions = to_rows(x, dim=self.dim, channel_axis=self.channel_axis, mask=mask)
        shares = positions.rows_NF.split([group.dim for group in self._groups()], dim=1)
        parts = [group(share, mask=positions.mask_N) for group, share in zip(self._groups(), shares, strict=True)]
        return Quantized(
            positions.to_values(torch.cat([part.values for part in parts], dim=1)),
            stack_codes([part.codes for part in parts], positions.shape),
            torch.stack([part.aux_loss for part in parts]).sum(),
        )

    def codes_to_values(self, codes: Codes) -> Float[Tensor, "..."]:
        """The values of codes, features at `channel_axis`; 0 where an index is -1.

        Raises:
            ValueError: codes of another number of groups.
        """
        rows, shape = to_row_codes(codes, self.code_shape)
        if rows.indices.shape[1] != len(self.groups):
            raise ValueError(
                f"Codes of all {len(self.groups)} groups are needed, as each holds its own features; got those of "
                f"{rows.indices.shape[1]}."
            )
        parts = [group.codes_to_values(part_codes(rows, n)) for n, group in enumerate(self._groups())]
        return torch.cat(parts, dim=1).reshape(*shape, self.dim).movedim(-1, self.channel_axis)

    def extra_repr(self) -> str:
        """What it was made with."""
        return f"channel_axis={self.channel_axis}"

    def _groups(self) -> list[Quantizer]:
        return cast(list[Quantizer], list(self.groups))
