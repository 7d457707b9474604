"""Rows and codes that are not finite, equal, zero or alone; and input that makes no sense."""

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
    solve_simplex_least_squares,
)
from tests.unit.solvers.test_simplex_exact import dense, sample

METHODS = [ActiveSet(), FrankWolfe(max_codes=3), FISTA(), ADMM(), Relaxation()]


def solve_and_differentiate(
    z: Tensor, codebook: Tensor, strength: float, method: SimplexMethod = METHODS[0], prior: Tensor | None = None
):
    """The solution, and the gradients of rows and codebook for a plain loss."""
    z, codebook = z.clone().requires_grad_(), codebook.clone().requires_grad_()
    solution = solve_simplex_least_squares(z, codebook, strength, method=method, prior_N=prior)
    gradients = torch.autograd.grad(
        solution.values_NF.square().sum() + solution.weights_Nk.square().sum(), (z, codebook)
    )
    return solution, *gradients


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_harms_no_other(path: str, method: SimplexMethod, bad: float) -> None:
    z, codebook = sample(70, 40, 8, torch.float32)
    good, of_good, _ = solve_and_differentiate(z, codebook, 0.05, method)
    broken = z.clone()
    broken[[0, 33], 2] = bad
    solution, of_z, of_codebook = solve_and_differentiate(broken, codebook, 0.05, method)
    hit = torch.zeros(70, dtype=torch.bool)
    hit[[0, 33]] = True
    assert (solution.status_N[hit] == SimplexStatus.NON_FINITE).all()
    assert (solution.indices_Nk[hit] == -1).all()
    assert not solution.values_NF[hit].any()
    assert not of_z[hit].any()
    assert of_codebook.isfinite().all()
    assert torch.equal(solution.status_N[~hit], good.status_N[~hit])
    torch.testing.assert_close(of_z[~hit], of_good[~hit], atol=1e-5, rtol=1e-4)
    if isinstance(method, ActiveSet | FrankWolfe):
        width = min(solution.indices_Nk.shape[1], good.indices_Nk.shape[1])
        for ours, alone in zip(solution[1:3], good[1:3], strict=True):
            assert torch.equal(ours[~hit, :width], alone[~hit, :width])
        assert torch.equal(solution.values_NF[~hit], good.values_NF[~hit])
        assert torch.equal(of_z[~hit], of_good[~hit])


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_code_that_is_not_finite_is_never_used(path: str, method: SimplexMethod) -> None:
    z, codebook = sample(20, 12, 4)
    codebook[[0, 5]] = torch.nan
    solution, of_z, of_codebook = solve_and_differentiate(z, codebook, 0.05, method)
    assert solution.values_NF.isfinite().all()
    assert not dense(solution, 12)[:, [0, 5]].any()
    assert of_z.isfinite().all()
    assert of_codebook.isfinite().all()
    assert not of_codebook[[0, 5]].any()
    held, _, _ = solve_and_differentiate(z[:1], codebook, 0.05, method, prior=torch.tensor([5]))
    assert held.status_N[0] == SimplexStatus.NON_FINITE


