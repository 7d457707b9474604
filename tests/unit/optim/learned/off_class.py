"""Batches of problems that are off the class a rule was learned on, and a safeguarded rule run on all of them at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from featherlight.optim.learned import ConvexRule, FullSteps, Measured, PastTerms, Safeguard

SIZE = 8


@dataclass(frozen=True)
class Problems:
    """B problems of one vector: `x'H x / 2`, or with data the mean of `log(1 + exp(-a'x))` plus it.

    Attributes:
        curvature: H, (B, N, N).
        data: a, (B, M, N), or None.
        start: (B, N).
    """

    curvature: Tensor
    data: Tensor | None
    start: Tensor

    def value(self, x: Tensor) -> Tensor:
        quadratic = 0.5 * torch.einsum("bi,bij,bj->b", x, self.curvature, x)
        if self.data is None:
            return quadratic
        return quadratic + torch.nn.functional.softplus(-torch.einsum("bmi,bi->bm", self.data, x)).mean(1)

    def gradient(self, x: Tensor) -> Tensor:
        slope = torch.einsum("bij,bj->bi", self.curvature, x)
        if self.data is None:
            return slope
        shares = torch.sigmoid(-torch.einsum("bmi,bi->bm", self.data, x)) / self.data.shape[1]
        return slope - torch.einsum("bm,bmi->bi", shares, self.data)

    def lowest(self) -> Tensor:
        """By Newton's method, (B)."""
        if self.data is None:
            return torch.zeros(len(self.start), dtype=torch.float64)
        x = torch.zeros_like(self.start)
        for _ in range(50):
            s = torch.sigmoid(-torch.einsum("bmi,bi->bm", self.data, x))
            weights = s * (1 - s) / self.data.shape[1]
            curved = self.curvature + torch.einsum("bm,bmi,bmj->bij", weights, self.data, self.data)
            x = x - torch.linalg.solve(curved, self.gradient(x))
        return self.value(x)


def class_metric() -> Tensor:
    """H of the class that the rule was learned on."""
    basis = torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(7)))[0]
    return basis @ torch.diag(torch.logspace(0, -2, SIZE, dtype=torch.float64)) @ basis.T


def learned_rule() -> ConvexRule:
    """Solves its own class in one step but for a little momentum."""
    return ConvexRule(FullSteps.from_inverse([torch.linalg.inv(class_metric())]), PastTerms(step_weights=(0.1,)))


def shifted(kind: str, count: int, generator: torch.Generator) -> Problems:
    """Problems off the class: of other scales, turned, bent, of other spectra, or no quadratics."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    own, start, data = class_metric(), normal(count, SIZE), None
    values, basis = torch.linalg.eigh(own)
    if kind == "scaled":
        curvature = own * 10 ** (4 * uniform(count, 1, 1) - 2)
    elif kind == "turned":
        turn = torch.linalg.qr(normal(count, SIZE, SIZE))[0]
        curvature = turn @ torch.diag(values) @ turn.mT
    elif kind == "bent":
        bend = torch.eye(SIZE, dtype=torch.float64) + uniform(count, 1, 1) * normal(count, SIZE, SIZE) / SIZE**0.5
        bent = bend @ own @ bend.mT
        curvature = bent + 1e-2 * torch.eye(SIZE, dtype=torch.float64)
    elif kind == "other spectra":
        curvature = basis @ torch.diag_embed(10 ** (-1.5 * uniform(count, SIZE))) @ basis.T
    else:
        curvature = 0.02 * own.expand(count, -1, -1) + 0.01 * torch.eye(SIZE, dtype=torch.float64)
        data = 3 * normal(count, 24, SIZE)
    return Problems(curvature, data, start)


class Run(NamedTuple):
    """Of each problem: evaluations until the target, the state's own count of them, and the highest value over the first."""

    evaluations: Tensor
    counted: Tensor
    highest: Tensor


class _Batch:
    """Trials that count the rows they evaluate."""

    def __init__(self, problems: Problems) -> None:
        self.problems, self.count = problems, torch.zeros(len(problems.start), dtype=torch.float64)
        self.x = self.g = self.step = problems.start

    def rule(self, scales_B: Tensor, needed_B: Tensor) -> Tensor:
        self.count = self.count + needed_B
        return self.problems.value(self.x + scales_B[:, None] * self.step)

    def gradient(self, sizes_B: Tensor, needed_B: Tensor) -> tuple[Tensor, Tensor]:
        self.count = self.count + needed_B
        return self.problems.value(self.x - sizes_B[:, None] * self.g), sizes_B * self.g.square().sum(1)


def run_safely(problems: Problems, rule: ConvexRule, guard: Safeguard, target: Tensor, max_steps: int = 4000) -> Run:
    """All problems in step, each until it is below its target."""
    update: Callable[..., tuple[tuple[Tensor], object]] = torch.func.vmap(rule.update)
    trials, state = _Batch(problems), guard.init(len(problems.start))
    rule_state = torch.func.vmap(lambda x: rule.init((x,)))(problems.start)
    first = highest = problems.value(problems.start)
    reached = torch.full_like(first, torch.inf)
    spectral = torch.zeros_like(first)
    for _ in range(max_steps):
        active = reached.isinf()
        if not bool(active.any()):
            break
        x = trials.x
        value, trials.g = problems.value(x), problems.gradient(x)
        trials.count = trials.count + active
        (trials.step,), rule_state = update((trials.g,), rule_state, (x,))
        slopes, squares = (trials.step * trials.g).sum(1), trials.g.square().sum(1)
        choice, state = guard.choose(Measured(value, slopes, squares, spectral, active), state, trials)
        direction = torch.where(choice.rule_B[:, None], trials.step, -trials.g)
        trials.x = x + choice.size_B[:, None] * direction
        moved, turned = trials.x - x, problems.gradient(trials.x) - trials.g
        spectral = (moved.square().sum(1) / (moved * turned).sum(1)).nan_to_num(nan=0.0, posinf=0.0)
        highest = torch.maximum(highest, problems.value(trials.x))
        reached = torch.where(active & (problems.value(trials.x) <= target), trials.count, reached)
    return Run(reached, state.evaluations_B, highest - first)
