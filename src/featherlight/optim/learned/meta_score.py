"""What a run of a rule on a task is worth: from the losses along its path to one number, lower being better.

Legend of shapes: T tasks, K + 1 points on a path, the first being its start.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Score = Callable[[Float[Tensor, "K+1 T"], Float[Tensor, "T"] | None], Float[Tensor, "T"]]
"""From the losses along the paths, (K + 1, T), and the best there are, (T,) or None, to a number for each task, (T,)."""


def last_loss(losses: Float[Tensor, "K+1 T"], best: Float[Tensor, "T"] | None) -> Float[Tensor, "T"]:
    """The loss after the last step."""
    return losses[-1]


def mean_loss(losses: Float[Tensor, "K+1 T"], best: Float[Tensor, "T"] | None) -> Float[Tensor, "T"]:
    """The mean of the losses after each step.

    Source: Andrychowicz et al. 2016 (arXiv 1606.04474), equation 3 with equal weights.
    """
    return losses[1:].mean(0)


class MeanLogGap:
    """The mean logarithm of the gaps after each step, relative to that at the start: progress counts alike at all scales.

    Args:
        floor: share of the first gap that is added to each, below which progress no longer counts.

    Where the best losses are not known, the gap is the loss, which must then not be negative.
    """

    def __init__(self, floor: float = 1e-8) -> None:
        if not 0 < floor < 1:
            raise ValueError(f"`floor` must lie between 0 and 1, as a share of the first gap; got {floor}.")
        self.floor = floor

    def __call__(self, losses: Float[Tensor, "K+1 T"], best: Float[Tensor, "T"] | None) -> Float[Tensor, "T"]:
        """The score of each task."""
        gaps = losses if best is None else losses - best
        first = gaps[0].detach().clamp(min=torch.finfo(gaps.dtype).tiny)
        return (gaps[1:].clamp(min=0) / first + self.floor).log().mean(0)


def relative_gaps(losses: Float[Tensor, "K+1 T"], best: Float[Tensor, "T"] | None) -> Float[Tensor, "K+1 T"]:
    """Gaps to the best losses (to 0 where these are not known) over the first one."""
    gaps = losses if best is None else losses - best
    return gaps / gaps[0].clamp(min=torch.finfo(gaps.dtype).tiny)


def evaluations_to(gaps: Float[Tensor, "K+1 T"], target: float) -> Float[Tensor, "T"]:
    """Gradient evaluations after which each path first stands at the target or below; infinite where it never does.

    Args:
        gaps: along the paths, as `relative_gaps` has them; point k is reached after k evaluations.
        target: largest gap that counts as solved.
    """
    reached = gaps <= target
    first = reached.int().argmax(0).to(torch.float64)
    return torch.where(reached.any(0), first, torch.inf)
