"""Learned rules and tuned optimizers on the same tasks, by the losses at the points they visit.

Legend of shapes: T tasks, K gradient evaluations. Row k of the losses is the point that k evaluations lead to.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, Optimizer

from featherlight.optim.learned.meta_score import evaluations_to, relative_gaps
from featherlight.optim.learned.meta_tasks import Tasks
from featherlight.optim.learned.meta_unroll import begin, take_steps
from featherlight.optim.learned.protocols import UpdateRule

Runner = Callable[[Tasks, int], Float[Tensor, "K+1 T"]]
"""From tasks and a number of gradient evaluations to the losses along the paths."""


@torch.no_grad()
def run_rule(rule: UpdateRule, tasks: Tasks, evaluations: int) -> Float[Tensor, "K+1 T"]:
    """A rule, with nothing to guard it."""
    losses, position = take_steps(rule, tasks, begin(rule, tasks), evaluations)
    return torch.cat([losses, tasks.losses(position.points)[None]])


def run_elementwise(
    make: Callable[[Sequence[nn.Parameter]], Optimizer], tasks: Tasks, evaluations: int
) -> Float[Tensor, "K+1 T"]:
    """An optimizer of torch that treats every entry by itself, and so a batch of tasks as one problem."""
    points = tuple(nn.Parameter(p.clone()) for p in tasks.starts)
    optimizer, losses = make(points), []
    for _ in range(evaluations):
        found, gradients = tasks.losses_and_gradients(tuple(p.detach() for p in points))
        for p, gradient in zip(points, gradients, strict=True):
            p.grad = gradient
        optimizer.step()
        losses.append(found)
    with torch.no_grad():
        return torch.stack([*losses, tasks.losses(points)])


def run_one_by_one(
    make: Callable[[Sequence[nn.Parameter]], Optimizer], tasks: Tasks, evaluations: int, *, solved: float = 1e-14
) -> Float[Tensor, "K+1 T"]:
    """An optimizer of torch that goes all the way in one `step`, task by task; all points of its line searches count.

    It is stopped where no more than the share `solved` of the gap at the start is left.
    """
    paths = [_one_path(make, tasks.at(torch.tensor([number])), evaluations, solved) for number in range(len(tasks))]
    return torch.stack(paths, 1)


_MANY = 1_000_000
_ROUNDING = 1e-28


def run_conjugate_gradients(tasks: Tasks, evaluations: int) -> Float[Tensor, "K+1 T"]:
    """Conjugate gradients with exact step lengths, for quadratic losses of one tensor: the best there is without learning.

    Each iteration takes one gradient, a step along the direction, from which the curvature along it follows.
    """
    (x,) = tasks.starts
    first, (g,) = tasks.losses_and_gradients((x,))
    losses, p, least = [first, first], -g, g.square().sum(1, keepdim=True)
    for _ in range(evaluations - 1):
        _, (there,) = tasks.losses_and_gradients((x + p,))
        curved, square = there - g, g.square().sum(1, keepdim=True)
        going = square > _ROUNDING * least
        length = torch.where(going, square / (p * curved).sum(1, keepdim=True).clamp(min=1e-300), 0.0)
        x, g = x + length * p, g + length * curved
        p = -g + p * g.square().sum(1, keepdim=True) / square.clamp(min=1e-300)
        losses.append(tasks.losses((x,)))
    return torch.stack(losses)


class _OutOfEvaluationsError(Exception):
    pass


def _one_path(
    make: Callable[[Sequence[nn.Parameter]], Optimizer], task: Tasks, evaluations: int, solved: float
) -> Float[Tensor, "K+1"]:
    points = tuple(nn.Parameter(p.clone()) for p in task.starts)
    optimizer, losses = make(points), []
    lowest = task.best[0] if task.best is not None else 0.0

    def closure() -> Tensor:
        if len(losses) > evaluations:
            raise _OutOfEvaluationsError
        found, gradients = task.losses_and_gradients(tuple(p.detach() for p in points))
        for p, gradient in zip(points, gradients, strict=True):
            p.grad = gradient.contiguous()
        losses.append(found[0])
        if found[0] - lowest <= solved * (losses[0] - lowest):
            raise _OutOfEvaluationsError
        return found[0]

    with suppress(_OutOfEvaluationsError):
        optimizer.step(closure)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return torch.stack(losses + [losses[-1]] * (evaluations + 1 - len(losses)))


@dataclass(frozen=True, kw_only=True)
class Rival:
    """An optimizer with one setting to tune.

    Attributes:
        name: for people.
        settings: that are tried.
        run: from a setting to a runner.
    """

    name: str
    settings: Sequence[float]
    run: Callable[[float], Runner]


def rivals(per_decade: int = 2, lowest: float = 1e-4, highest: float = 30.0, *, solved: float = 1e-14) -> list[Rival]:
    """Gradient descent, Adam and L-BFGS of torch (with strong Wolfe line search), each by its learning rate.

    Args:
        per_decade: learning rates tried in a factor of ten; every rival tries the same ones.
        lowest: learning rate.
        highest: learning rate.
        solved: share of the gap at which L-BFGS is stopped; the target, where nothing but that counts.
    """
    ends = torch.tensor([lowest, highest], dtype=torch.float64).log10()
    count = round(float(ends[1] - ends[0]) * per_decade) + 1
    rates = torch.logspace(float(ends[0]), float(ends[1]), count, dtype=torch.float64).tolist()

    def lbfgs(rate: float) -> Callable[[Any], Optimizer]:
        search = {"tolerance_grad": 0.0, "tolerance_change": 0.0, "line_search_fn": "strong_wolfe"}
        return lambda points: LBFGS(points, lr=rate, max_iter=_MANY, max_eval=_MANY, history_size=10, **search)

    return [
        Rival(
            name="gradient descent",
            settings=rates,
            run=lambda rate: lambda t, k: run_elementwise(lambda p: SGD(p, lr=rate), t, k),
        ),
        Rival(
            name="Adam", settings=rates, run=lambda rate: lambda t, k: run_elementwise(lambda p: Adam(p, lr=rate), t, k)
        ),
        Rival(
            name="L-BFGS",
            settings=rates,
            run=lambda rate: lambda t, k: run_one_by_one(lbfgs(rate), t, k, solved=solved),
        ),
    ]


def tuned(rival: Rival, tasks: Tasks, *, evaluations: int, target: float) -> tuple[float, Mapping[float, float]]:
    """The setting with the fewest median evaluations to the target on training tasks; of ties, the lowest median end.

    Args:
        rival: what is tuned.
        tasks: not those that are judged on.
        evaluations: given to each setting.
        target: relative gap that counts as solved.

    Returns:
        The setting, and the median evaluations of each.
    """
    medians, ends = {}, {}
    for setting in rival.settings:
        gaps = relative_gaps(rival.run(setting)(tasks, evaluations), tasks.best).nan_to_num(nan=torch.inf)
        medians[setting] = float(evaluations_to(gaps, target).quantile(0.5, interpolation="higher"))
        ends[setting] = float(gaps[-1].quantile(0.5, interpolation="higher"))
    return min(rival.settings, key=lambda one: (medians[one], ends[one])), medians
