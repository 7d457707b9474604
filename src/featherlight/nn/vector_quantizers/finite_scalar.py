"""Finite scalar quantization: each feature is rounded to one of a few levels.

Legend of shapes: ... are positions (batch, time, rows, columns), N all of them, F features.
"""

import math
from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.nn.vector_quantizers.codebook import check_indices
from featherlight.nn.vector_quantizers.positions import to_rows
from featherlight.nn.vector_quantizers.results import Codes, Quantized

_WIDENING: Final = 1e-3
"""Share by which the bound exceeds the outermost levels, so that rounding reaches them."""


class FiniteScalarQuantizer(nn.Module):
    """Bounds each feature by a tanh and rounds it to its levels; the codebook is their product and is never stored.

    There is nothing to learn, to initialize or to collapse, hence no auxiliary loss. Gradients pass the rounding straight
    through, and the tanh as it is. Feature f takes the values -h / w ... h' / w with w = levels[f] // 2: for an odd number
    of levels evenly from -1 to 1, for an even one from -1 to 1 - 1 / w. A code's index counts the first feature fastest.

    Args:
        levels: how many values each feature takes, one number a feature, each at least 2; the source recommends at least 5:
            (8, 5, 5, 5) for 10 bits, (8, 8, 8, 5, 5) for 14.
        channel_axis: where features stand in the inputs; 1 for images (N, C, H, W).

    Attributes:
        dim: F, the number of features, len(levels).
        levels: as given.
        num_codes: product of the levels.
        levels_F: `levels` as a tensor.
        basis_F: what one step of each feature counts in the index.
        scale_F: w above.

    Raises:
        ValueError: no levels, fewer than two at a feature, or more codes than an index of 64 bits can count.

    Cost: some twenty operations a feature; no memory beyond the inputs'.
    Source: Mentzer, Minnen, Agustsson, Tschannen 2023, "Finite scalar quantization: VQ-VAE made simple", arXiv 2309.15505,
    section 3.1 and appendix A.1, with two mendings: the shift for even numbers of levels is atanh, the inverse of the bound
    (the appendix has tan), and a feature of two levels, for which the shift is infinite, is not shifted.
    """

    code_shape: tuple[int, ...] = ()
    """No axes of codes: one index a position."""

    levels_F: Tensor
    basis_F: Tensor
    scale_F: Tensor

    def __init__(self, levels: Sequence[int], *, channel_axis: int = -1) -> None:
        super().__init__()
        self.levels = tuple(levels)
        _check_levels(self.levels)
        self.dim = len(self.levels)
        self.num_codes = math.prod(self.levels)
        self.channel_axis = channel_axis
        basis = [math.prod(self.levels[:place]) for place in range(self.dim)]
        self.register_buffer("levels_F", torch.tensor(self.levels), persistent=False)
        self.register_buffer("basis_F", torch.tensor(basis), persistent=False)
        self.register_buffer("scale_F", torch.tensor([1.0 / (n // 2) for n in self.levels]), persistent=False)

    @property
    def bits_per_position(self) -> float:
        """Bits of a code's index: the sum of log2 of the levels."""
        return sum(math.log2(count) for count in self.levels)

    def forward(self, x: Float[Tensor, "..."], *, mask: Tensor | None = None) -> Quantized:
        """Rounds the features of `x`; see `Quantizer`."""
        positions = to_rows(x, dim=self.dim, channel_axis=self.channel_axis, mask=mask)
        bounded_NF = self._bound(positions.rows_NF)
        half_F = self.levels_F // 2
        whole_NF = torch.minimum(torch.maximum(bounded_NF.detach().round(), -half_F), self.levels_F - 1 - half_F)
        indices_N = ((whole_NF.long() + half_F) * self.basis_F).sum(-1)
        values_NF = (whole_NF + (bounded_NF - bounded_NF.detach())) / half_F
        return Quantized(
            positions.to_values(values_NF),
            Codes(positions.to_indices(indices_N)),
            torch.zeros((), device=x.device),
        )

    def codes_to_values(self, codes: Codes) -> Float[Tensor, "..."]:
        """The values of codes, features at `channel_axis`, in the dtype of the module; 0 where an index is -1."""
        check_indices(codes.indices, self.num_codes)
        indices = codes.indices.unsqueeze(-1)
        half_F = self.levels_F // 2
        whole = (indices.clamp(min=0) // self.basis_F) % self.levels_F - half_F
        precise = torch.promote_types(self.scale_F.dtype, torch.float32)
        values = (whole.to(precise) / half_F).masked_fill(indices < 0, 0.0)
        return values.to(self.scale_F.dtype).movedim(-1, self.channel_axis)

    def extra_repr(self) -> str:
        """What it was made with."""
        return f"levels={self.levels}, channel_axis={self.channel_axis}"

    def _bound(self, rows_NF: Float[Tensor, "N F"]) -> Float[Tensor, "N F"]:
        """Features between their outermost levels, where whole numbers are levels and 0 stays 0 (but for two levels)."""
        reach_F = (self.levels_F - 1).to(rows_NF.dtype) * ((1.0 + _WIDENING) / 2.0)
        offset_F = torch.where(self.levels_F % 2 == 0, 0.5, 0.0).to(rows_NF.dtype)
        shift_F = torch.where(self.levels_F == 2, 0.0, torch.atanh(offset_F / reach_F))
        return torch.tanh(rows_NF + shift_F) * reach_F - offset_F


def _check_levels(levels: tuple[int, ...]) -> None:
    if not levels or min(levels) < 2:
        raise ValueError(
            "`levels` must name at least one feature, and all must be at least 2 (one level carries no information); got "
            f"{list(levels)}. Drop that feature or raise its count."
        )
    if math.prod(levels) > 2**63:
        raise ValueError(
            f"`levels` make {math.prod(levels):.1e} codes, more than an index of 64 bits can count; got {list(levels)}. "
            "Split the features over several with `GroupedQuantizer`."
        )
