"""How long a step is, whatever the scale of the loss."""

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SpreadNormalized:
    """Divides the step by the running root mean square of the slopes, so that `lr` is a distance in weight space.

    Computed from the recorded whole numbers, so that a replay arrives at the same bits.

    Args:
        decay: of the running mean square, in [0, 1).
    """

    decay: float = 0.99

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"`decay` must be in [0, 1) (1 would never forget the first step); got {self.decay}.")

    def next(self, mean_square: float, coefficients: Int[Tensor, "K"], scale: float) -> float:
        """The running mean square behind a step, from the one before it."""
        count = len(coefficients)
        own = int((coefficients * coefficients).sum()) * (scale * count) ** 2 / count
        return self.decay * mean_square + (1 - self.decay) * own

    def spread(self, mean_square: float, steps: int) -> float:
        """The root mean square over so many steps, corrected for the zero it began with."""
        return (mean_square / (1 - self.decay**steps)) ** 0.5
