"""MeZO as published: the baseline that shows what perturbing the weights in place costs."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from featherlight.functional import SignStream
from featherlight.meter import Meter
from featherlight.optim.zeroth_order.families import draw_gaussian, gaussian_generator
from featherlight.optim.zeroth_order.guards import (
    check_positive,
    frozen_statistics,
    one_value,
    require_finite,
    require_objective,
)
from featherlight.optim.zeroth_order.recorded import own_state
from featherlight.optim.zeroth_order.shaping import TieWatch


class MeZO(Optimizer):
    """Memory-efficient zeroth-order SGD along one dense Gaussian direction, perturbed in place.

    The weights are moved to `+sigma z`, to `-sigma z` and back by additions whose rounding errors stay in the weights;
    z is drawn anew from its seed for each of the four passes.

    Args:
        model: the module whose parameters are trained.
        lr: learning rate.
        sigma: scale of the perturbation.
        weight_decay: coefficient of the weights in the update.
        params: parameters or parameter groups; None takes all that require a gradient.
        seed: of the directions.
        meter: counts weight passes and random words.

    Attributes:
        steps_done: steps so far.

    Cost: two forward passes and four passes over the trained weights, each drawing them all as normals; memory beyond
    inference: the largest parameter. Not replayable to the bit.
    Source: Malladi et al. 2023, arXiv 2305.17333, algorithm 1.
    """

    replayable = False
    """A run of it cannot be rebuilt to the same bits, so it is saved and has no journal."""

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-6,
        *,
        sigma: float = 1e-3,
        weight_decay: float = 0.0,
        params: ParamsT | None = None,
        seed: int = 0,
        meter: Meter | None = None,
    ) -> None:
        check_positive("lr", lr, allow_zero=True)
        check_positive("sigma", sigma)
        check_positive("weight_decay", weight_decay, allow_zero=True)
        SignStream(seed=seed, step=0)
        chosen: Any = [p for p in model.parameters() if p.requires_grad] if params is None else list(params)
        super().__init__(chosen, {"lr": lr, "weight_decay": weight_decay})
        self.model = model
        self.sigma = sigma
        self.seed = seed
        self.meter = meter if meter is not None else Meter()
        self.steps_done = 0
        self._ties = TieWatch()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step on an Objective; raises as ZerothOrderSGD does. After an exception the weights are moved back."""
        objective = require_objective(closure, type(self).__name__)
        offset = 0.0
        try:
            with frozen_statistics(self.model):
                self._move(self.sigma)
                offset = self.sigma
                plus = one_value(objective)
                self._move(-2 * self.sigma)
                offset = -self.sigma
                minus = one_value(objective)
                require_finite(torch.stack((plus, minus)), self.steps_done)
        finally:
            if offset:
                self._move(-offset)
        slope = (plus.double() - minus.double()) / (2 * self.sigma)
        self._ties.note(slope, self.sigma)
        self._update(float(slope))
        self.steps_done += 1
        return (plus + minus) / 2

    def _move(self, scale: float) -> None:
        for parameter, z, _ in self._draw():
            parameter.add_(z, alpha=scale)

    def _update(self, slope: float) -> None:
        for parameter, z, group in self._draw():
            if group["weight_decay"]:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(z, alpha=-group["lr"] * slope)

    def _draw(self) -> Iterable[tuple[Tensor, Tensor, dict[str, Any]]]:
        """Every trained parameter with its part of the direction, and counts one pass."""
        device = self.param_groups[0]["params"][0].device
        generator = gaussian_generator(device, seed=self.seed, step=self.steps_done)
        for group in self.param_groups:
            for parameter in group["params"]:
                yield parameter.data, draw_gaussian(parameter, generator), group
                self.meter.random_words += parameter.numel()
        self.meter.weight_passes += 1

    def state_dict(self) -> dict[str, Any]:
        """The state of a torch optimizer, with the seed and the number of steps."""
        return super().state_dict() | {"zeroth_order": {"seed": self.seed, "steps_done": self.steps_done}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned; raises ValueError for another optimizer's."""
        own = own_state(state_dict, type(self).__name__)
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "zeroth_order"})
        self.seed, self.steps_done = own["seed"], own["steps_done"]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "step"}
