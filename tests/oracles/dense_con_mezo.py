"""ConMeZO with a dense momentum, in float64: one tensor for each step of the window and each parameter."""

import math

import torch
from torch import Tensor

from featherlight.objective import Objective
from featherlight.optim import Cone
from featherlight.optim.zeroth_order import Target
from tests.oracles.dense_weights import loss_at, sign_direction


class DenseConMeZO:
    """One direction a batch; the targets' parameters are moved."""

    def __init__(self, targets: list[Target], cone: Cone, *, lr: float, sigma: float, seed: int) -> None:
        self.targets, self.cone, self.lr, self.sigma, self.seed = targets, cone, lr, sigma, seed
        self.parts: list[list[Tensor]] = []
        self.steps_done = 0

    @torch.no_grad()
    def step(self, objective: Objective) -> None:
        fresh = [
            sign_direction(target, seed=self.seed, step=self.steps_done, right_step=self.steps_done)
            for target in self.targets
        ]
        momentum = [sum(parts, torch.zeros_like(u)) for u, parts in zip(fresh, self._by_target(), strict=True)]
        length = math.sqrt(sum(float(m.square().sum()) for m in momentum))
        lean, spin = 0.0, 1.0
        if length:
            num_trained = sum(m.numel() for m in momentum)
            lean = math.cos(self.cone.angle) * math.sqrt(num_trained) / length
            spin = math.sin(self.cone.angle)
        z = [lean * m + spin * u for m, u in zip(momentum, fresh, strict=True)]
        sigma = self.sigma if length else self.sigma * math.sin(self.cone.angle)
        losses = []
        for signed in (sigma, -sigma):
            moved = [t.parameter.double() + signed * t.scale * one for t, one in zip(self.targets, z, strict=True)]
            losses.append(loss_at(objective, self.targets, moved))
        slope = (losses[0] - losses[1]) / (2 * sigma)
        for target, one in zip(self.targets, z, strict=True):
            target.parameter.sub_(self.lr * target.scale * slope * one)
        beta = self.cone.beta
        kept = beta + (1 - beta) * slope * lean
        self.parts = [[kept * part for part in parts] for parts in self.parts]
        self.parts.append([(1 - beta) * slope * spin * u for u in fresh])
        self.parts = self.parts[-self.cone.window :]
        self.steps_done += 1

    def _by_target(self) -> list[list[Tensor]]:
        return [[parts[number] for parts in self.parts] for number in range(len(self.targets))]
