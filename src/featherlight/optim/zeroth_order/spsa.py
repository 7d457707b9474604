"""SPSA: an Objective around an Objective that fills `.grad` from values."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from featherlight.objective import Objective
from featherlight.optim.zeroth_order.differences import Central, Difference
from featherlight.optim.zeroth_order.families import DirectionFamily, WholeBatchSigns, direction_of_example
from featherlight.optim.zeroth_order.targets import Target


class SPSA:
    """Simultaneous perturbation: `SGD.step(SPSA(objective, ...))` is a zeroth-order step with any torch optimizer.

    Directions are materialised as dense tensors and the parameters exchanged for perturbed copies during an evaluation,
    so this is the slow, obvious form that the fused optimizers are tested against.

    Args:
        objective: the loss.
        targets: the trained parameters, from `targets_of`.
        sigma: scale of the perturbation.
        directions: Gaussian(), RankOneSigns() or WholeBatchSigns(), with the number of directions a batch.
        seed: of the directions.
        step: number of the step.
        difference: how a slope is measured; None takes `Central()`.

    Cost: two evaluations a direction, and a copy of the trained weights.
    Source: Spall 1992, equation 2.2.
    """

    def __init__(
        self,
        objective: Objective,
        targets: Sequence[Target],
        *,
        sigma: float,
        directions: DirectionFamily,
        seed: int = 0,
        step: int = 0,
        difference: Difference | None = None,
    ) -> None:
        self.objective = objective
        self.targets = targets
        self.sigma = sigma
        self.directions = directions
        self.seed = seed
        self.step = step
        self.difference = difference if difference is not None else Central()

    def value(self) -> Float[Tensor, ""]:
        """That of the wrapped objective, at the weights themselves."""
        return self.objective.value()

    def values(self) -> Float[Tensor, "B"]:
        """Those of the wrapped objective, at the weights themselves."""
        return self.objective.values()

    @torch.no_grad()
    def __call__(self) -> Float[Tensor, ""]:
        """Fills `.grad` of the targets with the estimate and returns the mean of the losses that were measured."""
        for target in self.targets:
            target.parameter.grad = torch.zeros_like(target.parameter)
        whole = self.directions.count if isinstance(self.directions, WholeBatchSigns) else 1
        if self.directions.count == whole:
            losses = [self._add_slope(number, None, weight=1 / whole) for number in range(whole)]
        else:
            direction_of = direction_of_example(len(self.objective.values()), self.directions.count)
            parts = range(int(direction_of[-1]) + 1)
            losses = [self._add_slope(number, direction_of == number) for number in parts]
        return torch.stack(losses).sum()

    def _add_slope(self, number: int, mine: Tensor | None, *, weight: float = 1.0) -> Tensor:
        """Adds `weight * slope * direction` to the gradients, and returns `weight * loss`.

        The slope is that of the part of the loss that `mine` (all, if None) have.
        """
        dense = self.directions.dense(self.targets, seed=self.seed, step=self.step, number=number)
        near = self._evaluate(dense, self.sigma, mine)
        far = self._evaluate(dense, self.difference.far * self.sigma, mine)
        slope = weight * self.difference.slope(near, far, self.sigma)
        for target, direction in zip(self.targets, dense, strict=True):
            assert target.parameter.grad is not None
            target.parameter.grad.add_(direction, alpha=float(slope) * target.scale)
        return weight * self.difference.loss(near, far)

    def _evaluate(self, dense: Sequence[Tensor], sigma: float, mine: Tensor | None) -> Tensor:
        before = [target.parameter.data for target in self.targets]
        try:
            for target, data, direction in zip(self.targets, before, dense, strict=True):
                target.parameter.data = torch.add(data, direction, alpha=sigma * target.scale)
            if mine is None:
                return self.objective.value().double()
            values = self.objective.values().double()
            return values[mine].sum() / len(values)
        finally:
            for target, data in zip(self.targets, before, strict=True):
                target.parameter.data = data
