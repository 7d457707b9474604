"""The exact solver against all supports, against an interior-point solver, and against itself by the other path."""

import pytest
import torch
from torch import Tensor

from featherlight.meter import allocation_peak
from featherlight.solvers import ActiveSet, SimplexSolution, SimplexStatus, solve_simplex_least_squares
from featherlight.solvers.simplex_qp import compiled, pricing
from tests.oracles.simplex_qp import by_clarabel, by_supports, objective

BOUND = {torch.float32: 1e-5, torch.float64: 1e-9}


def sample(num_rows: int, num_codes: int, dim: int, dtype: torch.dtype = torch.float64, seed: int = 0):
    """Rows and codes of one distribution with unequal variances, away from the origin."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -1, dim, dtype=dtype)
    z = torch.randn(num_rows, dim, generator=generator, dtype=dtype) * scales
    codebook = torch.randn(num_codes, dim, generator=generator, dtype=dtype) * scales
    return z + 0.3, codebook + 0.3


def dense(solution: SimplexSolution, num_codes: int) -> Tensor:
    """Shares of all codes, (N, K) float64."""
    shares = solution.weights_Nk.detach().new_zeros(len(solution.indices_Nk), num_codes)
    return shares.scatter_add(1, solution.indices_Nk.clamp(min=0), solution.weights_Nk.detach()).double()


@pytest.mark.parametrize("strength", [1e-6, 0.05, 1.0, 30.0])
def test_it_finds_the_best_of_all_supports(path: str, strength: float) -> None:
    z, codebook = sample(12, 7, 3)
    nearest = torch.cdist(z, codebook).argmin(1)
    far = torch.cdist(z, codebook).argmax(1)
    for prior, given in ((nearest, None), (far, far)):
        solution = solve_simplex_least_squares(z, codebook, strength, prior_N=given)
        expected = torch.stack([by_supports(row, codebook, strength, int(p)) for row, p in zip(z, prior, strict=True)])
        torch.testing.assert_close(dense(solution, 7), expected, atol=1e-8 / min(strength, 1), rtol=0)
        torch.testing.assert_close(solution.values_NF, expected @ codebook, atol=1e-7, rtol=0)
        assert (solution.status_N == SimplexStatus.CONVERGED).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("part", [1e-4, 0.1, 3.0])
def test_its_gap_to_an_interior_point_solver_is_rounding(path: str, dtype: torch.dtype, part: float) -> None:
    z, codebook = sample(24, 128, 32, dtype)
    strength = part * float(codebook.square().sum(1).mean())
    solution = solve_simplex_least_squares(z, codebook, strength)
    prior = torch.cdist(z, codebook).argmin(1).tolist()
    for n, p in enumerate(dense(solution, 128)):
        theirs = objective(by_clarabel(z[n], codebook, strength, prior[n]), z[n], codebook, strength, prior[n])
        gap = objective(p / p.sum(), z[n], codebook, strength, prior[n]) - theirs
        size = float(z[n].double().square().sum())
        assert gap <= BOUND[dtype] * size
        assert gap <= float(solution.gap_N[n]) + 1e-9 * size, "the certificate is below the truth"
    assert ((solution.indices_Nk >= 0).sum(1) > 2).any()
    assert (solution.indices_Nk.sort(1).values.diff(dim=1) > 0)[:, -2:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_paths_give_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled.kernels_installed():
        pytest.skip("numba is not installed")
    z, codebook = (x.requires_grad_() for x in sample(300, 200, 9, dtype))
    strength = torch.tensor(0.05, dtype=dtype, requires_grad=True)
    probe = torch.randn(300, 9, generator=torch.Generator().manual_seed(1), dtype=dtype)
    results = []
    for installed in (True, False):
        monkeypatch.setattr(compiled, "kernels_installed", lambda installed=installed: installed)
        solution = solve_simplex_least_squares(z, codebook, strength)
        total = (solution.values_NF * probe).sum() + solution.weights_Nk.square().sum()
        results.append((dense(solution, 200), *torch.autograd.grad(total, (z, codebook, strength))))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    for ours, other in zip(*results, strict=True):
        torch.testing.assert_close(ours, other, atol=tolerance * float(other.abs().max()), rtol=0)


def test_the_number_of_threads_changes_no_bit(path: str) -> None:
    z, codebook = sample(500, 60, 12, torch.float32)
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        rows, codes = z.clone().requires_grad_(), codebook.clone().requires_grad_()
        solution = solve_simplex_least_squares(rows, codes, 0.1)
        solution.values_NF.square().sum().backward()
        results.append((solution.indices_Nk, solution.weights_Nk, rows.grad, codes.grad))
    if path == "kernel":
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    else:
        torch.testing.assert_close(results[0][1], results[1][1])


def test_a_limit_on_the_support_is_kept_and_said(path: str) -> None:
    z, codebook = sample(60, 80, 16)
    free = solve_simplex_least_squares(z, codebook, 1e-3)
    limited = solve_simplex_least_squares(z, codebook, 1e-3, method=ActiveSet(max_support=4))
    assert limited.indices_Nk.shape[1] == 4
    needs_more = (free.indices_Nk >= 0).sum(1) > 4
    assert needs_more.any()
    assert (limited.status_N[needs_more] == SimplexStatus.SUPPORT_LIMIT).any()
    stopped = limited.status_N == SimplexStatus.SUPPORT_LIMIT
    assert (limited.gap_N[stopped] > 0).all()
    assert (limited.gap_N[~stopped] <= 1e-9 * z[~stopped].square().sum(1)).all()
    few = solve_simplex_least_squares(z, codebook, 1e-3, method=ActiveSet(max_steps=2))
    assert (few.status_N == SimplexStatus.STEP_LIMIT).any()


def test_nothing_of_codes_by_codes_or_rows_by_codes_is_held(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    num_rows, num_codes, dim = 400, 10_000, 2
    monkeypatch.setattr(pricing, "PRICES_AT_ONCE", 1 << 17)
    z, codebook = (x.requires_grad_() for x in sample(num_rows, num_codes, dim, torch.float32))
    with allocation_peak() as peak:
        solution = solve_simplex_least_squares(z, codebook, 0.01, method=ActiveSet(max_steps=6))
        solution.values_NF.square().sum().backward()
    assert peak.bytes < 0.35 * num_rows * num_codes * 4
