"""Gradients of all methods against finite differences."""

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
    mix_greedily,
    solve_simplex_least_squares,
)
from featherlight.solvers.simplex_qp.problem import SimplexProblem
from tests.unit.solvers.test_simplex_exact import sample


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    z, codebook = sample(4, 9, 5, seed=3)
    return z.requires_grad_(), codebook.requires_grad_(), torch.tensor(0.07, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    "method",
    [ActiveSet(), FrankWolfe(max_codes=2), FrankWolfe(max_codes=4), Relaxation()],
    ids=lambda method: type(method).__name__,
)  # fmt: skip
@pytest.mark.parametrize("prior", [None, torch.tensor([3, 1, 0, 8])], ids=["nearest", "given"])
def test_values_and_weights_have_the_gradients_of_finite_differences(
    path: str, method: SimplexMethod, prior: Tensor | None
) -> None:
    def outcome(z: Tensor, codebook: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        solution = solve_simplex_least_squares(z, codebook, strength, prior_N=prior, method=method)
        return solution.values_NF, solution.weights_Nk

    assert (outcome(*inputs())[1] > 0).sum() > 6
    assert torch.autograd.gradcheck(outcome, inputs())


def test_gradients_have_gradients(path: str) -> None:
    def outcome(z: Tensor, codebook: Tensor, strength: Tensor) -> Tensor:
        return solve_simplex_least_squares(z, codebook, strength).values_NF

    assert torch.autograd.gradgradcheck(outcome, inputs())


def test_mixing_without_a_certificate_is_the_same(path: str) -> None:
    z, codebook, strength = inputs()
    values, indices, weights = mix_greedily(SimplexProblem(z, codebook, strength, None), max_codes=3)
    solution = solve_simplex_least_squares(z, codebook, strength, method=FrankWolfe(max_codes=3))
    assert torch.equal(indices, solution.indices_Nk)
    assert torch.equal(weights, solution.weights_Nk)
    ours = torch.autograd.grad(values.square().sum(), (z, codebook, strength))
    theirs = torch.autograd.grad(solution.values_NF.square().sum(), (z, codebook, strength))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("method", [FISTA(tolerance=1e-12), ADMM(tolerance=1e-12)], ids=["fista", "admm"])
def test_first_order_methods_have_the_gradients_of_the_exact_one(method: SimplexMethod) -> None:
    gradients = []
    for one in (method, ActiveSet()):
        arguments = inputs()
        solution = solve_simplex_least_squares(*arguments, method=one)
        gradients.append(
            torch.autograd.grad(solution.values_NF.square().sum() + solution.weights_Nk.square().sum(), arguments)
        )
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=0)


def test_a_part_of_the_inputs_may_need_no_gradient(path: str) -> None:
    """A shift of rows and codes shifts the values, so that the gradients of both add up to that of the values."""
    z, codebook, _ = inputs()
    fixed = solve_simplex_least_squares(z.detach(), codebook, 0.07).values_NF
    (of_codebook,) = torch.autograd.grad(fixed.sum(), codebook)
    moving = solve_simplex_least_squares(z, codebook.detach(), 0.07).values_NF
    (of_z,) = torch.autograd.grad(moving.sum(), z)
    torch.testing.assert_close(of_codebook.sum(0) + of_z.sum(0), torch.full((5,), 4.0, dtype=torch.float64))
