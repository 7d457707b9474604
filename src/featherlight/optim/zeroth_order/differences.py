"""Where the loss is evaluated to measure a slope, and what the evaluations say."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Central:
    """Between `+sigma` and `-sigma`: off by the third derivative, at two evaluations a direction.

    Source: Spall 1992, equation 2.2.
    """

    far: ClassVar[float] = -1.0
    """The second point, in units of sigma; the first is 1."""

    def slope(self, near: Tensor, far: Tensor, sigma: float) -> Tensor:
        """Loss per unit of sigma, from the losses at the first and the second point; any shape."""
        return (near - far) / (2 * sigma)

    def loss(self, near: Tensor, far: Tensor) -> Tensor:
        """What a step reports: the mean of both."""
        return (near + far) / 2


@dataclass(frozen=True)
class OneSided:
    """Between `+sigma` and the weights themselves: off by the second derivative, `sigma / 2 * z^T H z`.

    The evaluation at the weights serves all directions of a batch: one more evaluation than directions. With `RankOneSigns`
    that is as many as with `Central`, and nothing is saved; with `WholeBatchSigns` nearly half.

    Source: FZOO (arXiv 2506.09034).
    """

    far: ClassVar[float] = 0.0
    """The second point, in units of sigma; the first is 1."""

    def slope(self, near: Tensor, far: Tensor, sigma: float) -> Tensor:
        """Loss per unit of sigma, from the losses at the first point and at the weights; any shape."""
        return (near - far) / sigma

    def loss(self, near: Tensor, far: Tensor) -> Tensor:
        """What a step reports: that at the weights."""
        return far


Difference = Central | OneSided
"""How a slope is measured."""
