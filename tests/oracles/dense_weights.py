"""What the dense references of forward-only methods share: signs from the integer oracle, weights set by hand."""

import torch
from torch import Tensor

from featherlight.objective import Objective
from featherlight.optim.zeroth_order import Target
from tests.oracles.philox import sign


def left_signs(target: Target, *, seed: int, step: int, number: int = 0) -> Tensor:
    """(R,) float64."""
    stream = {"seed": seed, "step": step, "parameter": target.index, "direction": number}
    return torch.tensor([sign(row, **stream) for row in range(target.rows)], dtype=torch.float64)


def right_signs(target: Target, *, seed: int, step: int, number: int = 0) -> Tensor:
    """(C,) float64; they stand behind the left ones, at the next multiple of 128."""
    stream = {"seed": seed, "step": step, "parameter": target.index, "direction": number}
    behind = -(-target.rows // 128) * 128
    return torch.tensor([sign(behind + column, **stream) for column in range(target.columns)], dtype=torch.float64)


def sign_direction(target: Target, *, seed: int, step: int, right_step: int, number: int = 0) -> Tensor:
    """One direction of the parameter's shape."""
    left = left_signs(target, seed=seed, step=step, number=number)
    if not target.columns:
        return left.view(target.parameter.shape)
    right = right_signs(target, seed=seed, step=right_step, number=number)
    return torch.outer(left, right).view(target.parameter.shape)


def loss_at(objective: Objective, targets: list[Target], weights: list[Tensor]) -> float:
    """The loss with these weights in the place of the model's own, which are put back."""
    before = [target.parameter.data for target in targets]
    for target, weight in zip(targets, weights, strict=True):
        target.parameter.data = weight.to(target.parameter.dtype)
    loss = float(objective.value())
    for target, data in zip(targets, before, strict=True):
        target.parameter.data = data
    return loss
