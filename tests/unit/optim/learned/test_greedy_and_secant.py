"""Exact meta-training on quadratic tasks, and the rule that corrects a learned metric by secants."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from featherlight.meter import Meter
from featherlight.optim.learned import (
    Curvature,
    FullSteps,
    GreedyLeastSquares,
    GreedyRule,
    MeanCurvature,
    MetaObjective,
    ScalarSteps,
    SecantRule,
    Tasks,
    fit_greedy,
    load_rule,
    relative_gaps,
    save_rule,
)
from featherlight.optim.learned.greedy_fit import best_step
from featherlight.optim.learned.meta_unroll import begin, take_steps
from featherlight.recipes.learned.linear import LeastSquares
from featherlight.recipes.learned.plants import ImpulseResponses

PLANTS = ImpulseResponses(taps=8, samples=64)


def sampled(problems, count: int, seed: int) -> Tasks:
    return problems.sample(count, torch.Generator().manual_seed(seed))


def gaps(rule, tasks: Tasks, steps: int) -> Tensor:
    with torch.no_grad():
        losses, position = take_steps(rule, tasks, begin(rule, tasks), steps)
        return relative_gaps(torch.cat([losses, tasks.losses(position.points)[None]]), tasks.best)


@pytest.mark.parametrize("condition", [10.0, 1e4])
def test_one_matrix_is_learned_exactly_and_new_tasks_take_one_step(condition):
    problems = LeastSquares(unknowns=12, rows=20, condition=condition)
    rule = fit_greedy(sampled(problems, 24, 0), horizon=1)
    test = sampled(problems, 50, 1)
    with torch.no_grad():
        _, position = take_steps(rule, test, begin(rule, test), 1)
    matrix = problems.matrix()
    best = torch.linalg.lstsq(matrix, test.data["b"].mT).solution.mT
    before, after = ((x - best) @ matrix.mT for x in (test.starts[0], position.points[0]))
    assert float((after.square().sum(1) / before.square().sum(1)).max()) <= 1e-12


def test_a_step_is_the_minimiser_over_metric_and_past_moves():
    tasks = sampled(PLANTS, 200, 0)
    found = Curvature.of(tasks).at(tasks.starts)[1]
    generator = torch.Generator().manual_seed(3)
    moves = torch.randn(200, 2, 8, generator=generator, dtype=torch.float64)
    weights = torch.rand(200, generator=generator, dtype=torch.float64)
    parts = tuple(one.requires_grad_() for one in best_step(found, weights, moves, ridge=0.0))
    steps = found.gradients_TN @ parts[0].mT + torch.einsum("m,tmi->ti", parts[1], moves)
    loss = (weights * tasks.losses((tasks.starts[0] + steps,))).sum()
    for slope in torch.autograd.grad(loss, parts):
        assert float(slope.abs().max()) < 1e-9


def test_memory_and_more_steps_solve_plants_that_were_not_seen():
    train, test = sampled(PLANTS, 300, 0), sampled(PLANTS, 40, 1)
    meter, rule = Meter(), GreedyRule([(8,)], horizon=5)
    optimizer = GreedyLeastSquares(rule)
    for _ in range(5):
        optimizer.step(MetaObjective(rule, train, 1, meter=meter))
    assert float(gaps(rule, test, 5)[-1].median()) < 1e-3
    assert torch.equal(rule.matrices_KNN, fit_greedy(train, horizon=5).matrices_KNN)
    assert meter.backward_passes >= 300 * 8
    beyond = gaps(rule, test, 7)
    assert beyond.shape == (8, 40)
    with pytest.raises(ValueError, match="all 5 steps of this rule are learned"):
        optimizer.step(MetaObjective(rule, train, 1))


def test_a_task_that_is_not_finite_is_left_out_of_the_solve():
    train = sampled(PLANTS, 60, 0)
    outputs = train.data["outputs"].clone()
    outputs[7] = torch.nan
    broken = replace(train, data={**train.data, "outputs": outputs})
    kept = torch.tensor([n for n in range(60) if n != 7])
    rule, other = GreedyRule([(8,)], horizon=2), GreedyRule([(8,)], horizon=2)
    objective = MetaObjective(rule, broken, 1)
    first, second = GreedyLeastSquares(rule), GreedyLeastSquares(other)
    for _ in range(2):
        first.step(objective)
        second.step(MetaObjective(other, train.at(kept), 1))
    assert objective.dropped == [7]
    torch.testing.assert_close(rule.matrices_KNN, other.matrices_KNN, rtol=1e-6, atol=1e-8)


def test_secants_are_those_of_bfgs_from_the_learned_metric():
    tasks = sampled(PLANTS, 3, 2)
    curvature = Curvature.of(tasks)
    start = torch.linalg.inv(curvature.hessians_TNN.mean(0))
    rule = SecantRule(FullSteps.from_inverse([start]), pairs=10)
    x = tasks.starts[0][0].clone()
    inverse, old, eye = start.clone(), None, torch.eye(8, dtype=torch.float64)
    points = [x]
    for _ in range(6):
        _, (all_gradients,) = tasks.losses_and_gradients((x.expand(3, -1),))
        g = all_gradients[0]
        if old is not None:
            s, y = x - old[0], g - old[1]
            turn = eye - torch.outer(y, s) / (s @ y)
            inverse = turn.mT @ inverse @ turn + torch.outer(s, s) / (s @ y)
        old, x = (x, g), x - inverse @ g
        points.append(x)
    with torch.no_grad():
        _, position = take_steps(rule, tasks, begin(rule, tasks), 6)
    torch.testing.assert_close(position.points[0][0], points[-1], rtol=1e-9, atol=1e-11)


def test_mean_curvature_puts_the_mean_hessian_into_the_metric():
    train, test = sampled(PLANTS, 100, 0), sampled(PLANTS, 30, 1)
    rule = SecantRule(FullSteps.constant([torch.zeros(8, dtype=torch.float64)]), pairs=6)
    MeanCurvature(rule).step(MetaObjective(rule, train, 1))
    factor = rule.metric.factors[0]  # pyright: ignore
    mean = Curvature.of(train).hessians_TNN.mean(0)
    torch.testing.assert_close(factor @ factor.mT @ mean, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-7)
    assert float(gaps(rule, test, 8)[-1].max()) < 1e-4
    with pytest.raises(ValueError, match=r"must have a full metric.*ScalarSteps"):
        MeanCurvature(SecantRule(ScalarSteps(1.0)))


@pytest.mark.parametrize("kind", ["greedy", "secant"])
def test_rules_come_back_from_their_files(tmp_path, kind):
    train, points = sampled(PLANTS, 60, 0), [torch.zeros(8, dtype=torch.float64)]
    rule = fit_greedy(train, horizon=3) if kind == "greedy" else SecantRule(FullSteps.constant(points, 0.3), pairs=3)
    save_rule(tmp_path / "rule.safetensors", rule, points, about="plants")
    again = load_rule(tmp_path / "rule.safetensors", points)
    assert torch.equal(gaps(rule, train, 5), gaps(again, train, 5))
    with pytest.raises(ValueError, match="plants"):
        load_rule(tmp_path / "rule.safetensors", [torch.zeros(9)])


def test_tasks_without_an_exact_solve_get_a_sentence():
    def quartic(points, data):
        return (points[0] - data["c"]).pow(4).sum() + points[0].square().sum()

    def saddle(points, data):
        return (points[0] * data["c"]).square().sum() - points[0][0].square()

    start, centre = torch.ones(5, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="the tasks are not quadratic"):
        fit_greedy(Tasks(starts=(start,), loss=quartic, data={"c": centre}), horizon=1)
    with pytest.raises(ValueError, match="negative curvature: the smallest eigenvalue"):
        fit_greedy(Tasks(starts=(start,), loss=saddle, data={"c": 0.1 * centre}), horizon=1)
    with pytest.raises(ValueError, match="`horizon` must be at least 1 step"):
        fit_greedy(sampled(PLANTS, 5, 0), horizon=0)
    with pytest.raises(ValueError, match="GreedyRule of this rule is made for tensors of shapes"):
        GreedyRule([(8,)], horizon=1).init((torch.zeros(7),))
    with pytest.raises(ValueError, match="takes a MetaObjective"):
        GreedyLeastSquares(GreedyRule([(8,)], horizon=1)).step(lambda: 0.0)
    with pytest.raises(ValueError, match="`pairs` must be at least 1 move"):
        SecantRule(ScalarSteps(1.0), pairs=0)
