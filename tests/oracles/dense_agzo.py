"""AGZO with dense directions, in float64: inputs of Linear layers from hooks, mixed by signs of the integer oracle."""

import torch
from torch import Tensor, nn

from featherlight.objective import Objective
from featherlight.optim.zeroth_order import Target
from tests.oracles.dense_weights import left_signs, loss_at, right_signs
from tests.oracles.philox import sign


class DenseAGZO:
    """The targets' parameters are moved; `alone` says which weights are those of Linear layers and of nothing else."""

    def __init__(
        self,
        model: nn.Module,
        targets: list[Target],
        alone: set[str],
        *,
        lr: float,
        rank: int,
        sigma: float,
        seed: int,
    ) -> None:
        self.model, self.targets, self.alone = model, targets, alone
        self.lr, self.rank, self.sigma, self.seed = lr, rank, sigma, seed
        self.steps_done = 0

    @torch.no_grad()
    def step(self, objective: Objective) -> None:
        inputs, here = self._run(objective)
        directions = [self._direction(target, inputs.get(target.name, [])) for target in self.targets]
        moved = [
            target.parameter + self.sigma * target.scale * direction
            for target, direction in zip(self.targets, directions, strict=True)
        ]
        slope = (loss_at(objective, self.targets, moved) - here) / self.sigma
        for target, direction in zip(self.targets, directions, strict=True):
            target.parameter.sub_(self.lr * target.scale * slope * direction)
        self.steps_done += 1

    def _run(self, objective: Objective) -> tuple[dict[str, list[Tensor]], float]:
        inputs: dict[str, list[Tensor]] = {name: [] for name in self.alone}
        hooks = []
        for name in self.alone:

            def note(module: nn.Module, args: tuple[Tensor, ...], calls: list[Tensor] = inputs[name]) -> None:
                calls.append(args[0].flatten(0, -2))

            hooks.append(self.model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(note))
        loss = float(objective.value())
        for hook in hooks:
            hook.remove()
        return inputs, loss

    def _direction(self, target: Target, calls: list[Tensor]) -> Tensor:
        left = left_signs(target, seed=self.seed, step=self.steps_done)
        if not target.columns:
            return left.view(target.parameter.shape)
        right = right_signs(target, seed=self.seed, step=self.steps_done)
        if calls:
            basis = self._basis([self._mixture(target, calls, number) for number in range(self.rank)])
            signs = self._signs(target, 2**30, range(len(basis)))
            right = torch.tensor(signs, dtype=torch.float64) @ torch.stack(basis)
            right = right / right.square().mean().sqrt()
        return torch.outer(left, right).view(target.parameter.shape)

    def _mixture(self, target: Target, calls: list[Tensor], number: int) -> Tensor:
        mixed = torch.zeros(target.columns, dtype=torch.float64)
        for call, x_NC in enumerate(calls):
            signs = self._signs(target, call, range(number * len(x_NC), (number + 1) * len(x_NC)))
            mixed += torch.tensor(signs, dtype=torch.float64) @ x_NC
        return mixed

    def _basis(self, mixtures: list[Tensor]) -> list[Tensor]:
        """Gram and Schmidt's; what adds nothing is left out."""
        basis: list[Tensor] = []
        for mixture in mixtures:
            rest = mixture
            for _ in range(2):
                for one in basis:
                    rest = rest - (rest @ one) * one
            if rest.norm() > 1e-8 * mixture.norm():
                basis.append(rest / rest.norm())
        return basis

    def _signs(self, target: Target, direction: int, elements: range) -> list[int]:
        stream = {"seed": self.seed, "step": self.steps_done, "parameter": target.index + 2**30}
        return [sign(element, **stream, direction=direction) for element in elements]
