"""A rule run for some steps on a batch of tasks, with or without a graph.

Legend of shapes: T tasks, K steps.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from featherlight.optim.learned.meta_tasks import Tasks
from featherlight.optim.learned.protocols import Tensors, UpdateRule


class Position(NamedTuple):
    """Where a rule stands on each of the tasks.

    Attributes:
        points: of the tasks, (T, ...) each.
        state: of the rule, with a row for each task in every tensor.
    """

    points: Tensors
    state: Any


def begin(rule: UpdateRule, tasks: Tasks) -> Position:
    """The position before the first step.

    Raises:
        ValueError: the rule is made for tensors of other shapes than those of the tasks.
    """
    return Position(tasks.starts, torch.func.vmap(rule.init)(tasks.starts))


def take_steps(
    rule: UpdateRule, tasks: Tasks, position: Position, steps: int, *, recomputed: int | None = None
) -> tuple[Float[Tensor, "K T"], Position]:
    """Runs a rule on all tasks at once.

    Args:
        rule: is asked for each step.
        tasks: T of them.
        position: where it goes on.
        steps: K; each evaluates the gradient of every task once.
        recomputed: steps of which activations are kept together; they are computed a second time in the backward pass, so that
            no more than one such part is in memory. None keeps all.

    Returns:
        The losses before each step, and the position after the last.
    """
    losses: list[Tensor] = []
    for first in range(0, steps, recomputed or steps or 1):
        num = min(recomputed or steps, steps - first)
        if recomputed is None or not torch.is_grad_enabled():
            found, position = _run(rule, tasks, position, num)
        else:
            found, position = _recomputed(rule, tasks, position, num)
        losses.append(found)
    return torch.cat(losses) if losses else tasks.starts[0].new_empty(0, len(tasks)), position


def detached(position: Position) -> Position:
    """The same position without a graph."""
    leaves, kind = tree_flatten(position)
    return tree_unflatten([leaf.detach() for leaf in leaves], kind)


def _run(rule: UpdateRule, tasks: Tasks, position: Position, steps: int) -> tuple[Tensor, Position]:
    points, state = position
    update = torch.func.vmap(rule.update)
    losses = []
    for _ in range(steps):
        found, gradients = tasks.losses_and_gradients(points)
        moves, state = update(gradients, state, points)
        points = tuple(p + move for p, move in zip(points, moves, strict=True))
        losses.append(found)
    return torch.stack(losses), Position(points, state)


def _recomputed(rule: UpdateRule, tasks: Tasks, position: Position, steps: int) -> tuple[Tensor, Position]:
    leaves, kind = tree_flatten(position)

    def part(*tensors: Tensor) -> tuple[Tensor, ...]:
        losses, after = _run(rule, tasks, tree_unflatten(list(tensors), kind), steps)
        return losses, *tree_flatten(after)[0]

    losses, *after = checkpoint(part, *leaves, use_reentrant=False)  # pyright: ignore[reportGeneralTypeIssues]
    return losses, tree_unflatten(after, kind)
