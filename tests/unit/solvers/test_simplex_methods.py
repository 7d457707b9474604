"""The other methods against the exact one, against dense formulas, and under compilation."""

import pytest
import torch
from torch import Tensor

from featherlight.solvers import (
    ADMM,
    FISTA,
    ActiveSet,
    FrankWolfe,
    Relaxation,
    SimplexMethod,
    SimplexStatus,
    greedy_mixture,
    project_simplex,
    solve_simplex_least_squares,
)
from tests.oracles.simplex_qp import by_supports
from tests.unit.solvers.test_simplex_exact import dense, sample


@pytest.mark.parametrize("method", [FISTA(tolerance=1e-10), ADMM(tolerance=1e-10)], ids=["fista", "admm"])
@pytest.mark.parametrize("strength", [0.02, 2.0])
def test_first_order_methods_find_the_same(method: SimplexMethod, strength: float) -> None:
    z, codebook = sample(40, 50, 8)
    exact = solve_simplex_least_squares(z, codebook, strength)
    solution = solve_simplex_least_squares(z, codebook, strength, method=method)
    assert (solution.status_N == SimplexStatus.CONVERGED).all()
    assert (solution.gap_N <= 3e-10 * (z.square().sum(1) + codebook.square().sum(1).mean())).all()
    torch.testing.assert_close(dense(solution, 50), dense(exact, 50), atol=1e-3, rtol=0)
    cut_short = solve_simplex_least_squares(z, codebook, strength, method=type(method)(tolerance=1e-13, max_steps=1))
    assert (cut_short.status_N == SimplexStatus.STEP_LIMIT).any()


def test_the_relaxation_is_the_published_one() -> None:
    """With the K x K system of the paper, columns of codes, and the projection."""
    z, codebook = sample(15, 24, 6)
    columns, strength = codebook.T, 0.2
    prior = torch.nn.functional.one_hot(torch.cdist(z, codebook).argmin(1), 24).double().T
    system = columns.T @ columns + strength * torch.eye(24, dtype=torch.float64)
    free = torch.linalg.solve(system, columns.T @ z.T + strength * prior)
    solution = solve_simplex_least_squares(z, codebook, strength, method=Relaxation())
    torch.testing.assert_close(solution.weights_Nk, project_simplex(free.T))
    assert (solution.status_N == SimplexStatus.APPROXIMATE).all()
    assert (solution.gap_N > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("max_codes", [1, 2, 4, 8])
def test_few_codes_are_best_on_their_support_and_ever_better(dtype: torch.dtype, max_codes: int, path: str) -> None:
    z, codebook = sample(60, 90, 12, dtype)
    strength = 0.05
    solution = solve_simplex_least_squares(z, codebook, strength, method=FrankWolfe(max_codes=max_codes))
    assert solution.indices_Nk.shape == (60, max_codes)
    nearest = torch.cdist(z.double(), codebook.double()).argmin(1)
    for n in range(20):
        support = [i for i in solution.indices_Nk[n].tolist() if i >= 0]
        if int(nearest[n]) not in support:
            continue
        best = by_supports(z[n], codebook[support], strength, support.index(int(nearest[n])))
        tolerance = 1e-5 if dtype == torch.float32 else 1e-10
        torch.testing.assert_close(solution.weights_Nk[n, : len(support)].double(), best, atol=tolerance, rtol=0)
    if max_codes > 1:
        fewer = solve_simplex_least_squares(z, codebook, strength, method=FrankWolfe(max_codes=max_codes // 2))
        assert float((z - solution.values_NF).square().sum()) < 0.95 * float((z - fewer.values_NF).square().sum())


def test_eight_greedy_codes_are_far_better_than_the_eight_nearest() -> None:
    z, codebook = sample(200, 256, 32)
    strength = 0.01 * float(codebook.square().sum(1).mean())
    exact = (z - solve_simplex_least_squares(z, codebook, strength).values_NF).square().sum()
    greedy = solve_simplex_least_squares(z, codebook, strength, method=FrankWolfe(max_codes=8))
    near = torch.cdist(z, codebook).topk(8, largest=False).indices
    of_nearest = sum(
        (row - solve_simplex_least_squares(row[None], codebook[codes], strength).values_NF[0]).square().sum()
        for row, codes in zip(z, near, strict=True)
    )
    of_greedy = (z - greedy.values_NF).square().sum()
    assert exact < of_greedy < of_nearest
    assert of_greedy - exact < 0.6 * (of_nearest - exact)


@pytest.mark.parametrize("max_codes", [2, 4, 8])
def test_the_exportable_function_is_the_method(max_codes: int) -> None:
    z, codebook = sample(200, 64, 10)
    strength = torch.tensor(0.05, dtype=torch.float64)
    indices, weights = greedy_mixture(z, codebook, strength, max_codes=max_codes)
    solution = solve_simplex_least_squares(z, codebook, strength, method=FrankWolfe(max_codes=max_codes))
    assert torch.equal(indices, solution.indices_Nk)
    torch.testing.assert_close(weights, solution.weights_Nk, atol=1e-11, rtol=0)
    narrow, shares = greedy_mixture(z.float(), codebook.float(), strength.float(), max_codes=max_codes)
    values = (shares[..., None] * codebook.float()[narrow.clamp(min=0)]).sum(1)
    assert ((values - solution.values_NF).abs().amax(1) > 1e-5).float().mean() < 0.05


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("method", [ActiveSet(), FrankWolfe(max_codes=2)], ids=["exact", "two"])
def test_it_compiles_whole_with_its_gradient(path: str, method: SimplexMethod) -> None:
    def loss(z: Tensor, codebook: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        solution = solve_simplex_least_squares(z, codebook, strength, method=method)
        return (solution.values_NF - z).square().sum(), solution.values_NF

    torch.compiler.reset()
    z, codebook = (x.requires_grad_() for x in sample(30, 16, 4, torch.float32))
    strength = torch.tensor(0.1, requires_grad=True)
    eager = loss(z, codebook, strength)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(z, codebook, strength)
    torch.testing.assert_close(compiled[1], eager[1])
    ours = torch.autograd.grad(compiled[0], (z, codebook, strength))
    torch.testing.assert_close(ours, torch.autograd.grad(eager[0], (z, codebook, strength)), atol=1e-5, rtol=1e-4)
