"""Meta-training as an Objective: gradients, truncation, recomputation, tasks that are not finite, evolution."""

import pytest
import torch
from torch import Tensor, nn

from featherlight.objective import NonFiniteLossError, Objective
from featherlight.optim import SPSA, WholeBatchSigns
from featherlight.optim.learned import (
    ConvexRule,
    DiagonalSteps,
    KroneckerSteps,
    MeanLogGap,
    MetaObjective,
    Momentum,
    SecantRule,
    Tasks,
    evaluations_to,
    last_loss,
    mean_loss,
    relative_gaps,
)
from featherlight.optim.zeroth_order.targets import targets_of

N, T = 4, 6


def squares(points, data):
    return 0.5 * (data["A"] @ points[0] - data["b"]).square().sum()


def tasks(*, broken: int | None = None) -> Tasks:
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(6, N, generator=generator, dtype=torch.float64)
    right = torch.randn(T, 6, generator=generator, dtype=torch.float64)
    if broken is not None:
        right[broken] = torch.nan
    start = torch.randn(T, N, generator=generator, dtype=torch.float64)
    return Tasks(starts=(start,), loss=squares, data={"b": right}, shared={"A": matrix})


def rule() -> ConvexRule:
    return ConvexRule(DiagonalSteps([torch.linspace(0.01, 0.05, N, dtype=torch.float64)]), Momentum(0.6))


def gradients(objective: MetaObjective) -> list[Tensor]:
    objective()
    return [p.grad.clone() for p in learned(objective) if p.grad is not None]


def learned(objective: MetaObjective) -> list[nn.Parameter]:
    assert isinstance(objective.rule, nn.Module)
    return list(objective.rule.parameters())


def test_the_gradient_is_that_of_steps_written_out():
    steps, some, learned = 5, tasks(), rule()
    objective = MetaObjective(learned, some, steps, score=last_loss)
    assert isinstance(objective, Objective)
    found = gradients(objective)
    other = rule()
    total = torch.zeros((), dtype=torch.float64)
    for number in range(T):
        x, momentum = some.starts[0][number], torch.zeros(N, dtype=torch.float64)
        for _ in range(steps):
            gradient = some.shared["A"].mT @ (some.shared["A"] @ x - some.data["b"][number])
            momentum = other.memory.logit.sigmoid() * momentum + gradient  # pyright: ignore
            x = x - other.metric.log_sizes[0].exp() * momentum  # pyright: ignore
        total = total + squares((x,), {"A": some.shared["A"], "b": some.data["b"][number]}) / T
    total.backward()
    assert float(objective.value()) == pytest.approx(total.item(), rel=1e-12)
    for mine, p in zip(found, other.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad, rtol=1e-10, atol=1e-12)


def test_recomputed_activations_give_the_same_gradient_and_truncation_that_of_its_windows():
    whole = gradients(MetaObjective(rule(), tasks(), 6))
    for recomputed in (1, 4):
        again = gradients(MetaObjective(rule(), tasks(), 6, recomputed=recomputed))
        for a, b in zip(whole, again, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    objective = MetaObjective(rule(), tasks(), 6, score=mean_loss, truncation=4)
    cut = gradients(objective)
    assert any(not torch.allclose(a, b) for a, b in zip(whole, cut, strict=True))
    assert float(objective.value()) == pytest.approx(float(MetaObjective(rule(), tasks(), 6, score=mean_loss).value()))


def test_a_task_that_is_not_finite_is_dropped_and_counted():
    told = []
    objective = MetaObjective(rule(), tasks(broken=2), 5, on_dropped=told.extend)
    found = gradients(objective)
    rest = tasks().at(torch.tensor([0, 1, 3, 4, 5]))
    for a, b in zip(found, gradients(MetaObjective(rule(), rest, 5)), strict=True):
        torch.testing.assert_close(a, b)
    assert told == objective.dropped == [2]
    assert len(objective.tasks) == T - 1
    values = objective.values()
    assert values.shape == (T,)
    assert float(values[2]) == pytest.approx(float(objective.value()))
    with pytest.raises(
        NonFiniteLossError, match="none of the 1 tasks that were left has a finite score over a horizon"
    ):
        MetaObjective(rule(), tasks(broken=2).at(torch.tensor([2])), 5)()


def test_a_task_whose_gradient_alone_is_not_finite_is_dropped():
    def rooted(points, data):
        return data["scale"] * (points[0] - data["centre"]).square().sum().sqrt()

    centre = torch.zeros(3, N, dtype=torch.float64)
    start = torch.ones(3, N, dtype=torch.float64)
    start[1] = 0.0
    some = Tasks(starts=(start,), loss=rooted, data={"centre": centre, "scale": torch.ones(3, dtype=torch.float64)})
    objective = MetaObjective(rule(), some, 1, score=last_loss)
    objective()
    assert objective.dropped == [1]
    assert all(bool(p.grad.isfinite().all()) for p in learned(objective) if p.grad is not None)


@pytest.mark.parametrize("forward_only", [False, True])
def test_a_rule_learns_by_either_kind_of_gradient(forward_only):
    learned = SecantRule(KroneckerSteps.constant([torch.zeros(N, dtype=torch.float64)], 0.02), pairs=2)
    objective = MetaObjective(learned, tasks(), 4, score=MeanLogGap(1e-6))
    before = float(objective.value())
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.1)
    targets = targets_of(learned, [{"params": list(learned.parameters())}])
    for step in range(8):
        asked = SPSA(objective, targets, sigma=0.02, directions=WholeBatchSigns(4), step=step)
        optimizer.step(asked if forward_only else objective)
    assert float(objective.value()) < before - 0.2


def test_bad_input_gets_a_sentence():
    with pytest.raises(ValueError, match=r"`horizon` must be at least 1 step.*got 0"):
        MetaObjective(rule(), tasks(), 0)
    with pytest.raises(ValueError, match="`truncation` must be at least 1 step, or None"):
        MetaObjective(rule(), tasks(), 3, truncation=0)
    with pytest.raises(ValueError, match="made for tensors of shapes"):
        MetaObjective(ConvexRule(DiagonalSteps([torch.ones(N + 1)])), tasks(), 3)
    with pytest.raises(ValueError, match="must have one row for each task"):
        Tasks(starts=(torch.zeros(3, 2),), loss=squares, data={"b": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="`floor` must lie between 0 and 1"):
        MeanLogGap(0.0)

    class NotAModule:
        init, update = rule().init, rule().update

    with pytest.raises(ValueError, match="`rule` must be a torch Module"):
        MetaObjective(NotAModule(), tasks(), 3)


def test_evaluations_are_counted_to_the_first_point_at_the_target():
    losses = torch.tensor([[2.0, 4.0], [1.0, 4.0], [1.1, 0.5], [1.0, 0.6]])
    gaps = relative_gaps(losses, torch.tensor([1.0, 0.0]))
    assert evaluations_to(gaps, 0.2).tolist() == [1.0, 2.0]
    assert evaluations_to(gaps, 1e-3).tolist() == [1.0, torch.inf]
    assert isinstance(rule(), nn.Module)
