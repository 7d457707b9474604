"""A rule with its safeguard on a batch of tasks at once.

Legend of shapes: T tasks, K gradient evaluations.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from featherlight.optim.learned import Measured, Safeguard, Tasks, Tensors, UpdateRule
from featherlight.optim.learned.meta_unroll import begin

DESCENT = Safeguard(every=None)
"""Leaves a rule alone as long as it descends: one that was learned for several steps may begin worse than the best gradient step,
and would lose to it in a comparison that looks one step ahead."""


class GuardedPath(NamedTuple):
    """What a guarded run came to.

    Attributes:
        losses: at the points visited, (K + 1, T).
        trials: evaluations of the loss alone that the safeguard made, over all tasks and steps, (T,).
        by_rule: steps that were the rule's, (T,).
    """

    losses: Float[Tensor, "K+1 T"]
    trials: Float[Tensor, "T"]
    by_rule: Float[Tensor, "T"]


class _Trials:
    """The losses around the points of all tasks, and how many were asked for."""

    def __init__(self, tasks: Tasks, points: Tensors, gradients: Tensors, steps: Tensors) -> None:
        self.tasks, self.points, self.gradients, self.steps = tasks, points, gradients, steps
        self.squares = products(gradients, gradients)
        self.count = torch.zeros(len(tasks), dtype=torch.float64)

    def rule(self, scales_B: Tensor, needed_B: Tensor) -> Tensor:
        """The losses at the points moved by multiples of the rule's steps."""
        return self._losses(self.moved(self.steps, scales_B), needed_B)

    def gradient(self, sizes_B: Tensor, needed_B: Tensor) -> tuple[Tensor, Tensor]:
        """The losses after gradient steps, and the decrease that their slopes predict."""
        return self._losses(self.moved(self.gradients, -sizes_B), needed_B), sizes_B * self.squares

    def moved(self, steps: Tensors, scales_T: Tensor) -> Tensors:
        """The points plus multiples of steps; those with a multiple of 0 stay, whatever the step."""
        moved = []
        for p, step in zip(self.points, steps, strict=True):
            scale = scales_T.reshape(-1, *[1] * (p.ndim - 1)).to(p.dtype)
            moved.append(torch.where(scale == 0, p, p + scale * step))
        return tuple(moved)

    def _losses(self, points: Tensors, needed: Tensor) -> Tensor:
        self.count += needed
        return self.tasks.losses(points).double()


@torch.no_grad()
def run_guarded(rule: UpdateRule, tasks: Tasks, evaluations: int, *, safeguard: Safeguard | None = None) -> GuardedPath:
    """A rule of which each step is tested, with gradient steps to fall back on.

    Args:
        rule: makes the steps.
        tasks: T of them.
        evaluations: K, gradients of each task; trials come on top and are counted apart.
        safeguard: None takes `DESCENT`.
    """
    guard = safeguard if safeguard is not None else DESCENT
    (points, state), kept = begin(rule, tasks), guard.init(len(tasks))
    update = torch.func.vmap(rule.update)
    losses, trials, by_rule = [], torch.zeros(len(tasks)), torch.zeros(len(tasks))
    before: tuple[Tensors, Tensors] | None = None
    for _ in range(evaluations):
        found, gradients = tasks.losses_and_gradients(points)
        steps, state = update(gradients, state, points)
        trial = _Trials(tasks, points, gradients, steps)
        spectral = (
            torch.zeros(len(tasks), dtype=torch.float64) if before is None else _spectral(points, gradients, before)
        )
        at = Measured(
            found.double(), products(steps, gradients).nan_to_num(nan=0.0), trial.squares, spectral, trial.squares > 0,
            torch.finfo(found.dtype).eps,
        )  # fmt: skip
        choice, kept = guard.choose(at, kept, trial)
        before = (points, gradients)
        ruled, plain = trial.moved(steps, choice.size_B * choice.rule_B), trial.moved(gradients, -choice.size_B)
        points = tuple(
            torch.where(choice.rule_B.reshape(-1, *[1] * (p.ndim - 1)), one, other)
            for p, one, other in zip(points, ruled, plain, strict=True)
        )
        losses.append(found)
        trials, by_rule = trials + trial.count, by_rule + choice.rule_B
    return GuardedPath(torch.stack([*losses, tasks.losses(points)]), trials, by_rule)


def products(ones: Tensors, others: Tensors) -> Float[Tensor, "T"]:
    """The scalar product of each task, float64."""
    return torch.stack([(a.double() * b.double()).flatten(1).sum(1) for a, b in zip(ones, others, strict=True)]).sum(0)


def _spectral(points: Tensors, gradients: Tensors, before: tuple[Tensors, Tensors]) -> Float[Tensor, "T"]:
    """The squared length of the last step over its product with the change of the gradient; 0 where it has no meaning."""
    moved = tuple(now - old for now, old in zip(points, before[0], strict=True))
    turned = tuple(now - old for now, old in zip(gradients, before[1], strict=True))
    turn = products(moved, turned)
    return torch.where(turn > 0, products(moved, moved) / turn, 0.0).nan_to_num(nan=0.0, posinf=0.0)
