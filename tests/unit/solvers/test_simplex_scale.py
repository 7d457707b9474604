"""Rows and codes of any scale, gradients by torch.func, and the first use of the compiled kernels."""

import pytest
import torch

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
from featherlight.solvers.simplex_qp import first_use
from tests.unit.solvers.test_simplex_exact import dense, sample

METHODS = [ActiveSet(), FrankWolfe(max_codes=3), FISTA(), ADMM(), Relaxation()]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize(
    ("dtype", "scales"), [(torch.float32, (1e-19, 1e-15, 1e15, 1e18)), (torch.float64, (1e-150, 1e150))], ids=str
)
def test_no_scale_changes_the_shares(
    path: str, method: SimplexMethod, dtype: torch.dtype, scales: tuple[float, ...]
) -> None:
    z, codebook = sample(30, 12, 6, dtype)
    plain = solve_simplex_least_squares(z, codebook, 0.05, method=method)
    for scale in scales:
        rows = (z * scale).requires_grad_()
        solution = solve_simplex_least_squares(rows, codebook * scale, 0.05 * scale * scale, method=method)
        torch.testing.assert_close(dense(solution, 12), dense(plain, 12), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(solution.values_NF / scale, plain.values_NF, rtol=1e-3, atol=1e-4)
        (of_rows,) = torch.autograd.grad(solution.values_NF.sum(), rows)
        assert of_rows.isfinite().all()
        assert of_rows.any()


def test_a_power_of_two_changes_no_bit(path: str) -> None:
    z, codebook = sample(30, 12, 6, torch.float32)
    plain = solve_simplex_least_squares(z, codebook, 0.05)
    solution = solve_simplex_least_squares(z * 2.0**40, codebook * 2.0**40, 0.05 * 2.0**80)
    assert torch.equal(solution.weights_Nk, plain.weights_Nk)
    assert torch.equal(solution.values_NF, plain.values_NF * 2.0**40)
    assert torch.equal(solution.gap_N, plain.gap_N * 2.0**80)


def test_a_row_beyond_the_range_of_squares_gets_a_status(path: str) -> None:
    z, codebook = sample(30, 12, 6, torch.float32)
    plain = solve_simplex_least_squares(z, codebook, 0.05)
    z[7] *= 1e25
    solution = solve_simplex_least_squares(z, codebook, 0.05)
    assert solution.status_N[7] == SimplexStatus.NON_FINITE
    assert not solution.values_NF[7].any()
    others = torch.arange(30) != 7
    assert torch.equal(solution.values_NF[others], plain.values_NF[others])


def test_a_strength_that_the_dtype_cannot_hold_gets_a_sentence() -> None:
    z, codebook = sample(3, 12, 6, torch.float32)
    with pytest.raises(ValueError, match=r"`strength` must be above 0 and finite; got 0.0"):
        solve_simplex_least_squares(z * 1e-30, codebook * 1e-30, 0.05e-60)


def test_torch_func_gives_the_gradients_of_autograd(path: str) -> None:
    z, codebook = sample(20, 12, 6, torch.float64)

    def loss(z: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
        solution = solve_simplex_least_squares(z, codebook, 0.05)
        return solution.values_NF.pow(3).sum() + solution.weights_Nk.square().sum()

    inputs = z.clone().requires_grad_(), codebook.clone().requires_grad_()
    expected = torch.autograd.grad(loss(*inputs), inputs)
    torch.testing.assert_close(torch.func.grad(loss, argnums=(0, 1))(z, codebook), expected, rtol=1e-9, atol=1e-11)


def test_a_long_first_compilation_is_not_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Kernel:
        def __init__(self, *signatures: str) -> None:
            self.signatures = signatures

    class Now:
        """A timer whose time has come."""

        def __init__(self, seconds: float, call) -> None:
            self.start, self.cancel = call, lambda: None

    monkeypatch.setattr(first_use, "Timer", Now)
    called = []
    first_use.compile_once(Kernel(), torch.float32, lambda: called.append(1))
    assert called == [1]
    assert "compiling the simplex solver" in capsys.readouterr().err
    known = Kernel("Array(float64)")
    first_use.compile_once(known, torch.float64, lambda: called.append(2))
    first_use.compile_once(known, torch.float32, lambda: called.append(3))
    assert called == [1, 3]
