"""How long a step is, whatever the scale of the loss.

Computed from the recorded whole numbers, so that a replay arrives at the same bits. What is carried from step to step is
one number.
"""

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Int
from torch import Tensor


class Normalization(Protocol):
    """What the step is divided by: a size of the slopes, from one number that is carried from step to step."""

    def next(self, moment: float, coefficients: Int[Tensor, "K"], scale: float, /) -> float:
        """The carried number behind a step.

        Args:
            moment: the one before it; 0 at the start.
            coefficients: of the step. `coefficients * scale * K` are the slopes, loss per unit of sigma, and
                `coefficients * scale` sums up to their mean.
            scale: what one unit of a coefficient is worth.
        """
        ...

    def spread(self, moment: float, steps: int, /) -> float:
        """What the last of so many steps is divided by; 0 takes no step."""
        ...


@dataclass(frozen=True, kw_only=True)
class SpreadNormalized:
    """Divides the step by the running root mean square of the slopes, so that `lr` is a distance in weight space.

    Args:
        decay: of the running mean square, in [0, 1).
    """

    decay: float = 0.99

    def __post_init__(self) -> None:
        _check_decay(self.decay)

    def next(self, mean_square: float, coefficients: Int[Tensor, "K"], scale: float) -> float:
        """The running mean square behind a step, from the one before it."""
        count = len(coefficients)
        own = int((coefficients * coefficients).sum()) * (scale * count) ** 2 / count
        return self.decay * mean_square + (1 - self.decay) * own

    def spread(self, mean_square: float, steps: int) -> float:
        """The root mean square over so many steps, corrected for the zero it began with."""
        return (mean_square / (1 - self.decay**steps)) ** 0.5


@dataclass(frozen=True, kw_only=True)
class StandardDeviation:
    """Divides the step by the standard deviation of its own slopes over their directions.

    Where every direction is carried by the whole batch, that is the deviation of the perturbed losses over sigma; where
    examples carry directions of their own, it is the deviation of what the examples say. A step whose slopes are all
    equal has none, and is not taken.

    Args:
        decay: of a running mean of the variances, in [0, 1); 0 forgets all steps but the present one.

    Source: FZOO (arXiv 2506.09034), whose sigma_t is that of the losses and has no running mean.
    """

    decay: float = 0.0

    def __post_init__(self) -> None:
        _check_decay(self.decay)

    def next(self, variance: float, coefficients: Int[Tensor, "K"], scale: float) -> float:
        """The running variance behind a step, from the one before it.

        Raises:
            ValueError: a single slope, which deviates from nothing.
        """
        count = len(coefficients)
        if count < 2:
            raise ValueError(
                "the step has 1 direction, whose slope has no standard deviation. Use two directions or more (and batches "
                "of two examples or more where each carries its own), or SpreadNormalized()."
            )
        total, squares = int(coefficients.sum()), int((coefficients * coefficients).sum())
        own = (count * squares - total * total) / (count * (count - 1)) * (scale * count) ** 2
        return self.decay * variance + (1 - self.decay) * own

    def spread(self, variance: float, steps: int) -> float:
        """The standard deviation over so many steps, corrected for the zero it began with."""
        return (variance / (1 - self.decay**steps)) ** 0.5


@dataclass(frozen=True, kw_only=True)
class ScalarMoment:
    """Divides the step by Adam's second moment of one scalar: the mean slope of a step, over its directions.

    With one direction a batch and `eps` 0 this is `SpreadNormalized`, to the bit. With K directions it is smaller, by the
    root of K where their slopes are independent, since the mean is squared and not each slope.

    Args:
        decay: of the running square, in [0, 1).
        eps: is added to the root; in units of a slope.

    Source: MEAZO (arXiv 2605.03869), by a summary of its update rule; the paper itself was not at hand. The bias is
    corrected as in Adam, by `1 - decay**t` in step t = 1, 2, ... (the summary has `t - 1`, which is 0 in the first step).
    The defaults are ours. Moments for groups of parameters, each measured along directions of its own, are not here.
    """

    decay: float = 0.99
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check_decay(self.decay)
        if not 0 <= self.eps < float("inf"):
            raise ValueError(
                f"`eps` must be a finite number of at least 0, as it guards a denominator; got {self.eps}."
            )

    def next(self, moment: float, coefficients: Int[Tensor, "K"], scale: float) -> float:
        """The running square of the mean slope behind a step, from the one before it."""
        own = int(coefficients.sum()) ** 2 * scale**2
        return self.decay * moment + (1 - self.decay) * own

    def spread(self, moment: float, steps: int) -> float:
        """Its root over so many steps, corrected for the zero it began with, plus `eps`."""
        return (moment / (1 - self.decay**steps)) ** 0.5 + self.eps


def _check_decay(decay: float) -> None:
    if not 0 <= decay < 1:
        raise ValueError(f"`decay` must be in [0, 1) (1 would never forget the first step); got {decay}.")
