"""A learned metric that is corrected by what the gradients of this very problem show: L-BFGS without its line search.

Legend: N entries of all tensors together, M pairs.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.optim.learned.learned_values import log_of_positive, logit_of_share
from featherlight.optim.learned.protocols import MetricPart, Tensors, wide

_LEAST_COSINE = 1e-8


class SecantState(NamedTuple):
    """What a SecantRule keeps from step to step.

    Attributes:
        point_N: where the last step started.
        gradient_N: the gradient there.
        moves_MN: the last M moves, the latest first; zeros where there were fewer.
        changes_MN: of the gradient over each.
        metric: state of the metric part.
    """

    point_N: Float[Tensor, "N"]
    gradient_N: Float[Tensor, "N"]
    moves_MN: Float[Tensor, "M N"]
    changes_MN: Float[Tensor, "M N"]
    metric: Any


class SecantRule(nn.Module):
    """The step `argmin_d g'd + d'B d / 2`: B starts from a learned metric and is updated to fit the last M moves.

    B is the metric that is nearest to the learned one (in the sense of BFGS) among those with `B s = y` for the moves s and
    the changes y of the gradient over them. Moves along which the gradient did not grow are left out.

    Args:
        metric: the learned one, as its inverse.
        pairs: M.
        size: factor of the inverse metric; learned.
        rescale: power, in [0, 1), of the factor `s'y / y'Py` by which the inverse metric P is fitted to the latest move; learned.
            0 keeps P as it is; near 1 its scale does not matter after the first step, as in L-BFGS.

    Attributes:
        log_size: the logarithm of `size`, a parameter.

    It is an UpdateRule. Cost: 4 M N operations and 2 M N numbers.
    Source: Nocedal 1980, the two-loop recursion, with a learned initial matrix and no line search; keep a safeguard around it.
    """

    def __init__(self, metric: MetricPart, *, pairs: int = 8, size: float = 1.0, rescale: float = 0.0) -> None:
        if pairs < 1:
            raise ValueError(f"`pairs` must be at least 1 move; got {pairs}. Without any, use ConvexRule(metric).")
        super().__init__()
        self.metric = metric
        self.pairs = pairs
        self.log_size = log_of_positive(size, "size")
        self.rescale = logit_of_share(rescale, "rescale")

    def init(self, points: Tensors) -> SecantState:
        """The state before the first step; raises ValueError for tensors that the metric is not made for."""
        point = _flat(points)
        none = torch.zeros_like(point).expand(self.pairs, -1).clone()
        return SecantState(point, torch.zeros_like(point), none, none.clone(), self.metric.init(points))

    def update(self, gradients: Tensors, state: SecantState, points: Tensors) -> tuple[Tensors, SecantState]:
        """The steps and the next state."""
        point, gradient = _flat(points), _flat(gradients)
        moves = torch.cat([(point - state.point_N)[None], state.moves_MN])[: self.pairs]
        changes = torch.cat([(gradient - state.gradient_N)[None], state.changes_MN])[: self.pairs]
        inverses, metric = self.metric.update(gradients, state.metric, points)

        def times(vector: Tensor) -> Tensor:
            parts = _split(vector, points)
            found = _flat(tuple(inverse.times(part) for inverse, part in zip(inverses, parts, strict=True)))
            return found * self.log_size.exp().to(found.dtype)

        step = -self._solve(gradient, moves, changes, times)
        steps = tuple(one.to(p.dtype) for one, p in zip(_split(step, points), points, strict=True))
        return steps, SecantState(point, gradient, moves, changes, metric)

    def description(self) -> dict[str, Any]:
        """The parts that it is built from; the values are tensors of the rule."""
        return {"metric": self.metric, "pairs": self.pairs}

    def _solve(self, gradient: Tensor, moves: Tensor, changes: Tensor, times: Any) -> Tensor:
        """`inv(B) g`."""
        along = (moves * changes).sum(1)
        least = _LEAST_COSINE * (moves.square().sum(1) * changes.square().sum(1)).clamp(min=1e-30).sqrt()
        use = along > least
        rho = torch.where(use, 1 / torch.where(use, along, 1.0), 0.0)
        shares, rest = [], gradient
        for number in range(self.pairs):
            shares.append(rho[number] * (moves[number] @ rest))
            rest = rest - shares[-1] * changes[number]
        found = times(rest) * self._scale(along[0], changes[0], use[0], times)
        for number in reversed(range(self.pairs)):
            back = rho[number] * (changes[number] @ found)
            found = found + (shares[number] - back) * moves[number]
        return found

    def _scale(self, along: Tensor, change: Tensor, use: Tensor, times: Any) -> Tensor:
        """The power `rescale` of `s'y / y'Py`, or 1 where there is no such pair."""
        curved = change @ times(change)
        ratio = torch.where(use, along, 1.0) / torch.where(use, curved, 1.0)
        return ratio ** self.rescale.sigmoid().to(ratio.dtype)


def _flat(tensors: Tensors) -> Float[Tensor, "N"]:
    parts = wide(tensors)
    dtype = max((part.dtype for part in parts), key=lambda one: torch.finfo(one).bits)
    return torch.cat([part.reshape(-1).to(dtype) for part in parts])


def _split(vector: Tensor, points: Tensors) -> Tensors:
    parts = vector.split([p.numel() for p in points])
    return tuple(part.reshape(p.shape) for part, p in zip(parts, points, strict=True))
