"""What a step makes of the losses at both points of its pairs: slopes, shaped or raw, and a warning where they tie.

Legend of shapes: B examples, K directions, each with a pair of points at plus and minus sigma.
"""

import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Shaping = Callable[[Float[Tensor, "K"], Float[Tensor, "K"]], Float[Tensor, "K"]]
"""From the mean losses at both points of each pair, float64, to what takes the place of their differences."""

_WATCHED = 20
_NEARLY_ALL = 0.95


@dataclass(frozen=True)
class CentredRanks:
    """Each of the 2K losses of a step is replaced by its rank among them, from -0.5 to 0.5; equal losses share their mean.

    The step then does not depend on the scale of the losses, and no outlier rules it. With a single direction it goes by
    the sign of the difference.

    Source: centred rank transform of Salimans et al. 2017, arXiv 1703.03864, section 2 (Wierstra et al. 2014). There equal
    losses are ordered by chance; here a pair that ties moves nothing.
    """

    def __call__(self, plus_K: Float[Tensor, "K"], minus_K: Float[Tensor, "K"]) -> Float[Tensor, "K"]:
        """The differences of the ranks, (K,), each in [-1, 1]."""
        losses = torch.cat((plus_K, minus_K))
        ordered = losses.sort().values
        first = torch.searchsorted(ordered, losses, side="left")
        last = torch.searchsorted(ordered, losses, side="right") - 1
        ranks = (first + last).to(losses.dtype) / (2 * (len(losses) - 1)) - 0.5
        return ranks[: len(plus_K)] - ranks[len(plus_K) :]


def pair_slopes(
    plus_B: Float[Tensor, "B"],
    minus_B: Float[Tensor, "B"],
    direction_of: Int[Tensor, "B"],
    count: int,
    shaping: Shaping | None,
) -> Float[Tensor, "K"]:
    """The part of each direction in the difference of the mean losses, to be divided by the distance of the points.

    Args:
        plus_B: losses of the examples at plus sigma, float64.
        minus_B: at minus sigma.
        direction_of: the direction that each example carries.
        count: K.
        shaping: of the directions' mean losses; None takes them as they are.
    """

    def summed(per_example: Tensor) -> Tensor:
        return per_example.new_zeros(count).index_add_(0, direction_of, per_example)

    differences = summed(plus_B - minus_B)
    if shaping is None:
        return differences / len(plus_B)
    examples = summed(torch.ones_like(plus_B))
    plus_K = summed(plus_B) / examples
    minus_K = torch.where(
        differences == 0, plus_K, summed(minus_B) / examples
    )  # a tie, in whatever order it was summed
    shaped = shaping(plus_K, minus_K)
    if shaped.shape != (count,):
        raise ValueError(
            f"`shaping` must return one number a direction, shape ({count},), in the place of the differences it was handed; "
            f"got {tuple(shaped.shape)}."
        )
    return shaped * examples / len(plus_B)


class TieWatch:
    """Warns once if both points of nearly all pairs had the same loss for a while, since such steps move nothing."""

    def __init__(self) -> None:
        self._recent: deque[tuple[int, int]] = deque(maxlen=_WATCHED)
        self._warned = False

    def note(self, slopes: Float[Tensor, "K"], sigma: float) -> None:
        """Counts the pairs of one measurement; a slope is zero where its pair tied."""
        self._recent.append((int((slopes == 0).sum()), slopes.numel()))
        ties, pairs = map(sum, zip(*self._recent, strict=True))
        if self._warned or len(self._recent) < _WATCHED or ties < _NEARLY_ALL * pairs:
            return
        self._warned = True
        warnings.warn(
            f"in the last {_WATCHED} measurements both points of {ties} of {pairs} pairs ({ties / pairs:.0%}) had the very "
            f"same loss, and such pairs move nothing. Raise `sigma` (now {sigma:g}), give each direction more examples (a "
            "larger batch, or fewer directions), or take a loss or score of finer levels; weights of 16 bits need a larger "
            "`sigma` too.",
            UserWarning,
            stacklevel=2,
        )
