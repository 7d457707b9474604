"""What levels of a quantized weight cost in bits, under the binary decisions that the archive codes.

A level is a whole number: 0 is a pruned weight, and the sign and size of the others count codebook values away from zero. A level
is taken apart into binary decisions as in DeepCABAC: is it zero, its sign, is its size greater than 1, 2, ..., and beyond `UNARY`
an Exp-Golomb remainder. What is known beforehand of "is it zero" is its context: its two left neighbours, and how full its column
and its row have been so far.

Legend of shapes: R rows, C columns, K levels; a weight of another rank is a matrix of its first axis by all others.
"""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

UNARY = 14
"""Sizes up to here are a decision for each step; what is beyond is an Exp-Golomb remainder of order 0."""
_FULLNESS = 6
_NEIGHBOURS = 3
_SMOOTHING = 4.0


@dataclass(frozen=True, kw_only=True)
class EntropyModel:
    """Bits of each decision, fitted to the levels of one weight; a part of a rate-distortion cost.

    Attributes:
        zero_bits: bits of "not zero" and "zero" in each context, (contexts, 2) as [context, is it not zero].
        level_bits: bits of sign and size of the levels -reach ... reach, given that it is not zero; 0 at level 0. (2 reach + 1,)
    """

    zero_bits: Float[Tensor, "contexts 2"]
    level_bits: Float[Tensor, "levels"]

    @classmethod
    def fit(cls, levels: Int[Tensor, "..."], *, reach: int | None = None) -> Self:
        """The model of a weight's own levels.

        Args:
            levels: of the whole weight, any shape; integers.
            reach: the largest size a candidate may have; that of `levels` at least.

        Raises:
            ValueError: the levels are not integers.

        Cost: a few passes over the weight.
        """
        matrix_RC = _matrix(levels)
        largest = int(matrix_RC.abs().max()) if matrix_RC.numel() else 0
        zero_bits = _smoothed_bits(_counts(matrix_RC, level_contexts(levels)).float())
        return cls(zero_bits=zero_bits, level_bits=_level_bits(matrix_RC[matrix_RC != 0], max(largest, reach or 0)))

    @classmethod
    def fitted_bits(cls, levels: Int[Tensor, "..."]) -> float:
        """Bits of all levels by their own model, as the sum of `bits` but from counts alone."""
        matrix_RC = _matrix(levels)
        counts = _counts(matrix_RC, level_contexts(levels))
        nonzero = matrix_RC[matrix_RC != 0]
        reach = int(nonzero.abs().max()) if len(nonzero) else 0
        seen = torch.bincount(nonzero.long() + reach, minlength=2 * reach + 1)
        zero_bits, level_bits = _smoothed_bits(counts.float()), _level_bits(nonzero, reach)
        return float((zero_bits.double() * counts).sum() + (level_bits.double() * seen).sum())

    @property
    def reach(self) -> int:
        """The largest size of a level that has a cost."""
        return len(self.level_bits) // 2

    def bits(self, levels: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Bits of each level where it stands; their sum estimates the coded size.

        Raises:
            ValueError: a level is beyond `reach`.
        """
        _matrix(levels)
        if levels.numel() and int(levels.abs().max()) > self.reach:
            raise ValueError(
                f"the levels must lie within -{self.reach} and {self.reach}, for which this model was fitted; got the size "
                f"{int(levels.abs().max())}. Fit it with `reach={int(levels.abs().max())}`."
            )
        zero_bits = self.zero_bits[level_contexts(levels), (levels != 0).long()]
        return zero_bits + self.level_bits[levels.long() + self.reach]

    def candidate_bits(self, levels: Int[Tensor, "..."], candidates: Int[Tensor, "K"]) -> Float[Tensor, "... K"]:
        """Bits of each candidate at each place, its neighbours left as they are: what rate-distortion-aware rounding weighs.

        Args:
            levels: the present ones, which make the contexts.
            candidates: levels that may be taken.

        Cost: K floats a weight; hand in blocks of rows of a large one only with their own model's contexts in mind.
        """
        sizes_K = self.level_bits[candidates.long() + self.reach]
        return self.zero_bits[level_contexts(levels)][..., (candidates != 0).long()] + sizes_K

    def expected_bits(
        self, shares: Float[Tensor, "... K"], levels: Int[Tensor, "..."], candidates: Int[Tensor, "K"]
    ) -> Float[Tensor, "..."]:
        """Bits of each weight as a mean over the shares it has in each candidate; differentiable in the shares.

        Args:
            shares: at least 0, sum to 1 over the last axis.
            levels: the present ones, which make the contexts.
            candidates: the levels that the shares belong to.
        """
        sizes_K = self.level_bits[candidates.long() + self.reach].to(shares.dtype)
        of_zero = self.zero_bits[level_contexts(levels)].to(shares.dtype)
        nonzero = (shares * (candidates != 0).to(shares.dtype)).sum(-1)
        return shares @ sizes_K + (1 - nonzero) * of_zero[..., 0] + nonzero * of_zero[..., 1]


def level_contexts(levels: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Number of the context of each place, from what stands before it in reading order.

    It counts the two left neighbours that are not zero, and sorts the fullness of the column above and of the row to the left
    into six classes each, by powers of two of how they compare with the fullness of the whole weight.

    Raises:
        ValueError: the levels are not integers.
    """
    significant_RC = (_matrix(levels) != 0).to(torch.float32)
    left_RC = torch.nn.functional.pad(significant_RC, (2, 0))
    neighbours_RC = left_RC[:, 1:-1] + left_RC[:, :-2]
    mean = significant_RC.mean().clamp_min(1e-6) if significant_RC.numel() else significant_RC.new_ones(())
    above_RC = _fullness(significant_RC, mean, 0)
    before_RC = _fullness(significant_RC, mean, 1)
    number_RC = (neighbours_RC.long() * _FULLNESS + above_RC) * _FULLNESS + before_RC
    return number_RC.view(levels.shape)


def soft_assign(
    weights: Float[Tensor, "..."], values: Float[Tensor, "K"], *, temperature: float
) -> Float[Tensor, "... K"]:
    """Shares of each weight in each codebook value: a softmax over minus the squared distances.

    Args:
        weights: any shape.
        values: of the candidates.
        temperature: squared distance, in the unit of the weights, over which a share falls by e.

    Raises:
        ValueError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"`temperature` must be above 0, it divides squared distances; got {temperature}.")
    return torch.softmax((weights[..., None] - values).square() / -temperature, dim=-1)


def _counts(matrix_RC: Tensor, contexts: Tensor) -> Tensor:
    """How often each context has a zero and has none, (contexts, 2)."""
    number = contexts.flatten() * 2 + (matrix_RC != 0).flatten()
    return torch.bincount(number, minlength=_NEIGHBOURS * _FULLNESS**2 * 2).view(-1, 2)


def _fullness(significant_RC: Tensor, mean: Tensor, axis: int) -> Tensor:
    """Class of the share of nonzeros before each place along an axis, drawn to the mean while few have been seen."""
    seen_RC = significant_RC.cumsum(axis) - significant_RC
    shape = (-1, 1) if axis == 0 else (1, -1)
    places = torch.arange(significant_RC.shape[axis], device=significant_RC.device).view(shape)
    share_RC = (seen_RC + _SMOOTHING * mean) / (places + _SMOOTHING)
    return ((share_RC / mean).log2().round().clamp(-3, 2) + 3).long()


def _level_bits(nonzero: Tensor, reach: int) -> Tensor:
    """Bits of sign, unary size and remainder of all levels within reach."""
    sizes = nonzero.abs().clamp(max=UNARY + 1).long()
    counts = torch.bincount(sizes.flatten(), minlength=UNARY + 2)[1:].to(torch.float32)
    at_least = counts.flip(0).cumsum(0).flip(0)
    steps = _smoothed_bits(torch.stack([counts[:-1], at_least[1:]], dim=1))  # stop at this size, or go on
    go_on = torch.cat([steps.new_zeros(1), steps[:, 1].cumsum(0)])
    size_bits = torch.cat([go_on[:-1] + steps[:, 0], go_on[-1:]])  # sizes 1 ... UNARY, and beyond
    signs = torch.stack([(nonzero < 0).sum(), (nonzero > 0).sum()]).to(torch.float32)
    sign_bits = _smoothed_bits(signs[None])[0]
    size = torch.arange(1, reach + 1, device=nonzero.device)
    beyond = (size - UNARY).clamp(min=0)
    remainder = torch.where(beyond > 0, 2 * beyond.clamp(min=1).to(torch.float32).log2().floor() + 1, 0.0)
    each = size_bits[size.clamp(max=UNARY + 1) - 1] + remainder
    return torch.cat([(each + sign_bits[0]).flip(0), each.new_zeros(1), each + sign_bits[1]])


def _smoothed_bits(counts: Float[Tensor, "contexts 2"]) -> Float[Tensor, "contexts 2"]:
    """Minus the logarithms of shares, each drawn to the share over all contexts as if that had been seen a few times."""
    total = counts.sum(0) + 0.5
    prior = total / total.sum()
    return -((counts + _SMOOTHING * prior) / (counts.sum(1, keepdim=True) + _SMOOTHING)).log2()


def _matrix(levels: Tensor) -> Tensor:
    if levels.is_floating_point() or levels.is_complex() or levels.dtype is torch.bool:
        raise ValueError(
            f"`levels` must be integers, signed numbers of codebook values with 0 for a pruned weight; got {levels.dtype}. Round "
            "the weights to a codebook first."
        )
    return levels.reshape(len(levels) if levels.dim() > 1 else 1, -1) if levels.numel() else levels.reshape(0, 0)
