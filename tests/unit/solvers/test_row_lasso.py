"""Sparse rows beside a reference solver, and what is said of rows that fail."""

import pytest
import torch

from featherlight.solvers.row_lasso import LassoProblem, RowStatus, row_lasso
from tests.oracles.row_lasso import by_clarabel


def instance(num_features: int, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features that depend on each other, and targets that need many of them."""
    generator = torch.Generator().manual_seed(num_features)
    x = torch.randn(90, num_features, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(num_features, num_features, generator=generator, dtype=torch.float64) / num_features**0.5
    t = x @ torch.randn(num_features, num_rows, generator=generator, dtype=torch.float64)
    return x, t + 0.1 * torch.randn(90, num_rows, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("num_features", "penalty", "bound"), [(20, 0.5, 0.9), (20, 3.0, None), (120, 1.0, 2.0)])
def test_objective_is_that_of_clarabel(num_features, penalty, bound):
    pytest.importorskip("cvxpy")
    x, t = instance(num_features, 3)
    half = num_features // 2
    found = row_lasso(LassoProblem.of(x, t), penalty=penalty, bound=bound, num_bounded=half)
    assert found.status.tolist() == [RowStatus.CONVERGED] * 3
    assert (found.weights == 0).any()
    if bound is not None:
        assert float(found.weights[:, :half].abs().sum(1).max()) <= bound * (1 + 1e-12)
    for row in range(3):
        best = by_clarabel(x, t[:, row], penalty=penalty, bound=bound, num_bounded=half)
        off = float(found.objective[row]) - best
        size = float(t[:, row].square().sum()) / 2
        assert abs(off) <= 1e-6 * size
        assert off <= float(found.gap[row]) + 1e-8 * size
    direct = (t - x @ found.weights.T).square().sum(0) / 2 + penalty * found.weights.abs().sum(1)
    torch.testing.assert_close(found.objective, direct)


def test_a_broken_row_harms_no_other_and_too_few_steps_are_said():
    x, t = instance(20, 4)
    whole = row_lasso(LassoProblem.of(x, t), penalty=0.5)
    t[3, 2] = float("nan")
    found = row_lasso(LassoProblem.of(x, t), penalty=0.5)
    assert found.status.tolist() == [0, 0, RowStatus.BROKEN_INPUT, 0]
    assert bool(found.weights[2].isnan().all())
    others = [0, 1, 3]
    torch.testing.assert_close(found.weights[others], whole.weights[others], rtol=1e-9, atol=1e-9)
    short = row_lasso(LassoProblem.of(x, t[:, :1]), penalty=0.01, bound=0.5, num_bounded=20, max_steps=1)
    assert short.status.tolist() == [RowStatus.STEPS_EXHAUSTED]
    assert float(short.gap) > 0


def test_what_is_wrong_is_said():
    x, t = instance(20, 2)
    problem = LassoProblem.of(x, t)
    with pytest.raises(ValueError, match=r"`penalty` must be positive, or no gap can be proven .* got 0"):
        row_lasso(problem, penalty=0.0)
    with pytest.raises(ValueError, match="`bound` must be positive; got -1"):
        row_lasso(problem, penalty=1.0, bound=-1.0)
    with pytest.raises(ValueError, match="`num_bounded` must be between 0 and the 20 features; got 21"):
        row_lasso(problem, penalty=1.0, bound=1.0, num_bounded=21)
    with pytest.raises(ValueError, match=r"of the same samples; got \(90, 20\) and \(89, 2\)"):
        LassoProblem.of(x, t[1:])
    x[4, 4] = float("inf")
    with pytest.raises(ValueError, match="hold nan or inf, first in sample 4"):
        LassoProblem.of(x, t)
