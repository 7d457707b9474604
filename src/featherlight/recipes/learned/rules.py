"""The rule that a method learns, and the optimizer and objective that learn it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from featherlight.meter import Meter
from featherlight.objective import ClipGradient, Objective
from featherlight.optim import SPSA, WholeBatchSigns
from featherlight.optim.learned import (
    FullSteps,
    GreedyLeastSquares,
    GreedyRule,
    KroneckerSteps,
    MeanCurvature,
    MeanLogGap,
    MetaObjective,
    SecantRule,
    Tasks,
)
from featherlight.optim.zeroth_order.targets import targets_of
from featherlight.recipes.learned.config import LearnedConfig

_CLIP = 1.0
_SIGMA = 0.02
_DIRECTIONS = 8
_RESCALE = 0.5

Rule = GreedyRule | SecantRule
"""What the recipes learn."""


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A method by its parts.

    Attributes:
        rule: an unlearned one for tensors like these.
        optimizer: moves the rule's tensors.
        objective: of a step, from rule, tasks, step and meter.
        steps: of meta-training.
        fresh: whether each step takes tasks of its own.
    """

    rule: Callable[[LearnedConfig, Sequence[Tensor]], Rule]
    optimizer: Callable[[LearnedConfig, Rule], Optimizer]
    objective: Callable[[LearnedConfig, Rule, Tasks, int, Meter, Callable[[Sequence[int]], None]], Objective]
    steps: Callable[[LearnedConfig], int]
    fresh: bool


def any_width(points: Sequence[Tensor]) -> KroneckerSteps:
    """A Kronecker metric of identities for a vector, or for a net with one hidden layer of any width.

    Args:
        points: one vector; or weights and biases of two layers, of which only inputs and outputs get factors.
    """
    if len(points) == 1:
        return KroneckerSteps([_eye(points[0], points[0].numel())], [None])
    first, _, second, _ = points
    outputs = _eye(second, len(second))
    return KroneckerSteps([None, None, outputs, outputs], [_eye(first, first.shape[1]), None, None, None])


def _eye(like: Tensor, size: int) -> Tensor:
    return torch.eye(size, dtype=like.dtype)


def _greedy_rule(config: LearnedConfig, points: Sequence[Tensor]) -> Rule:
    shapes = [p.shape for p in points]
    return GreedyRule(shapes, horizon=config.horizon, memory=config.memory, dtype=points[0].dtype)


def _full_secant(config: LearnedConfig, points: Sequence[Tensor]) -> Rule:
    return SecantRule(FullSteps.constant(points), pairs=config.memory)


def _secant(config: LearnedConfig, points: Sequence[Tensor]) -> Rule:
    return SecantRule(any_width(points), pairs=config.memory, rescale=_RESCALE)


def _greedy_optimizer(config: LearnedConfig, rule: Rule) -> Optimizer:
    assert isinstance(rule, GreedyRule)
    return GreedyLeastSquares(rule)


def _curvature_optimizer(config: LearnedConfig, rule: Rule) -> Optimizer:
    assert isinstance(rule, SecantRule)
    return MeanCurvature(rule)


def _adam(config: LearnedConfig, rule: Rule) -> Optimizer:
    return Adam(rule.parameters(), lr=config.lr)


def _one_step(
    config: LearnedConfig, rule: Rule, tasks: Tasks, step: int, meter: Meter, dropped: Callable[[Sequence[int]], None]
) -> Objective:
    return MetaObjective(rule, tasks, 1, meter=meter, on_dropped=dropped)


def _unrolled(
    config: LearnedConfig, rule: Rule, tasks: Tasks, step: int, meter: Meter, dropped: Callable[[Sequence[int]], None]
) -> Objective:
    settings = {"truncation": config.truncation, "recomputed": config.recomputed}
    objective = MetaObjective(
        rule, tasks, config.horizon, score=MeanLogGap(), meter=meter, on_dropped=dropped, **settings
    )
    return ClipGradient(objective, rule.parameters(), _CLIP)


def _evolution(
    config: LearnedConfig, rule: Rule, tasks: Tasks, step: int, meter: Meter, dropped: Callable[[Sequence[int]], None]
) -> Objective:
    objective = MetaObjective(rule, tasks, config.horizon, meter=meter, on_dropped=dropped)
    targets = targets_of(rule, [{"params": list(rule.parameters())}])
    return SPSA(objective, targets, sigma=_SIGMA, directions=WholeBatchSigns(_DIRECTIONS), seed=config.seed, step=step)


LEARNERS: Mapping[str, Learner] = {
    "greedy": Learner(
        rule=_greedy_rule,
        optimizer=_greedy_optimizer,
        objective=_one_step,
        steps=lambda config: config.horizon,
        fresh=False,
    ),
    "curvature": Learner(
        rule=_full_secant, optimizer=_curvature_optimizer, objective=_one_step, steps=lambda config: 1, fresh=False
    ),
    "unrolled": Learner(
        rule=_secant, optimizer=_adam, objective=_unrolled, steps=lambda config: config.steps, fresh=True
    ),
    "evolution": Learner(
        rule=_secant, optimizer=_adam, objective=_evolution, steps=lambda config: config.steps, fresh=True
    ),
}
"""By the names that configs use."""