@pytest.mark.parametrize("strength", [1e-12, 0.1])
def test_codes_that_repeat_share_evenly_and_have_finite_gradients(path: str, strength: float) -> None:
    z, codebook = sample(30, 20, 5)
    doubled = torch.cat((codebook, codebook))
    solution, of_z, of_codebook = solve_and_differentiate(z, doubled, strength)
    assert (solution.status_N == SimplexStatus.CONVERGED).all()
    assert (solution.gap_N <= 1e-9 * z.square().sum(1)).all()
    assert of_z.isfinite().all()
    assert of_codebook.isfinite().all()
    if strength > 1e-6:
        shares = dense(solution, 40)
        others = torch.ones(30, 20).scatter(1, torch.cdist(z, codebook).argmin(1, keepdim=True), 0).bool()
        torch.testing.assert_close(shares[:, :20][others], shares[:, 20:][others], atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_codes", [1, 7])
def test_a_codebook_of_zeros_and_one_of_a_single_code(path: str, dtype: torch.dtype, num_codes: int) -> None:
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    for codebook in (torch.zeros(num_codes, 3, dtype=dtype), torch.ones(num_codes, 3, dtype=dtype)):
        for method in (ActiveSet(), FrankWolfe(max_codes=1), Relaxation(), FISTA(), ADMM()):
            solution, of_z, of_codebook = solve_and_differentiate(z, codebook, 0.3, method)
            torch.testing.assert_close(solution.values_NF, codebook[:1].expand(5, -1))
            assert of_z.isfinite().all()
            assert of_codebook.isfinite().all()
    assert solve_simplex_least_squares(z[:0], z, 0.3).values_NF.shape == (0, 3)


def test_far_scales_and_offsets_lose_nothing(path: str) -> None:
    z, codebook = sample(50, 30, 6, torch.float32)
    for scale, offset in ((1e-15, 0.0), (1e12, 0.0), (1.0, 300.0)):
        rows, codes = z * scale + offset, codebook * scale + offset
        solution, of_z, _ = solve_and_differentiate(rows, codes, 0.1 * scale**2)
        plain = solve_simplex_least_squares(z, codebook, 0.1)
        assert (solution.status_N == SimplexStatus.CONVERGED).all()
        assert of_z.isfinite().all()
        torch.testing.assert_close(dense(solution, 30), dense(plain, 30), atol=1e-3 if offset else 1e-5, rtol=0)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda z, c: solve_simplex_least_squares(z, c, 0.0), r"`strength` must be above 0 and finite; got 0\.0"),
        (lambda z, c: solve_simplex_least_squares(z, c, torch.tensor(-2.0)), r"above 0 and finite; got -2\.0"),
        (lambda z, c: solve_simplex_least_squares(z, c, torch.ones(3)), r"one number for all rows; got .*\(3,\)"),
        (lambda z, c: solve_simplex_least_squares(z, c[:0], 0.1), r"at least one code .* got shape \(0, 4\)"),
        (lambda z, c: solve_simplex_least_squares(z, c[:, :3], 0.1), r"the rows have 4 and the codes 3"),
        (lambda z, c: solve_simplex_least_squares(z[None], c, 0.1), r"shape \(N, F\) .* Flatten the positions"),
        (lambda z, c: solve_simplex_least_squares(z.half(), c.half(), 0.1), r"float32 or float64; got torch\.float16"),
        (lambda z, c: solve_simplex_least_squares(z, c.double(), 0.1), r"share dtype and device"),
        (lambda z, c: solve_simplex_least_squares(z.long(), c, 0.1), r"float32 or float64; got torch\.int64"),
        (
            lambda z, c: solve_simplex_least_squares(z, c, 0.1, prior_N=torch.tensor([0, 1, 9, 2, 3])),
            r"code numbers in \[0, 9\); got values from 0 to 9",
        ),
        (lambda z, c: solve_simplex_least_squares(z, c, 0.1, prior_N=torch.zeros(5)), r"one int64 code number a row"),
        (
            lambda z, c: solve_simplex_least_squares(z, c, 0.1, method=FrankWolfe(max_codes=10)),
            r"`max_codes` is 10, but the codebook has only 9 codes",
        ),
        (
            lambda z, c: solve_simplex_least_squares(z, c, 0.1, method=ActiveSet(max_support=10)),
            r"`max_support` is 10, but the codebook has only 9",
        ),
        (lambda z, c: FrankWolfe(max_codes=0), r"`max_codes` must be in \[1, 64\]; got 0"),
        (lambda z, c: ActiveSet(max_steps=0), r"`max_steps` must be at least 1; got 0"),
        (lambda z, c: FISTA(tolerance=0.0), r"`tolerance` must be above 0; got 0\.0"),
        (lambda z, c: ADMM(max_steps=0), r"`max_steps` must be at least 1; got 0"),
        (lambda z, c: ADMM(penalty=-1.0), r"`penalty` must be above 0; got -1\.0"),
    ],
)
def test_bad_input_gets_a_sentence(call, sentence: str) -> None:
    z, codebook = sample(5, 9, 4, torch.float32)
    with pytest.raises(ValueError, match=sentence):
        call(z, codebook)
