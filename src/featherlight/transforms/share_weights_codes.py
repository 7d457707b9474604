"""Which code a weight takes: what its distance and its bits cost together.

Legend of shapes: K codes beside zero.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from featherlight.functional.entropy_model import EntropyModel, level_contexts

_ROUNDS = 4
_BLOCK = 1 << 18


@dataclass(frozen=True, kw_only=True)
class FixedCodes:
    """Each weight keeps the code that it has at the start; only the codebooks are trained. Han et al. 2015."""


@dataclass(frozen=True, kw_only=True)
class Reassigned:
    """The weights are trained behind their codes, straight through, and take other codes on the way.

    Args:
        rate: what a bit costs, as a share of the mean over all weights that are not zero of importance times square; 0 takes
            the nearest code. Importance is a running mean of squared gradients, a diagonal Fisher information.
        updates: how often codes are chosen anew.
        end: share of the budget after which they stay, and only the codebooks are trained.
        regrow: whether a weight that is zero can become another one.

    Source: Marban et al. 2020 (arXiv 2004.01077) for codes chosen by distance and entropy in training; Bengio et al. 2013 for
    the gradient. Here the bits are those of the archive's own model of levels, with its contexts.
    """

    rate: float = 0.0
    updates: int = 20
    end: float = 0.6
    regrow: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rate < float("inf"):
            raise ValueError(f"`rate` must be a finite number of at least 0; got {self.rate}.")
        if self.updates < 1 or not 0 < self.end <= 1:
            raise ValueError(
                f"`updates` must be at least 1 and `end` a share of the budget in (0, 1]; got {self.updates} and {self.end}."
            )


def levels_of(index: Int[Tensor, "..."], centroids_K: Float[Tensor, "K"]) -> Int[Tensor, "..."]:
    """Codes as levels: 0 is zero, and others count centroids away from zero with the sign of theirs.

    Args:
        index: 0 for zero, or 1 + the number of a centroid.
        centroids_K: in any order.
    """
    return code_levels(centroids_K)[index.long()]


def code_levels(centroids_K: Float[Tensor, "K"]) -> Int[Tensor, "K+1"]:
    """The level of each index: that of zero, and of each centroid."""
    rank = centroids_K.argsort(stable=True).argsort(stable=True)
    below = int((centroids_K < 0).sum())
    return torch.cat([rank.new_zeros(1), torch.where(centroids_K < 0, rank - below, rank - below + 1)])


@torch.no_grad()
def rate_distortion_codes(
    weight: Float[Tensor, "..."],
    centroids_K: Float[Tensor, "K"],
    *,
    importance: Float[Tensor, "..."],
    bit_cost: float,
    start: Int[Tensor, "..."] | None = None,
    rounds: int = _ROUNDS,
) -> Int[Tensor, "..."]:
    """The code of each weight of least importance times squared distance plus cost of its bits.

    The bits are those of the archive's model, fitted to the codes of the round before: a code that many take gets cheap, and
    a weight that would stand alone among zeros dear.

    Args:
        weight: any shape.
        centroids_K: beside zero, which is always a candidate.
        importance: of each weight, at least 0.
        bit_cost: what a bit costs, in the unit of importance times squared weight.
        start: codes before, which the first bits are of; None starts from the least distance alone.
        rounds: of fitting and choosing.

    Returns:
        0 for zero, or 1 + the number of the centroid, int64.

    Cost: passes over K + 1 floats for each weight and round, in blocks of 262,144 weights.
    Source: Wiedemann et al. 2020 (DeepCABAC, arXiv 1907.11900), equation 5.
    """
    table = torch.cat([centroids_K.new_zeros(1), centroids_K])
    levels = code_levels(centroids_K)
    index = None if start is None else start.long()
    if index is None or bit_cost == 0:
        index = _cheapest(weight, table, importance, None)
    reach = int(levels.abs().max())
    for _ in range(rounds if bit_cost > 0 else 0):
        model = EntropyModel.fit(levels[index], reach=reach)
        place_2 = model.zero_bits[level_contexts(levels[index])].flatten(0, -2) * bit_cost
        sizes_K = model.level_bits[levels + reach] * bit_cost
        index = _cheapest(weight, table, importance, (place_2, sizes_K))
    return index


def _cheapest(weight: Tensor, table: Tensor, importance: Tensor, costs: tuple[Tensor, Tensor] | None) -> Tensor:
    """The candidate of least cost; `costs` are those of zero and of not zero at each place, and of each candidate's size."""
    found, start = [], 0
    for part, matters in zip(weight.flatten().split(_BLOCK), importance.flatten().split(_BLOCK), strict=True):
        total = (part[:, None] - table).square_().mul_(matters[:, None])
        if costs is not None:
            place = costs[0][start : start + len(part)]
            total.add_(costs[1])
            total[:, :1].add_(place[:, :1])
            total[:, 1:].add_(place[:, 1:])
        found.append(total.argmin(-1))
        start += len(part)
    return torch.cat(found).view(weight.shape)
