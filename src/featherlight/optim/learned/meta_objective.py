"""Meta-training as one more Objective: the loss is how well a rule does on a batch of tasks.

Legend of shapes: T tasks, K steps.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.meter import Meter
from featherlight.objective import NonFiniteLossError
from featherlight.optim.learned.meta_score import MeanLogGap, Score
from featherlight.optim.learned.meta_tasks import Tasks
from featherlight.optim.learned.meta_unroll import begin, detached, take_steps
from featherlight.optim.learned.protocols import UpdateRule


class MetaObjective:
    """The mean score of a rule over a batch of tasks, each run for `horizon` steps from its start.

    `loss = optimizer.step(MetaObjective(rule, tasks, horizon))` with a torch optimizer over `rule.parameters()` learns by
    backpropagation through the steps. Evolution strategies are the same through a forward-only objective:
    `optimizer.step(SPSA(MetaObjective(...), targets_of(rule, None), sigma=..., directions=Gaussian(1)))`.

    Args:
        rule: a module that is an UpdateRule; its parameters are learned.
        tasks: the meta-batch.
        horizon: K, steps on each task.
        score: of the losses along a path; None takes `MeanLogGap()`.
        truncation: steps through which gradients are taken; the path goes on from there without what came before. None goes
            through all.
        recomputed: steps of which activations are kept together, computed a second time in the backward pass; None keeps all.
        meter: counts gradient evaluations of tasks, one example each.
        on_dropped: is handed the places of tasks that are dropped from the meta-batch.

    Attributes:
        tasks: those that are left. A task whose losses or gradients are not finite, on its own, is dropped for good.
        dropped: places in the meta-batch of those that are not.

    Raises:
        ValueError: `horizon`, `truncation` or `recomputed` is below 1, or the rule is made for other shapes.
        NonFiniteLossError: (when called) no task is left.

    Cost: K gradients of each task, and about twice as much for the backward pass; memory for the activations of
    `truncation` steps, or with `recomputed` for those of so many and the positions between.
    Source: unrolled learning, Andrychowicz et al. 2016 (arXiv 1606.04474); evolution strategies for it, Metz et al. 2019
    (arXiv 1810.10180).
    """

    def __init__(
        self,
        rule: UpdateRule,
        tasks: Tasks,
        horizon: int,
        *,
        score: Score | None = None,
        truncation: int | None = None,
        recomputed: int | None = None,
        meter: Meter | None = None,
        on_dropped: Callable[[Sequence[int]], None] = lambda places: None,
    ) -> None:
        if horizon < 1:
            raise ValueError(
                f"`horizon` must be at least 1 step, or there is no step to learn from: a rule is judged by where its steps "
                f"lead; got {horizon}."
            )
        for name, value in (("truncation", truncation), ("recomputed", recomputed)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1 step, or None for all; got {value}.")
        if not isinstance(rule, nn.Module):
            raise ValueError(
                f"`rule` must be a torch Module, whose parameters are what is learned; got a {type(rule).__name__}."
            )
        self.rule: UpdateRule = rule
        self._module: nn.Module = rule
        self.tasks = tasks
        self.horizon = horizon
        self.score: Score = score if score is not None else MeanLogGap()
        self.truncation = truncation
        self.recomputed = recomputed
        self.meter = meter if meter is not None else Meter()
        self.on_dropped = on_dropped
        self.dropped: list[int] = []
        self._places = torch.arange(len(tasks))
        begin(rule, tasks.at(torch.zeros(1, dtype=torch.int64, device=tasks.starts[0].device)))

    def __call__(self) -> Float[Tensor, ""]:
        """Clears the gradients of the rule, fills them, and returns the mean score of the tasks that are left."""
        while True:
            scores = self._add_gradients(self.tasks)
            bad = ~torch.isfinite(scores)
            if not bad.any() and not self._gradients_finite():
                bad = self._with_broken_gradients()
            if not bad.any():
                return scores.mean()
            self._drop(bad)

    @torch.no_grad()
    def value(self) -> Float[Tensor, ""]:
        """The mean score of the tasks that are left, without a graph."""
        return self.values().mean()

    @torch.no_grad()
    def values(self) -> Float[Tensor, "T"]:
        """The score of each task, without a graph; one that is dropped has the mean of the others, and so no weight."""
        scores = self._scores(self.tasks)
        if not torch.isfinite(scores).all():
            self._drop(~torch.isfinite(scores))
            scores = self._scores(self.tasks)
        whole = scores.mean().repeat(len(scores) + len(self.dropped))
        whole[self._places.to(scores.device)] = scores
        return whole

    def _scores(self, tasks: Tasks) -> Tensor:
        return torch.stack([part.detach() for part in self._windows(tasks)]).sum(0)

    def _add_gradients(self, tasks: Tasks) -> Tensor:
        """Fills the gradients of the mean score, window by window; stops at one that is not finite."""
        self._clear()
        total = torch.zeros(len(tasks), device=tasks.starts[0].device)
        for scores in self._windows(tasks):
            total = total + scores.detach()
            if not torch.isfinite(scores).all():
                break
            if scores.requires_grad:
                scores.mean().backward()
        return total

    def _windows(self, tasks: Tasks) -> Iterator[Tensor]:
        """The score of each task in each window, as its share of the horizon."""
        position, length = begin(self.rule, tasks), self.truncation or self.horizon
        for first in range(0, self.horizon, length):
            steps = min(length, self.horizon - first)
            losses, position = take_steps(self.rule, tasks, detached(position), steps, recomputed=self.recomputed)
            self._count(tasks, steps)
            path = torch.cat([losses, tasks.losses(position.points)[None]])
            yield self.score(path, tasks.best) * (steps / self.horizon)

    def _count(self, tasks: Tasks, steps: int) -> None:
        self.meter.example_forwards += steps * len(tasks)
        self.meter.backward_passes += steps * len(tasks) * (2 if torch.is_grad_enabled() else 1)

    def _clear(self) -> None:
        for parameter in self._module.parameters():
            parameter.grad = None

    def _gradients_finite(self) -> bool:
        return all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in self._module.parameters())

    def _with_broken_gradients(self) -> Tensor:
        """Which tasks have gradients that are not finite on their own."""
        broken = []
        for place in torch.arange(len(self.tasks), device=self.tasks.starts[0].device):
            self._add_gradients(self.tasks.at(place[None]))
            broken.append(not self._gradients_finite())
        if not any(broken):
            raise NonFiniteLossError(
                "the gradient of the rule overflows over the meta-batch though no task's own does; the step was not applied. "
                "Lower the horizon or the learning rate, or learn in float64."
            )
        return torch.tensor(broken)

    def _drop(self, bad: Tensor) -> None:
        bad = bad.cpu()
        lost = self._places[bad].tolist()
        self.dropped += lost
        self._places = self._places[~bad]
        if not len(self._places):
            raise NonFiniteLossError(
                f"none of the {len(lost)} tasks that were left has a finite score over a horizon of {self.horizon} steps; the "
                "step was not applied. Look at the tasks' losses at their starts; if these are finite the rule diverges: start "
                "from smaller steps or a shorter horizon."
            )
        self.on_dropped(lost)
        self.tasks = self.tasks.at((~bad).nonzero().flatten().to(self.tasks.starts[0].device))
