"""Terms that spread the use of a codebook over its codes in training.

Legend of shapes: N rows, n rows of a sample, F features, K codes.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from featherlight.nn.vector_quantizers.processes import num_processes, sum_over_processes


class Balancing(Protocol):
    """What is added to the loss so that all codes are used."""

    def __call__(
        self, rows_NF: Float[Tensor, "N F"], codes_KF: Float[Tensor, "K F"], mask_N: Bool[Tensor, "N"] | None
    ) -> Tensor:
        """The term, (), weighted already; masked rows have no share in it."""
        ...


@dataclass(frozen=True, kw_only=True)
class EntropyBalancing:
    """How far the mean of soft assignments is from even: log K less its entropy, 0 if every code has the same part.

    A row belongs to code j with a share in proportion to exp(-d_j / (temperature * d)), of squared distances d_j, where
    d is the mean over the rows of the least of them. The lack of entropy is multiplied by d / F, so that it is in the unit
    of the error that codes learn from, whatever the scale of rows and codes. Only codes get a gradient: they go to where
    rows are, and rows need not come to them.

    Args:
        weight: of the term in the loss.
        temperature: how soft assignments are. Higher reaches codes that are farther from all rows, and sees less of how
            uneven the use of the nearest codes is.
        max_rows: rows that it is computed on, evenly taken from the batch; None takes all.

    Cost: one product of rows and codes and its backward, and a softmax. Memory: O(n K).
    """

    weight: float = 2.0
    temperature: float = 0.5
    max_rows: int | None = 1024

    def __post_init__(self) -> None:
        _check(self.weight, self.temperature, self.max_rows)

    def __call__(self, rows_NF: Tensor, codes_KF: Tensor, mask_N: Tensor | None) -> Tensor:
        """See `Balancing`."""
        rows_nF, counted_n = _sample(rows_NF.detach(), mask_N, self.max_rows)
        distances_nK = _distances(rows_nF, codes_KF)
        least_n = distances_nK.detach().amin(1).clamp(min=0)
        count = sum_over_processes(counted_n.sum())
        mean_least = sum_over_processes((least_n * counted_n).sum()) / count.clamp(min=1)
        scale = self.temperature * mean_least.clamp(min=torch.finfo(rows_NF.dtype).tiny)
        shares_nK = torch.softmax(distances_nK / -scale, 1)
        local_K = counted_n @ shares_nK / count.clamp(min=1)
        even_K = num_processes() * local_K
        mean_K = even_K + (sum_over_processes(local_K) - even_K).detach()
        logs_K = mean_K.clamp(min=torch.finfo(mean_K.dtype).tiny).log()
        missing = math.log(len(codes_KF)) + (mean_K * logs_K).sum()
        return torch.where(count > 0, self.weight * missing * mean_least / rows_NF.shape[1], 0)


def _check(weight: float, temperature: float, max_rows: int | None) -> None:
    if not weight > 0 or not temperature > 0 or (max_rows is not None and max_rows < 1):
        raise ValueError(
            f"`weight` and `temperature` of a balancing term must be above 0 and `max_rows` at least 1 or None; got {weight}, "
            f"{temperature} and {max_rows}. To go without balancing hand in `balancing=None`."
        )


def _sample(rows_NF: Tensor, mask_N: Tensor | None, max_rows: int | None) -> tuple[Tensor, Tensor]:
    """Rows at even distances, and 1 where one counts, else 0."""
    step = 1 if max_rows is None else -(-rows_NF.shape[0] // max_rows)
    rows_nF = rows_NF[::step] if step > 1 else rows_NF
    if mask_N is None:
        return rows_nF, torch.ones_like(rows_nF[:, 0])
    return rows_nF, (mask_N[::step] if step > 1 else mask_N).to(rows_nF.dtype)


def _distances(rows_nF: Tensor, codes_KF: Tensor) -> Float[Tensor, "n K"]:
    """Squared, up to rounding, which can bring those near 0 below it."""
    mean_F = codes_KF.detach().mean(0)
    rows_nF, codes_KF = rows_nF - mean_F, codes_KF - mean_F
    sizes_nK = rows_nF.square().sum(1, keepdim=True) + codes_KF.square().sum(1)
    return torch.addmm(sizes_nK, rows_nF, codes_KF.T, alpha=-2)
