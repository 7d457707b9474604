"""The gradient estimate of a forward-only step, by the fused engine and by dense perturbed copies of the weights."""

import torch
from torch import Tensor, nn

from featherlight.functional import SignStream
from featherlight.objective import PerExampleObjective
from featherlight.optim import SPSA, RankOneSigns, WholeBatchSigns
from featherlight.optim.zeroth_order import Difference, Target, targets_of
from featherlight.optim.zeroth_order.evaluation import SlopeEvaluator

SCALES = (1.0, 3.0, 0.5)


def trained(model: nn.Module) -> list[Target]:
    """All that require a gradient, at three scales in turn."""
    targets = targets_of(model, [{"params": [p for p in model.parameters() if p.requires_grad]}])
    for number, target in enumerate(targets):
        target.scale = SCALES[number % len(SCALES)]
    return targets


def fused_estimate(
    objective: PerExampleObjective,
    targets: list[Target],
    *,
    sigma: float,
    seed: int,
    step: int,
    count: int | None = 1,
    family: RankOneSigns | WholeBatchSigns | None = None,
    difference: Difference | None = None,
) -> tuple[list[Tensor], Tensor]:
    """`sum_k slope_k direction_k` for each target, and the loss. Marks the targets that share their direction.

    The directions are those of `family`, or of RankOneSigns(count).
    """
    family = family or RankOneSigns(count)
    evaluator = SlopeEvaluator(family, sigma, difference=difference)
    measured = evaluator.measure(objective, targets, SignStream(seed=seed, step=step))
    estimate = [torch.zeros_like(target.parameter, dtype=torch.float64) for target in targets]
    for number, slope in enumerate(measured.slopes):
        dense = family.dense(targets, seed=seed, step=step, number=number)
        for total, target, direction in zip(estimate, targets, dense, strict=True):
            total += float(slope) * target.scale * direction.double()
    return [total.detach() for total in estimate], measured.loss


def dense_estimate(
    objective: PerExampleObjective,
    targets: list[Target],
    *,
    sigma: float,
    seed: int,
    step: int,
    count: int | None = 1,
    family: RankOneSigns | WholeBatchSigns | None = None,
    difference: Difference | None = None,
) -> tuple[list[Tensor], Tensor]:
    """The same from SPSA: the weights are exchanged for perturbed copies, one direction at a time."""
    family = family or RankOneSigns(count)
    loss = SPSA(objective, targets, sigma=sigma, directions=family, seed=seed, step=step, difference=difference)()
    return [target.parameter.grad.double() for target in targets if target.parameter.grad is not None], loss


def largest_difference(one: list[Tensor], other: list[Tensor]) -> float:
    """Relative to the largest entry of all."""
    scale = max(float(tensor.abs().max()) for tensor in other)
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True)) / scale
