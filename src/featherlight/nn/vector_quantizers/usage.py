"""How a codebook is used: figures over many batches, the same for every quantizer and for any number of processes.

Legend of shapes: ... are positions, F features, K codes of a codebook, k codes mixed at a position, Q stages or groups.
"""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

from featherlight.nn.vector_quantizers.results import Codes


@dataclass(frozen=True, kw_only=True)
class StageUsage:
    """How one codebook is used.

    Attributes:
        hard_perplexity: exp of the entropy of how often each code has the largest weight, 1 to K.
        mass_perplexity: exp of the entropy of the mean weights. It can be near K while one code is the largest everywhere.
        share_in_use: codes that had a weight above 0 anywhere, over K.
    """

    hard_perplexity: float
    mass_perplexity: float
    share_in_use: float


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How the codebooks of a quantizer are used; NaN where no position was seen.

    Attributes:
        hard_perplexity: mean of the stages.
        mass_perplexity: mean of the stages.
        share_in_use: mean of the stages.
        support_size: mean number of codes with a weight above 0, a stage of a position.
        bits_per_position: of codes stored at a fixed length; None where codes are mixed and the quantizer's own figure was
            not handed in.
        relative_error: squared error of the values over the variance of the latents: 0 is perfect, 1 what their mean
            attains. None where no latents were handed in.
        positions: how many counted.
        stages: of each codebook.
    """

    hard_perplexity: float
    mass_perplexity: float
    share_in_use: float
    support_size: float
    bits_per_position: float | None
    relative_error: float | None
    positions: int
    stages: tuple[StageUsage, ...]


class CodebookUsage:
    """Counts how codes are used, batch by batch, as a metric of torchmetrics does: update, compute, reset.

    `compute` and `histogram` sum over all processes of a group, so each of them has to call.

    Args:
        num_codes: K, of each codebook.
        dim: F, where latents and values are handed in too.
        num_stages: Q where the codes have an axis of stages or groups, last or before that of the mixed codes; None where
            they have none.
        bits_per_position: the quantizer's own figure; None counts log2 K a stage where codes are not mixed.
        device: of the counters. NCCL only sums on the device that a process owns.
        group: processes that are summed over; None is all of them.

    Raises:
        ValueError: no code.

    Memory: 2 Q K + 2 F numbers of float64.
    """

    def __init__(
        self,
        num_codes: int,
        *,
        dim: int | None = None,
        num_stages: int | None = None,
        bits_per_position: float | None = None,
        device: torch.device | str = "cpu",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        if num_codes < 1 or (num_stages is not None and num_stages < 1):
            raise ValueError(
                f"`num_codes` and `num_stages` must be at least 1, or there is nothing to count; got {num_codes} and "
                f"{num_stages}."
            )
        self.num_codes = num_codes
        self.dim = dim
        self.num_stages = num_stages
        self._bits = bits_per_position
        self._group = group
        self._mass_QK = torch.zeros(num_stages or 1, num_codes, dtype=torch.float64, device=device)
        self._hard_QK = torch.zeros_like(self._mass_QK)
        self._sums_F = self._mass_QK.new_zeros(2, dim or 0)
        # stages of positions, codes with a weight, positions whose latents are known, squared error, whether codes are mixed
        self._totals = self._mass_QK.new_zeros(5)

    def reset(self) -> None:
        """Forgets what was counted."""
        for one in self._states():
            one.zero_()

    @torch.no_grad()
    def update(
        self,
        codes: Codes,
        *,
        latents: Float[Tensor, "... F"] | None = None,
        values: Float[Tensor, "... F"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
        channel_axis: int = -1,
    ) -> None:
        """Adds a batch.

        Args:
            codes: of a quantizer; positions whose index is -1 do not count.
            latents: what was quantized, with `values`, for the relative error.
            values: what came out.
            mask: True at the positions whose latents count, shaped like these without features. Positions without a code
                never count, so the mask that the quantizer had need not be handed in again.
            channel_axis: of the features in latents and values.

        Raises:
            ValueError: an index of K or more, another number of stages, latents and values that do not fit, or that are not
                finite at a position that counts.
        """
        indices_PQk, weights_PQk = self._stages_of(codes)
        present = indices_PQk >= 0
        if bool((indices_PQk >= self.num_codes).any()):
            raise ValueError(
                f"codes must lie below `num_codes`, which is {self.num_codes}; got {int(indices_PQk.max())}. Give the size of "
                "the quantizer's codebook."
            )
        shares = torch.where(present, weights_PQk, 0)
        seen = present.any(-1, keepdim=True)
        if latents is not None and values is not None:
            coded_P = seen.flatten(1).any(1)
            self._add_errors(latents.movedim(channel_axis, -1), values.movedim(channel_axis, -1), mask, coded_P)
        elif latents is not None or values is not None:
            raise ValueError("`latents` and `values` must be handed in together, since the error is between the two.")
        self._mass_QK += self._counts(indices_PQk, shares)
        largest = shares.argmax(-1, keepdim=True)
        self._hard_QK += self._counts(indices_PQk.gather(-1, largest), seen)
        mixed = float(codes.weights is not None)
        self._totals[:2] += torch.stack((seen.sum(), (shares > 0).sum())).to(self._totals)
        self._totals[4].clamp_(min=mixed)

    def compute(self) -> Usage:
        """The figures of all batches of all processes since the last `reset`."""
        mass_QK, hard_QK, sums_F, totals = self._reduced()
        stage_positions, support, latent_count, error, mixed = totals.tolist()
        stages = tuple(map(_usage_of, hard_QK, mass_QK))
        bits = self._bits
        if bits is None and not mixed:
            bits = len(stages) * math.log2(self.num_codes)
        relative = None
        if latent_count:
            spread = float((sums_F[1] - sums_F[0].square() / latent_count).clamp_(min=0).sum())
            relative = error / spread if spread else math.nan
        return Usage(
            hard_perplexity=sum(one.hard_perplexity for one in stages) / len(stages),
            mass_perplexity=sum(one.mass_perplexity for one in stages) / len(stages),
            share_in_use=sum(one.share_in_use for one in stages) / len(stages),
            support_size=support / stage_positions if stage_positions else math.nan,
            bits_per_position=bits,
            relative_error=relative,
            positions=round(stage_positions) // len(stages),
            stages=stages,
        )

    def histogram(self) -> Float[Tensor, "Q K"]:
        """The weight that each code had over all batches of all processes, float64; a code by itself weighs 1."""
        return self._reduced()[0]

    def _states(self) -> tuple[Tensor, ...]:
        return self._mass_QK, self._hard_QK, self._sums_F, self._totals

    def _reduced(self) -> list[Tensor]:
        """The states, summed over the processes."""
        states = self._states()
        flat = torch.cat([one.flatten() for one in states])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(flat, group=self._group)
        parts = flat.split([one.numel() for one in states])
        return [part.view_as(one) for part, one in zip(parts, states, strict=True)]

    def _stages_of(self, codes: Codes) -> tuple[Tensor, Tensor]:
        """Indices and weights as (positions, stages, mixed codes)."""
        indices, weights = codes
        if weights is None:
            indices = indices[..., None]
            weights = torch.ones_like(indices, dtype=torch.float64)
        if self.num_stages is None:
            indices, weights = indices[..., None, :], weights[..., None, :]
        elif indices.ndim < 2 or indices.shape[-2] != self.num_stages:
            raise ValueError(
                f"codes must have an axis of `num_stages`, {self.num_stages}, behind those of the positions; got indices of "
                f"shape {tuple(codes.indices.shape)}."
            )
        return indices.flatten(0, -3), weights.detach().flatten(0, -3)

    def _counts(self, indices_PQk: Tensor, amounts_PQk: Tensor) -> Float[Tensor, "Q K"]:
        """What falls to each code of each stage."""
        counts = torch.zeros(self._mass_QK.shape, dtype=torch.float64, device=indices_PQk.device)
        stages, mixed = indices_PQk.shape[1:]
        offsets = torch.arange(stages, device=counts.device).view(1, stages, 1) * self.num_codes
        places = (indices_PQk.clamp(min=0) + offsets).reshape(-1)
        amounts = amounts_PQk.to(counts.dtype).expand(-1, stages, mixed).reshape(-1)
        counts.view(-1).index_add_(0, places, amounts)
        return counts.to(self._mass_QK.device)

    def _add_errors(self, latents: Tensor, values: Tensor, mask: Tensor | None, coded_P: Tensor) -> None:
        if latents.shape != values.shape or latents.shape[-1] != self.dim:
            raise ValueError(
                f"`latents` and `values` must have one shape with `dim`, {self.dim}, features on the channel axis; got "
                f"{tuple(latents.shape)} and {tuple(values.shape)} with that axis put last."
            )
        if mask is not None and mask.shape != latents.shape[:-1]:
            raise ValueError(
                f"`mask` must have the shape of the latents without their features, {tuple(latents.shape[:-1])}; got "
                f"{tuple(mask.shape)}."
            )
        shape = latents.shape[:-1]
        if coded_P.numel() != math.prod(shape):
            raise ValueError(
                f"codes, latents and values must be of the same positions; got codes of {coded_P.numel()} and latents of "
                f"{math.prod(shape)}, which are {tuple(shape)}. Do the codes have an axis of stages that `num_stages` does not "
                "name?"
            )
        counted = coded_P.view(shape) if mask is None else coded_P.view(shape) & mask
        x_PF = torch.where(counted[..., None], latents, 0).to(torch.float64).flatten(0, -2)
        values_PF = torch.where(counted[..., None], values, 0).to(torch.float64).flatten(0, -2)
        squares_F, error = x_PF.square().sum(0), (values_PF - x_PF).square().sum()
        if not bool(torch.isfinite(squares_F.sum() + error)):
            self._refuse_not_finite(x_PF, values_PF, shape)
        self._sums_F += torch.stack((x_PF.sum(0), squares_F)).to(self._sums_F)
        self._totals[2:4] += torch.stack((counted.sum().double(), error)).to(self._totals)

    def _refuse_not_finite(self, x_PF: Tensor, values_PF: Tensor, shape: torch.Size) -> None:
        wrong_P = ~torch.isfinite(x_PF.square() + (values_PF - x_PF).square()).all(1)
        position = tuple(int(one) for one in wrong_P.view(shape).nonzero()[0])
        raise ValueError(
            f"latents and values must be finite where they count, or the relative error of all batches would be NaN; got some "
            f"that are not at position {position}, and at {int(wrong_P.sum())} in all. Look for a step that was too large, or "
            "leave these positions out by `mask`."
        )


def _usage_of(hard_K: Tensor, mass_K: Tensor) -> StageUsage:
    return StageUsage(
        hard_perplexity=_perplexity(hard_K),
        mass_perplexity=_perplexity(mass_K),
        share_in_use=float((mass_K > 0).double().mean()) if bool(mass_K.any()) else math.nan,
    )


def _perplexity(counts_K: Tensor) -> float:
    shares = counts_K / counts_K.sum()
    return float(torch.special.entr(shares).sum().exp())
