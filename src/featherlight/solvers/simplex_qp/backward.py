"""Values and weights of a solution that is known, connected to the graph of the problem.

Legend of shapes: N rows, F features, K codes, k codes that a row mixes.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import embedding_bag

from featherlight.solvers.simplex_qp.adjoint import Solved, adjoint
from featherlight.solvers.simplex_qp.ops import adjoint_once
from featherlight.solvers.simplex_qp.pricing import mix
from featherlight.solvers.simplex_qp.problem import Found, SimplexProblem, SimplexSolution


def connect(problem: SimplexProblem, found: Found) -> SimplexSolution:
    """The solution that was found, connected to the graph of the problem."""
    values_NF, weights_Nk = attach(problem, found.prior_N, found.indices_Nk, found.weights_Nk)
    return SimplexSolution(values_NF, found.indices_Nk, weights_Nk, *found[3:])


def attach(
    problem: SimplexProblem, prior_N: Tensor, indices_Nk: Tensor, weights_Nk: Tensor
) -> tuple[Float[Tensor, "N F"], Float[Tensor, "N k"]]:
    """Values and weights as functions of rows, codebook and strength, with the support held fixed."""
    inputs = (problem.z_NF, problem.codebook_KF, problem.strength)
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        values_NF, weights_Nk = _OnSupport.apply(*inputs, prior_N, indices_Nk, weights_Nk)
        return values_NF, weights_Nk
    return _values(problem.codebook_KF, indices_Nk, weights_Nk), weights_Nk


class _OnSupport(Function):
    """From the problem to values and weights of a solution that is known."""

    @staticmethod
    def forward(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        _, codebook, _, _, indices, found = inputs
        return _values(codebook, indices, found), found.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:5], output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        solved = Solved(*ctx.saved_tensors, *gradients)
        once_more = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        of_z, of_codebook, of_strength = adjoint(solved) if once_more else adjoint_once(*solved)
        return of_z, of_codebook, of_strength, None, None, None


def _values(codebook_KF: Tensor, indices_Nk: Tensor, weights_Nk: Tensor) -> Float[Tensor, "N F"]:
    finite_KF = torch.where(torch.isfinite(codebook_KF).all(1, keepdim=True), codebook_KF, 0)
    slots_Nk = indices_Nk.clamp(min=0)
    if torch.compiler.is_compiling():
        return mix(weights_Nk, slots_Nk, finite_KF)
    return embedding_bag(slots_Nk, finite_KF, mode="sum", per_sample_weights=weights_Nk.contiguous())
