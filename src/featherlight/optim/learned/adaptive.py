"""Step sizes that shrink where gradients have been large: Adagrad's, RMSprop's and Adam's metrics."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from featherlight.optim.learned.inverses import DiagonalInverse
from featherlight.optim.learned.learned_values import like, log_of_positive, logit_of_share
from featherlight.optim.learned.memory import averaged, weight_so_far
from featherlight.optim.learned.metrics import DiagonalSteps, ScalarSteps
from featherlight.optim.learned.protocols import Tensors, wide


class SquaresState(NamedTuple):
    """What is kept of squared gradients.

    Attributes:
        num_steps: so far, ().
        squares: of each tensor.
    """

    num_steps: Tensor
    squares: Tensors


class AdaptiveSteps(nn.Module):
    """Divides step sizes by the root of past squared gradients, entry by entry: the metric is `(root(v) + eps) / sizes`.

    Args:
        base: the sizes, of one kind or the other; None takes `ScalarSteps(1e-3)`.
        decay: of the moving average v, in [0, 1); learned (its logit). None sums the squares instead, as Adagrad does.
        corrected: divides the average by the weight of the squares that are in it, `1 - decay^t`, as Adam does.
        eps: positive, in units of a gradient; learned (its logarithm).

    Attributes:
        logit: of the decay; None for a sum.
        log_eps: the logarithm of eps.

    Source: Duchi, Hazan, Singer 2011 (a sum); Tieleman, Hinton 2012 (an average); Kingma, Ba 2015 (corrected).
    """

    def __init__(
        self,
        base: ScalarSteps | DiagonalSteps | None = None,
        *,
        decay: float | None = 0.999,
        corrected: bool = True,
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        self.base = base if base is not None else ScalarSteps(1e-3)
        self.logit = logit_of_share(decay, "decay") if decay is not None else None
        self.corrected = corrected and decay is not None
        self.log_eps = log_of_positive(eps, "eps")

    def init(self, points: Tensors) -> SquaresState:
        """Zeros; raises ValueError for tensors that the sizes are not made for."""
        self.base.init(points)
        points = wide(points)
        return SquaresState(points[0].new_zeros((), dtype=torch.float64), tuple(torch.zeros_like(p) for p in points))

    def update(
        self, gradients: Tensors, state: SquaresState, points: Tensors
    ) -> tuple[tuple[DiagonalInverse, ...], SquaresState]:
        """The inverse metric of each tensor, with this gradient in it already, and what goes on."""
        count = state.num_steps + 1
        squares = tuple(self._taken_in(v, g.square()) for v, g in zip(state.squares, wide(gradients), strict=True))
        sizes, _ = self.base.update(gradients, (), squares)
        inverses = tuple(
            DiagonalInverse(size.diagonal / (_root(self._typical(v, count)) + like(self.log_eps.exp(), v)))
            for size, v in zip(sizes, squares, strict=True)
        )
        return inverses, SquaresState(count, squares)

    def description(self) -> dict[str, Any]:
        """The part with the sizes, and what kind of average; the values are tensors of the rule."""
        return {
            "base": self.base,
            "decay": 0.5 if self.logit is not None else None,
            "corrected": self.corrected,
        }

    def _taken_in(self, squares: Tensor, new: Tensor) -> Tensor:
        return squares + new if self.logit is None else averaged(self.logit.sigmoid(), squares, new)

    def _typical(self, squares: Tensor, count: Tensor) -> Tensor:
        if self.logit is None or not self.corrected:
            return squares
        return squares / weight_so_far(self.logit.sigmoid(), count, squares)


def _root(squares: Tensor) -> Tensor:
    """The root, with a derivative of 0 instead of an infinite one where the square is 0."""
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, torch.ones_like(squares)).sqrt(), squares)
