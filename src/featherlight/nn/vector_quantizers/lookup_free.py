"""Lookup-free quantization: each feature becomes its sign, and an entropy loss keeps all signs in use.

Legend of shapes: ... are positions (batch, time, rows, columns), N all of them, F features, G groups of at most g features,
C = 2**g codes of a group.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.nn.vector_quantizers.codebook import check_indices
from featherlight.nn.vector_quantizers.positions import Positions, to_rows
from featherlight.nn.vector_quantizers.processes import num_processes, sum_over_processes
from featherlight.nn.vector_quantizers.results import Codes, Quantized

_MOST_BITS: Final = 63
_MOST_BITS_OF_A_GROUP: Final = 16


@dataclass(frozen=True, kw_only=True)
class EntropyLoss:
    """Wants each vector sure of its code and the codes equally used: weight * (E H(q) - diversity * H(E q)), in nats.

    q is the softmax of -|z - code|^2 / temperature over the codes. The first term is exact at any number of features,
    since the codes are all sign vectors and q is a product over features. The second needs all 2**F codes: it is formed
    exactly within groups of features and added over the groups, an upper bound of the whole that is equal to it where the
    groups are independent.

    Args:
        weight: of the whole.
        diversity: of the second term.
        temperature: of the soft assignment, in squared units of the inputs.
        group_size: most features of a group; memory is N * F / group_size * 2**group_size.

    Raises:
        ValueError: a temperature of 0 or less, negative weights, or groups of no or of over 16 features.

    Source: Yu et al. 2023, arXiv 2310.05737, equation 4 (after Jansen et al. 2019); the groups as in Zhao et al. 2024,
    arXiv 2406.07548, equation 12, where they are single features.
    """

    weight: float = 0.1
    diversity: float = 1.0
    temperature: float = 0.01
    group_size: int = 8

    def __post_init__(self) -> None:
        if self.weight < 0 or self.diversity < 0:
            raise ValueError(
                "`weight` and `diversity` must not be negative, or the loss would want codes out of use; got "
                f"{self.weight} and {self.diversity}."
            )
        if self.temperature <= 0:
            raise ValueError(
                f"`temperature` must be above 0, as distances are divided by it; got {self.temperature}. 0.01 is usual."
            )
        if not 1 <= self.group_size <= _MOST_BITS_OF_A_GROUP:
            raise ValueError(
                f"`group_size` must be from 1 to {_MOST_BITS_OF_A_GROUP}, as 2**group_size codes are held for each vector; "
                f"got {self.group_size}."
            )

    def __call__(self, positions: Positions, rows_NF: Float[Tensor, "N F"], scale: float) -> Float[Tensor, ""]:
        """The loss of vectors whose codes have features of -scale and scale; positions say which rows count."""
        logits_NF = rows_NF * (4.0 * scale / self.temperature)
        sure = F.softplus(logits_NF) - logits_NF * torch.sigmoid(logits_NF)
        return self.weight * (positions.mean(sure.sum(-1)) - self.diversity * self._diversity(positions, logits_NF))

    def _diversity(self, positions: Positions, logits_NF: Tensor) -> Tensor:
        """H(E q), added over groups."""
        width = min(self.group_size, logits_NF.shape[1])
        padded_NF = F.pad(logits_NF, (0, -logits_NF.shape[1] % width))
        signs_Cg = _bits(torch.arange(2**width, device=logits_NF.device), width).to(logits_NF.dtype) - 0.5
        shares_NGC = torch.softmax(padded_NF.unflatten(1, (-1, width)) @ signs_Cg.T, dim=-1)
        mean_GC = _mean_over_processes(positions, shares_NGC)
        padding = math.log(2.0) * (padded_NF.shape[1] - logits_NF.shape[1])
        return -torch.special.xlogy(mean_GC, mean_GC.clamp(min=torch.finfo(mean_GC.dtype).tiny)).sum() - padding


class LookupFreeQuantizer(nn.Module):
    """Each feature becomes `scale` where it is above 0 and -`scale` elsewhere: 2**dim codes, none of them stored.

    Gradients pass straight through. A code's index has bit f set where feature f is above 0.

    Args:
        dim: F, features of a vector and bits of a code, at most 63.
        scale: absolute value of the codes' features.
        entropy: what keeps codes in use; None leaves it out.
        commitment: weight of the mean squared distance from the inputs to their codes.
        channel_axis: where features stand in the inputs; 1 for images (N, C, H, W).

    Attributes:
        unit: `scale` as a tensor.

    Raises:
        ValueError: a dim that no index of 64 bits holds, a scale of 0 or less, or a negative commitment.

    Source: Yu et al. 2023, "Language model beats diffusion: tokenizer is key to visual generation", arXiv 2310.05737,
    section 3.1.
    """

    code_shape: tuple[int, ...] = ()
    """No axes of codes: one index a position."""

    unit: Tensor

    def __init__(
        self,
        dim: int,
        *,
        scale: float = 1.0,
        entropy: EntropyLoss | None = EntropyLoss(),
        commitment: float = 0.25,
        channel_axis: int = -1,
    ) -> None:
        super().__init__()
        if not 1 <= dim <= _MOST_BITS:
            raise ValueError(
                f"`dim` must be from 1 to {_MOST_BITS}, as each feature is a bit of an index; got {dim}. Split more features "
                "over several with `GroupedQuantizer`."
            )
        if scale <= 0 or not 0 <= commitment < math.inf:
            raise ValueError(
                f"`scale` must be above 0, `commitment` at least 0 and finite; got {scale} and {commitment}. Take 1 and 0.25."
            )
        self.dim, self.scale, self.commitment, self.channel_axis = dim, scale, commitment, channel_axis
        self.entropy = entropy
        self.register_buffer("unit", torch.tensor(scale), persistent=False)

    @property
    def bits_per_position(self) -> float:
        """One for each feature."""
        return float(self.dim)

    def forward(self, x: Float[Tensor, "..."], *, mask: Tensor | None = None) -> Quantized:
        """Takes the signs of the features of `x`; see `Quantizer`."""
        positions = to_rows(x, dim=self.dim, channel_axis=self.channel_axis, mask=mask)
        rows_NF = positions.rows_NF
        above_NF = rows_NF > 0
        codes_NF = torch.where(above_NF, self.scale, -self.scale).to(rows_NF.dtype)
        indices_N = (above_NF.long() << torch.arange(self.dim, device=x.device)).sum(-1)
        values = positions.to_values(codes_NF + (rows_NF - rows_NF.detach()))
        return Quantized(values, Codes(positions.to_indices(indices_N)), self._aux_loss(positions, codes_NF))

    def codes_to_values(self, codes: Codes) -> Float[Tensor, "..."]:
        """The values of codes, features at `channel_axis`, in the dtype of the module; 0 where an index is -1."""
        check_indices(codes.indices, 2**self.dim)
        signs = 2 * _bits(codes.indices, self.dim) - 1
        return (signs * self.unit).masked_fill(codes.indices.unsqueeze(-1) < 0, 0.0).movedim(-1, self.channel_axis)

    def extra_repr(self) -> str:
        """What it was made with."""
        return (
            f"dim={self.dim}, scale={self.scale}, entropy={self.entropy}, commitment={self.commitment}, "
            f"channel_axis={self.channel_axis}"
        )

    def _aux_loss(self, positions: Positions, codes_NF: Tensor) -> Tensor:
        loss = torch.zeros((), device=codes_NF.device)
        if not self.training:
            return loss
        if self.commitment:
            distance_N = (positions.rows_NF - codes_NF).square().mean(-1)
            loss = loss + self.commitment * positions.mean(distance_N)
        if self.entropy is not None:
            loss = loss + self.entropy(positions, positions.rows_NF, self.scale)
        return loss.float()


def _bits(indices: Tensor, width: int) -> Tensor:
    """The lowest bits of indices, int64 of 0 and 1, (..., width)."""
    return indices.unsqueeze(-1) >> torch.arange(width, device=indices.device) & 1


def _mean_over_processes(positions: Positions, shares_NGC: Tensor) -> Tensor:
    """The mean over the rows that count in all processes, whose gradient is this process' share times their number."""
    own_GC = positions.keep(shares_NGC).sum(0)
    processes = num_processes()
    total_GC = sum_over_processes(own_GC)
    return (total_GC + processes * (own_GC - own_GC.detach())) / positions.count().clamp(min=1)
