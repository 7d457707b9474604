"""The search for a hidden layer whose read-out is eliminated."""

import pytest
import torch

from featherlight.solvers.hidden_layer import HiddenStatus, VariableProjection, _Problem, promising_units
from featherlight.solvers.incremental_least_squares import LeastSquares


def slope(value: torch.Tensor) -> torch.Tensor:
    return 1 - value * value


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem_of(x: torch.Tensor, t: torch.Tensor, how: VariableProjection, ridge: float = 1e-2) -> _Problem:
    read_out = LeastSquares.empty(t, ridge=ridge).append(x[:, :0], x, t)
    return _Problem(x, t, read_out, torch.tanh, slope, how)


def test_loss_and_gradient_are_those_of_the_whole_problem():
    x, t = torch.cat((torch.ones(80, 1, dtype=torch.float64), drawn(80, 3)), 1), drawn(80, 2, seed=1)
    problem = problem_of(x, t, VariableProjection(decay=0.3))
    weights = drawn(5, 4, seed=2)
    point = problem.at(weights)

    def whole(w: torch.Tensor) -> torch.Tensor:
        features = torch.cat((x, torch.tanh(x @ w.T)), 1)
        gram = features.T @ features + 1e-2 * torch.eye(features.shape[1], dtype=torch.float64)
        v = torch.linalg.solve(gram, features.T @ t)
        return (t - features @ v).square().sum() + 1e-2 * v.square().sum() + 0.3 * w.square().sum()

    w = weights.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(whole(w), w)
    assert point.loss == pytest.approx(float(whole(weights)), rel=1e-12)
    torch.testing.assert_close(2 * problem.gradient(point), gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("coupled", [True, False])
def test_a_planted_layer_is_found_and_the_loss_never_rises(monkeypatch, coupled):
    if not coupled:
        monkeypatch.setattr("featherlight.solvers.hidden_layer._MOST_COUPLED", 1)
    x = torch.cat((torch.ones(300, 1, dtype=torch.float64), drawn(300, 3)), 1)
    t = torch.tanh(x @ drawn(3, 4, seed=5).T) @ drawn(3, 2, seed=6)
    how = VariableProjection(decay=0.0, tolerance=0.0, max_steps=200)
    problem = problem_of(x, t, how, ridge=1e-12)
    left = t - x @ problem.base.weights
    start = promising_units(x, left, problem.base, drawn(60, 4, seed=7), 4, torch.tanh)
    found = how(x, t, problem.base, start, torch.tanh, slope)
    assert list(found.losses) == sorted(found.losses, reverse=True)
    assert found.loss < (1e-6 if coupled else 1e-2) * found.losses[0]
    torch.testing.assert_close(found.units, torch.tanh(x @ found.weights.T))


def test_units_are_chosen_by_what_others_leave():
    x = torch.ones(200, 1, dtype=torch.float64)
    x = torch.cat((x, drawn(200, 2)), 1)
    wanted = drawn(2, 3, seed=3)
    t = torch.tanh(x @ wanted.T) @ torch.tensor([[2.0], [1.0]], dtype=torch.float64)
    base = LeastSquares.empty(t, ridge=1e-9).append(x[:, :0], x, t)
    candidates = torch.cat((wanted[:1], wanted[:1], drawn(5, 3, seed=9), wanted[1:]))
    chosen = promising_units(x, t - x @ base.weights, base, candidates, 3, torch.tanh)
    assert not torch.equal(chosen[0], chosen[1])
    assert any(torch.equal(one, wanted[1]) for one in chosen)


def test_how_a_search_ends_is_said():
    x, t = drawn(50, 3), drawn(50, 1, seed=1)
    problem = problem_of(x, t, VariableProjection())
    one = VariableProjection(max_steps=1, tolerance=0.0)
    assert one(x, t, problem.base, drawn(2, 3), torch.tanh, slope).status == HiddenStatus.STEPS_EXHAUSTED
    still = VariableProjection(decay=1e9)(x, t, problem.base, torch.zeros(2, 3).double(), torch.tanh, slope)
    assert still.status == HiddenStatus.NO_DESCENT
    with pytest.raises(ValueError, match="`max_steps` and `curvature_rows` must be at least 1; got 0 and 4096"):
        VariableProjection(max_steps=0)
    with pytest.raises(ValueError, match=r"`decay` must be finite and at least 0 .* got -1"):
        VariableProjection(decay=-1.0)
