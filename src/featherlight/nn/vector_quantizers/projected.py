"""A quantizer of fewer, or more, features than the vectors have, between two learned linear maps.

Legend of shapes: D features of the vectors, F those that are quantized; ... are positions.
"""

import math

from jaxtyping import Bool, Float
from torch import Tensor, nn

from featherlight.nn.vector_quantizers.positions import to_rows, without_autocast
from featherlight.nn.vector_quantizers.results import Codes, Quantized, Quantizer


class ProjectedQuantizer(nn.Module):
    """Maps vectors of D features to F, quantizes them, and maps them back. A few features keep more codes in use.

    Args:
        quantizer: a Quantizer that is a Module, with features in the last axis.
        dim: D.
        channel_axis: where features stand in the input.

    Attributes:
        project_in: D to F.
        project_out: F to D.

    Raises:
        ValueError: `dim` below 1.

    Source: Yu et al. 2022, "Vector-quantized image modeling with improved VQGAN", factorized codes.
    """

    def __init__(self, quantizer: Quantizer, dim: int, *, channel_axis: int = -1) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"`dim`, the features of the vectors, must be at least 1; got {dim}.")
        self.dim, self.channel_axis = dim, channel_axis
        self.quantizer = quantizer
        self.project_in = nn.Linear(dim, quantizer.dim)
        self.project_out = nn.Linear(quantizer.dim, dim)

    @property
    def bits_per_position(self) -> float:
        """Those of the quantizer within."""
        return self.quantizer.bits_per_position

    @property
    def code_shape(self) -> tuple[int, ...]:
        """That of the quantizer within."""
        return self.quantizer.code_shape

    def forward(self, x: Float[Tensor, "..."], *, mask: Bool[Tensor, "..."] | None = None) -> Quantized:
        """See `Quantizer`; inputs are brought to the dtype of the maps, and values back.

        Raises:
            ValueError: see `to_rows`.
        """
        positions = to_rows(x, dim=self.dim, channel_axis=self.channel_axis, mask=mask)
        with without_autocast(x):
            rows = self.project_in(positions.rows_NF.to(self.project_in.weight.dtype))
            values, (indices, weights), aux_loss = self.quantizer(rows, mask=positions.mask_N)
        codes = Codes(positions.to_indices(indices), None if weights is None else positions.to_weights(weights))
        return Quantized(positions.to_values(self.project_out(values)), codes, aux_loss)

    def codes_to_values(self, codes: Codes) -> Tensor:
        """See `Quantizer`."""
        inner = self.quantizer.codes_to_values(codes)
        values = self.project_out(inner.to(self.project_out.weight.dtype))
        masked = (codes.indices < 0).reshape(*inner.shape[:-1], math.prod(self.code_shape)).all(-1)
        return values.masked_fill(masked[..., None], 0.0).movedim(-1, self.channel_axis)
