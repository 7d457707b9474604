"""What of the past goes into a step: momentum, averages, the last gradients and steps."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from featherlight.optim.learned.learned_values import like, logit_of_share
from featherlight.optim.learned.protocols import Tensors, Terms, wide


class NoMemory(nn.Module):
    """The gradient itself."""

    def init(self, points: Tensors) -> tuple[()]:
        """Nothing is remembered."""
        return ()

    def update(self, gradients: Tensors, state: tuple[()], points: Tensors) -> tuple[Terms, tuple[()]]:
        """The gradient as the linear term."""
        return Terms(wide(gradients)), ()

    def description(self) -> dict[str, Any]:
        """No options."""
        return {}


class AverageState(NamedTuple):
    """What an average of gradients keeps.

    Attributes:
        num_steps: so far, ().
        averages: of each tensor.
    """

    num_steps: Tensor
    averages: Tensors


class Momentum(nn.Module):
    """Momentum as torch.optim.SGD has it (with `dampening` 0): `b = beta b + g`; the linear term is `b`, or `g + beta b`.

    Args:
        beta: in [0, 1); learned (its logit).
        nesterov: looks ahead by one step.

    Attributes:
        logit: of beta.

    Source: Polyak 1964; Sutskever et al. 2013 for the look ahead.
    """

    def __init__(self, beta: float = 0.9, *, nesterov: bool = False) -> None:
        super().__init__()
        self.logit = logit_of_share(beta, "beta")
        self.nesterov = nesterov

    def init(self, points: Tensors) -> AverageState:
        """Zeros."""
        return _zeros(points)

    def update(self, gradients: Tensors, state: AverageState, points: Tensors) -> tuple[Terms, AverageState]:
        """The linear term, and the sum that goes on."""
        gradients = wide(gradients)
        sums = tuple(self._beta(g) * b + g for g, b in zip(gradients, state.averages, strict=True))
        linear = tuple(g + self._beta(g) * b for g, b in zip(gradients, sums, strict=True)) if self.nesterov else sums
        return Terms(linear), AverageState(state.num_steps + 1, sums)

    def description(self) -> dict[str, Any]:
        """Whether it looks ahead."""
        return {"nesterov": self.nesterov}

    def _beta(self, gradient: Tensor) -> Tensor:
        return like(self.logit.sigmoid(), gradient)


class MovingAverage(nn.Module):
    """The moving average of the gradients, as in Adam.

    Args:
        decay: in [0, 1); learned (its logit).
        corrected: divides by the weight of the gradients that are in it, `1 - decay^t`.

    Attributes:
        logit: of the decay.

    Source: Kingma, Ba 2015, algorithm 1.
    """

    def __init__(self, decay: float = 0.9, *, corrected: bool = True) -> None:
        super().__init__()
        self.logit = logit_of_share(decay, "decay")
        self.corrected = corrected

    def init(self, points: Tensors) -> AverageState:
        """Zeros."""
        return _zeros(points)

    def update(self, gradients: Tensors, state: AverageState, points: Tensors) -> tuple[Terms, AverageState]:
        """The average as the linear term, and what goes on."""
        count, decay = state.num_steps + 1, self.logit.sigmoid()
        averages = tuple(averaged(decay, a, g) for a, g in zip(state.averages, wide(gradients), strict=True))
        linear = tuple(a / weight_so_far(decay, count, a) for a in averages) if self.corrected else averages
        return Terms(linear), AverageState(count, averages)

    def description(self) -> dict[str, Any]:
        """Whether it is corrected."""
        return {"corrected": self.corrected}


class PastState(NamedTuple):
    """The last gradients and steps.

    Attributes:
        points: where the update before was made.
        gradients: for each tensor the last ones, (K, ...), newest first, zeros before the first step.
        steps: for each tensor the last steps that were taken, (J, ...), likewise.
    """

    points: Tensors
    gradients: Tensors
    steps: Tensors


class PastTerms(nn.Module):
    """Weighs the last gradients and the last steps: `m = g + sum_k a_k g_{t-k}`, centred at `sum_j b_j s_{t-j}`.

    Without a constraint the step is `-P m + sum_j b_j s_{t-j}`, and one past step is Polyak's heavy ball. Past steps are
    differences of the points that the rule has seen, so they are those that were taken, whatever it proposed.

    Args:
        gradient_weights: a, one for each remembered gradient; learned, and the same for all tensors.
        step_weights: b, one for each remembered step; likewise.

    Cost: memory of K gradients, J steps and a copy of the points.
    Source: Gautam, Pfrommer, Sojoudi 2023 (arXiv 2303.16952), the history in their equation for a step.
    """

    def __init__(
        self, *, gradient_weights: tuple[float, ...] = (), step_weights: tuple[float, ...] = (0.0, 0.0)
    ) -> None:
        super().__init__()
        self.gradient_weights = nn.Parameter(torch.tensor(gradient_weights, dtype=torch.float64))
        self.step_weights = nn.Parameter(torch.tensor(step_weights, dtype=torch.float64))
        if not (torch.isfinite(self.gradient_weights).all() and torch.isfinite(self.step_weights).all()):
            raise ValueError(f"weights of past terms must be finite; got {gradient_weights} and {step_weights}.")

    def init(self, points: Tensors) -> PastState:
        """Zeros, at these points."""
        points = wide(points)
        gradients = tuple(p.new_zeros(len(self.gradient_weights), *p.shape) for p in points)
        return PastState(points, gradients, tuple(p.new_zeros(len(self.step_weights), *p.shape) for p in points))

    def update(self, gradients: Tensors, state: PastState, points: Tensors) -> tuple[Terms, PastState]:
        """The weighted gradients and steps, and what goes on."""
        gradients, points = wide(gradients), wide(points)
        moved = tuple(now - before for now, before in zip(points, state.points, strict=True))
        steps = tuple(_newest_first(s, old) for s, old in zip(moved, state.steps, strict=True))
        linear = tuple(
            g + _weighed(self.gradient_weights, old) for g, old in zip(gradients, state.gradients, strict=True)
        )
        drift = tuple(_weighed(self.step_weights, s) for s in steps)
        kept = tuple(_newest_first(g, old) for g, old in zip(gradients, state.gradients, strict=True))
        return Terms(linear, drift), PastState(points, kept, steps)

    def description(self) -> dict[str, Any]:
        """How many weights there are; their values are tensors of the rule."""
        return {
            "gradient_weights": [0.0] * len(self.gradient_weights),
            "step_weights": [0.0] * len(self.step_weights),
        }


def averaged(decay: Tensor, average: Tensor, new: Tensor) -> Tensor:
    """`decay * average + (1 - decay) * new`."""
    return like(decay, new) * average + like(1 - decay, new) * new


def weight_so_far(decay: Tensor, count: Tensor, other: Tensor) -> Tensor:
    """What the weights in a moving average sum to after `count` steps, with the dtype of `other`."""
    return like(1 - like(decay, count) ** count, other)


def _zeros(points: Tensors) -> AverageState:
    points = wide(points)
    return AverageState(points[0].new_zeros((), dtype=torch.float64), tuple(torch.zeros_like(p) for p in points))


def _newest_first(new: Tensor, old: Tensor) -> Tensor:
    return torch.cat((new[None], old))[: len(old)]


def _weighed(weights: Tensor, terms: Tensor) -> Tensor:
    return torch.tensordot(like(weights, terms), terms, dims=1)
