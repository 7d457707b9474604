"""Residual quantization: each stage quantizes what the stages before it left over.

Legend of shapes: ... are positions (batch, time, rows, columns), N all of them, B examples, F features, Q stages.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.nn.vector_quantizers.noise import NoiseStream
from featherlight.nn.vector_quantizers.parts import check_parts, part_codes, stack_codes, to_row_codes
from featherlight.nn.vector_quantizers.positions import to_rows
from featherlight.nn.vector_quantizers.results import Codes, Quantized, Quantizer


@dataclass(frozen=True, kw_only=True)
class StageDropout:
    """In training leaves the last stages out of some examples, so that fewer stages than all can be decoded later.

    The first batch keeps all stages, since codes may start from it. In training the quantizer must stay outside of
    `torch.utils.checkpoint`: computed again it would draw anew, which is refused.

    Args:
        probability: share of the examples (entries of the first axis) in which stages are left out.
        min_stages: how many are always kept; of those examples each number from it to all is equally likely.
        seed: of the draws.

    Raises:
        ValueError: a probability outside [0, 1], or no stage that is kept.

    Source: Zeghidour et al. 2021, "SoundStream", arXiv 2107.03312, section III.C, per example and for a share of them as
    in Kumar et al. 2023, arXiv 2306.06546, section 3.3.
    """

    probability: float = 0.5
    min_stages: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(
                f"`probability` must be from 0 to 1; got {self.probability}. It is a share of the examples."
            )
        if self.min_stages < 1:
            raise ValueError(f"`min_stages` must be at least 1, or nothing would be coded; got {self.min_stages}.")


class ResidualQuantizer(nn.Module):
    """Quantizers in a row, each of which codes the error that is left; values are the sum.

    Codes have an axis of stages, Q, behind those of the positions. Gradients follow the chain rule through all stages:
    of stages that pass them straight through they arrive once, not once a stage, and only the first stage's commitment
    reaches the inputs; of those with true gradients the sum's are true.

    Args:
        stages: quantizers of the same number of features and the same `code_shape`, first to last.
        dropout: trains for a variable number of stages; None keeps all. Stages left out have index -1.
        channel_axis: where features stand in the inputs; 1 for images (N, C, H, W). The stages' own is not used.

    Attributes:
        dim: F, features of a vector.
        stages: as given.
        noise: of the dropout; None without it.

    Raises:
        ValueError: no stages, stages that do not fit together, or a dropout that keeps more stages than there are.

    Cost: that of the stages.
    Source: Zeghidour et al. 2021, "SoundStream", arXiv 2107.03312, algorithm 1.
    """

    def __init__(
        self, stages: Sequence[Quantizer], *, dropout: StageDropout | None = None, channel_axis: int = -1
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(check_parts("stages", stages, same_dim=True))
        self.dim, self.channel_axis, self.dropout = stages[0].dim, channel_axis, dropout
        if dropout is not None and dropout.min_stages > len(stages):
            raise ValueError(
                f"`dropout` must not keep more stages than there are; got min_stages={dropout.min_stages} of {len(stages)}."
            )
        self.noise = None if dropout is None else NoiseStream(dropout.seed)

    @property
    def bits_per_position(self) -> float:
        """The sum over the stages."""
        return sum(stage.bits_per_position for stage in self._stages())

    @property
    def code_shape(self) -> tuple[int, ...]:
        """(Q,) and the axes of the stages."""
        return (len(self.stages), *self._stages()[0].code_shape)

    def forward(self, x: Float[Tensor, "..."], *, mask: Tensor | None = None) -> Quantized:
        """Quantizes the vectors of `x` by all stages; see `Quantizer`."""
        positions = to_rows(x, dim=self.dim, channel_axis=self.channel_axis, mask=mask)
        kept_N = self._kept_stages(positions.shape)
        rest_NF, values_NF = positions.rows_NF, torch.zeros_like(positions.rows_NF)
        aux_loss = torch.zeros((), device=x.device)
        codes = []
        for number, stage in enumerate(self._stages()):
            mask_N = positions.mask_N
            if kept_N is not None:
                mask_N = kept_N > number if mask_N is None else mask_N & (kept_N > number)
            part = stage(rest_NF, mask=mask_N)
            rest_NF, values_NF = rest_NF - part.values, values_NF + part.values
            aux_loss = aux_loss + part.aux_loss
            codes.append(part.codes)
        return Quantized(positions.to_values(values_NF), stack_codes(codes, positions.shape), aux_loss)

    def codes_to_values(self, codes: Codes, *, num_stages: int | None = None) -> Float[Tensor, "..."]:
        """The values of codes, features at `channel_axis`; 0 where all indices are -1.

        Args:
            codes: of all stages, or of the first of them only.
            num_stages: how many stages are decoded, the first; None takes as many as the codes have.

        Raises:
            ValueError: no stage, or more than the codes have.
        """
        rows, shape = to_row_codes(codes, self.code_shape)
        available = rows.indices.shape[1]
        count = available if num_stages is None else num_stages
        if not 1 <= count <= min(available, len(self.stages)):
            raise ValueError(
                f"`num_stages` must be from 1 to {min(available, len(self.stages))}, the stages that the codes have; got "
                f"{count}."
            )
        parts = [stage.codes_to_values(part_codes(rows, n)) for n, stage in enumerate(self._stages()[:count])]
        return sum(parts[1:], start=parts[0]).reshape(*shape, self.dim).movedim(-1, self.channel_axis)

    def extra_repr(self) -> str:
        """What it was made with."""
        return f"dropout={self.dropout}, channel_axis={self.channel_axis}"

    def _stages(self) -> list[Quantizer]:
        return cast(list[Quantizer], list(self.stages))

    def _kept_stages(self, shape: torch.Size) -> Tensor | None:
        """How many stages each position keeps, (N,); None if all keep all."""
        if self.dropout is None or self.noise is None or not self.training:
            return None
        first, count = self.dropout.min_stages, len(self.stages)
        examples = shape[0] if shape else 1
        u_B2 = self.noise.uniform(examples, 2)
        fewer_B = first + (u_B2[:, 1] * (count - first + 1)).long()
        fewer_here_B = (u_B2[:, 0] < self.dropout.probability) & (self.noise.draws > 1)
        kept_B = torch.where(fewer_here_B, fewer_B, count)
        return kept_B.repeat_interleave(math.prod(shape[1:]), output_size=math.prod(shape))
