"""LOZO with dense directions and a dense momentum, in float64."""

import torch
from torch import Tensor

from featherlight.objective import Objective
from featherlight.optim import LazySubspace
from featherlight.optim.zeroth_order import Target
from tests.oracles.dense_weights import loss_at, right_signs, sign_direction


class DenseLOZO:
    """One direction a batch; the targets' parameters are moved."""

    def __init__(self, targets: list[Target], subspace: LazySubspace, *, lr: float, sigma: float, seed: int) -> None:
        self.targets, self.subspace, self.lr, self.sigma, self.seed = targets, subspace, lr, sigma, seed
        self.momenta = [torch.zeros_like(target.parameter, dtype=torch.float64) for target in targets]
        self.steps_done = 0

    @torch.no_grad()
    def step(self, objective: Objective) -> None:
        directions = [self._direction(target) for target in self.targets]
        losses = []
        for sigma in (self.sigma, -self.sigma):
            moved = [
                target.parameter.double() + sigma * target.scale * direction
                for target, direction in zip(self.targets, directions, strict=True)
            ]
            losses.append(loss_at(objective, self.targets, moved))
        slope = (losses[0] - losses[1]) / (2 * self.sigma)
        for number, (target, direction) in enumerate(zip(self.targets, directions, strict=True)):
            estimate = slope * direction
            if self.subspace.beta:
                kept = self._projected(target, self.momenta[number])
                estimate = self.subspace.beta * kept + (1 - self.subspace.beta) * estimate
                self.momenta[number] = estimate
            target.parameter.sub_(self.lr * target.scale * estimate)
        self.steps_done += 1

    def _right_step(self) -> int:
        return self.steps_done - self.steps_done % self.subspace.period

    def _direction(self, target: Target) -> Tensor:
        parts = [
            sign_direction(target, seed=self.seed, step=self.steps_done, right_step=self._right_step(), number=number)
            for number in range(self.subspace.rank)
        ]
        return sum(parts, torch.zeros_like(parts[0])) / self.subspace.rank**0.5

    def _projected(self, target: Target, momentum: Tensor) -> Tensor:
        """`M V V^T / bound` with the new right factors V in the first step of a period."""
        if self.steps_done % self.subspace.period or not target.columns:
            return momentum
        rights = [
            right_signs(target, seed=self.seed, step=self.steps_done, number=number)
            for number in range(self.subspace.rank)
        ]
        v_CK = torch.stack(rights, 1)
        bound = (v_CK.T @ v_CK).abs().sum(0).max()
        return (momentum.view(target.rows, -1) @ v_CK @ v_CK.T / bound).view(momentum.shape)
