"""MeZO-SVRG with an anchor that is a copy of the weights and gradients that are dense tensors, in float64."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from featherlight.objective import PerExampleObjective
from featherlight.optim import SPSA, RankOneSigns
from featherlight.optim.zeroth_order import targets_of

LARGEST = 4095


def svrg(
    model: nn.Module,
    objective_at: Callable[[nn.Module, int], PerExampleObjective],
    *,
    steps: int,
    lr: float,
    anchor_lr: float,
    anchor_every: int,
    sigma: float,
    count: int | None,
    seed: int,
) -> None:
    """Trains in place. A slope is counted in whole 4095ths of the largest of its step, as records do."""
    anchor, full = model, []
    for step in range(steps):
        if step % anchor_every == 0:
            anchor = copy.deepcopy(model)
            full = gradient(slopes(anchor, objective_at(anchor, step), sigma, count, seed, step), anchor, seed, step)
            change = [anchor_lr * g for g in full]
        else:
            here = slopes(model, objective_at(model, step), sigma, count, seed, step)
            there = slopes(anchor, objective_at(anchor, step), sigma, count, seed, step)
            small = gradient(here - there, model, seed, step)
            change = [lr * (a + g) for a, g in zip(small, full, strict=True)]
        with torch.no_grad():
            for parameter, amount in zip(model.parameters(), change, strict=True):
                parameter -= amount


def slopes(
    model: nn.Module, objective: PerExampleObjective, sigma: float, count: int | None, seed: int, step: int
) -> Tensor:
    """(K,): what SPSA puts into the gradient, read off against each direction."""
    targets = targets_of(model, [{"params": list(model.parameters())}])
    family = RankOneSigns(count)
    SPSA(objective, targets, sigma=sigma, directions=family, seed=seed, step=step)()
    number = 1 if count == 1 else min(objective.num_examples, count or objective.num_examples)
    dense = [
        torch.cat([d.flatten() for d in family.dense(targets, seed=seed, step=step, number=k)]) for k in range(number)
    ]
    found = torch.cat([target.parameter.grad.flatten() for target in targets if target.parameter.grad is not None])
    return torch.linalg.lstsq(torch.stack(dense, 1), found[:, None]).solution[:, 0]


def gradient(slopes: Tensor, model: nn.Module, seed: int, step: int) -> list[Tensor]:
    """`sum_k slope_k direction_k`, the slopes rounded to whole units."""
    unit = float((slopes.abs().max() / LARGEST).to(torch.float32))
    whole = (slopes / unit).round().clamp(-LARGEST, LARGEST) * unit if unit else slopes
    targets = targets_of(model, [{"params": list(model.parameters())}])
    total = [torch.zeros_like(target.parameter) for target in targets]
    for number, slope in enumerate(whole):
        for one, direction in zip(
            total, RankOneSigns().dense(targets, seed=seed, step=step, number=number), strict=True
        ):
            one += slope * direction
    return total
