"""The safeguard: nothing diverges off the class and hardly an evaluation is lost; on the class the rule is left alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featherlight.optim.learned import (
    ConvexRule,
    ConvexUpdate,
    FullSteps,
    L1Penalty,
    PointIn,
    Safeguard,
    ScalarSteps,
)
from featherlight.solvers.convex import Box
from tests.oracles.first_order_methods import backtracking_descent
from tests.unit.optim.learned.off_class import SIZE, Problems, class_metric, learned_rule, run_safely, shifted


def targets(problems: Problems, tolerance: float) -> Tensor:
    lowest = problems.lowest()
    return lowest + tolerance * (problems.value(problems.start) - lowest)


@pytest.mark.parametrize("kind", ["scaled", "turned", "bent", "other spectra", "logistic"])
@torch.no_grad()
def test_a_thousand_shifted_tasks_never_take_a_tenth_more_than_gradient_descent(kind: str) -> None:
    """Two hundred of each kind. What takes descent more than 800 evaluations counts as 800."""
    problems = shifted(kind, 200, torch.Generator().manual_seed(0))
    target = targets(problems, 1e-8)
    run = run_safely(problems, learned_rule(), Safeguard(), target)
    plain = backtracking_descent(problems.value, problems.gradient, problems.start, target, limit=800)
    assert torch.equal(run.counted, run.evaluations)
    assert float(run.highest.max()) <= 0
    assert float((run.evaluations / plain).max()) <= 1.1


class One:
    """The Objective of one problem of a batch."""

    def __init__(self, problems: Problems, number: int, x: nn.Parameter) -> None:
        data = problems.data[number, None] if problems.data is not None else None
        self.problem = Problems(problems.curvature[number, None], data, problems.start[number, None])
        self.x, self.evaluations, self.seen = x, 0, list[float]()

    def __call__(self) -> Tensor:
        self.x.grad = self.problem.gradient(self.x.detach()[None])[0]
        return self.value()

    def value(self) -> Tensor:
        self.evaluations += 1
        self.seen.append(float(self.problem.value(self.x.detach()[None])[0]))
        return torch.tensor(self.seen[-1], dtype=torch.float64)

    def values(self) -> Tensor:
        return self.value()[None]


@pytest.mark.parametrize("kind", ["scaled", "logistic"])
def test_the_optimizer_counts_and_steps_as_the_batch_does(kind: str) -> None:
    with torch.no_grad():
        problems = shifted(kind, 3, torch.Generator().manual_seed(1))
        target = targets(problems, 1e-6)
        run = run_safely(problems, learned_rule(), Safeguard(), target)
    for number in range(3):
        x = nn.Parameter(problems.start[number].clone())
        objective = One(problems, number, x)
        optimizer = ConvexUpdate([x], learned_rule())
        while float(objective.problem.value(x.detach()[None])[0]) > float(target[number]):
            optimizer.step(objective)
        assert objective.evaluations == int(run.evaluations[number])
        assert objective.evaluations == int(optimizer.state[x]["safeguard"][5])


def test_on_its_class_a_rule_is_left_alone_but_for_one_comparison() -> None:
    problems = Problems(class_metric()[None], None, torch.ones(1, SIZE, dtype=torch.float64))
    x, free = nn.Parameter(problems.start[0].clone()), nn.Parameter(problems.start[0].clone())
    objective, other = One(problems, 0, x), One(problems, 0, free)
    rule = ConvexRule(FullSteps.from_inverse([0.7 * torch.linalg.inv(class_metric())]))
    guarded, alone = ConvexUpdate([x], rule), ConvexUpdate([free], rule, safeguard=None)
    for _ in range(6):
        guarded.step(objective)
        alone.step(other)
        torch.testing.assert_close(x.detach(), free.detach(), rtol=0, atol=1e-14)
    assert other.evaluations == 6
    assert objective.evaluations <= 6 + 6 + 3


@pytest.mark.parametrize("outside", [False, True])
def test_under_a_constraint_and_a_penalty_it_goes_to_the_minimum(outside: bool) -> None:
    problems = shifted("turned", 1, torch.Generator().manual_seed(3))
    x = nn.Parameter(3 * problems.start[0] if outside else 0 * problems.start[0] + 0.5)
    objective = One(problems, 0, x)
    rule = ConvexRule(
        FullSteps.from_inverse([torch.linalg.inv(class_metric())]),
        constraint=PointIn(Box(0.2, 0.9)),
        prox=L1Penalty(0.01),
    )
    optimizer = ConvexUpdate([x], rule)
    optimizer.step(objective)
    assert bool(((x >= 0.2 - 1e-12) & (x <= 0.9 + 1e-12)).all())
    for _ in range(150):
        optimizer.step(objective)
    slope = objective.problem.gradient(x.detach()[None])[0] + 0.01
    projected = (x.detach() - slope).clamp(0.2, 0.9)
    torch.testing.assert_close(projected, x.detach(), rtol=0, atol=1e-6)


class Wild(nn.Module):
    """A rule whose steps are far too long, go uphill or are no numbers, in turn."""

    def init(self, points: Any) -> tuple[Tensor]:
        return (torch.zeros((), dtype=torch.float64),)

    def update(self, gradients: Any, state: Any, points: Any) -> tuple[Any, Any]:
        factor = (-1e12, 1.0, float("nan"), 1e200)[int(state[0]) % 4]
        return tuple(factor * g for g in gradients), (state[0] + 1,)


def test_steps_that_make_no_sense_cost_evaluations_and_nothing_else() -> None:
    problems = shifted("turned", 1, torch.Generator().manual_seed(2))
    x = nn.Parameter(problems.start[0].clone())
    objective = One(problems, 0, x)
    optimizer = ConvexUpdate([x], Wild(), safeguard=Safeguard(share=0.5))
    losses = [float(optimizer.step(objective)) for _ in range(150)]
    assert max(losses) == losses[0]
    assert losses[-1] < 1e-6 * losses[0]


def test_an_error_in_a_trial_leaves_the_weights_alone() -> None:
    problems = shifted("turned", 1, torch.Generator().manual_seed(2))
    x = nn.Parameter(problems.start[0].clone())

    class Failing(One):
        def value(self) -> Tensor:
            if self.evaluations == 1:
                raise KeyboardInterrupt
            return super().value()

    before = x.detach().clone()
    optimizer = ConvexUpdate([x], ConvexRule(FullSteps.from_inverse([torch.eye(SIZE, dtype=torch.float64)])))
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(Failing(problems, 0, x))
    assert torch.equal(x.detach(), before)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"share": 1.0}, r"`share` must be in \[0, 1\)"),
        ({"every": 0}, "`every` must be at least 1 evaluation; got 0. None never compares"),
        ({"sufficient": 0.5}, r"`sufficient` must be in \(0, 0.5\), or exact steps would fail"),
        ({"first_size": 0.0}, "`first_size` must be finite and positive"),
        ({"window": 0}, "`window` and `tries` must be at least 1; got 0 and 60"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Safeguard(**options)


def test_a_state_of_another_window_is_refused() -> None:
    problems = shifted("turned", 1, torch.Generator().manual_seed(2))
    x = nn.Parameter(problems.start[0].clone())
    one = ConvexUpdate([x], ConvexRule(ScalarSteps(0.1)), safeguard=Safeguard(window=3))
    one.step(One(problems, 0, x))
    other = ConvexUpdate([x], ConvexRule(ScalarSteps(0.1)))
    other.load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="the state is of a safeguard with `window` 3, this one has 10"):
        other.step(One(problems, 0, x))
