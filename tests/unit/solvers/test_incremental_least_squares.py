"""Least squares that grow by blocks of features."""

import pytest
import torch

from featherlight.solvers.incremental_least_squares import LeastSquares

RIDGE = 1e-3


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_blocks_come_to_the_same_as_all_at_once_and_the_minimum_never_rises():
    x, t = drawn(5000, 12), drawn(5000, 3)
    found, minima = LeastSquares.empty(t, ridge=RIDGE), [float(t.square().sum())]
    for start, stop in ((0, 1), (1, 6), (6, 12)):
        found = found.append(x[:, :start], x[:, start:stop], t)
        minima.append(found.minimum)
    expected = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(12, dtype=torch.float64), x.T @ t)
    torch.testing.assert_close(found.weights, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.refined(x, t), expected, rtol=1e-12, atol=1e-13)
    loss = float((t - x @ expected).square().sum() + RIDGE * expected.square().sum())
    assert minima[-1] == pytest.approx(loss, rel=1e-12)
    assert minima == sorted(minima, reverse=True)


def test_refinement_takes_out_the_rounding_of_products():
    x = drawn(60, 8)
    x[:, 1] = x[:, 0] + 1e-5 * x[:, 1]
    t = x @ drawn(8, 1)
    found = LeastSquares.empty(t, ridge=1e-14).append(x[:, :0], x, t)

    def off(weights: torch.Tensor) -> float:
        return float((x @ weights - t).norm())

    assert off(found.refined(x, t, steps=2)) < 0.3 * off(found.weights)


def test_what_is_wrong_is_said():
    x, t = drawn(20, 4), drawn(20, 1)
    with pytest.raises(ValueError, match=r"must be \(rows, outputs\), one or more of each; got \(20,\)"):
        LeastSquares.empty(t[:, 0], ridge=RIDGE)
    with pytest.raises(ValueError, match="`ridge` must be positive, or features that depend on each other"):
        LeastSquares.empty(t, ridge=0.0)
    begun = LeastSquares.empty(t, ridge=1e-30).append(x[:, :0], x, t)
    with pytest.raises(ValueError, match="the new feature 1 is a combination of others up to rounding"):
        begun.append(x, torch.cat((drawn(20, 1), x[:, :1] + x[:, 1:2]), 1), t)
    with pytest.raises(ValueError, match=r"as many earlier features as were appended \(4\)"):
        begun.append(x[:, :2], x[:, 2:], t)
    bad = x.clone()
    bad[7, 1] = float("nan")
    with pytest.raises(ValueError, match="the features hold nan or inf, first in row 7"):
        begun.append(x, bad, t)
