"""The exact solver and its adjoint as two operators that torch.compile and torch.export take whole.

Legend of shapes: N rows, F features, K codes, k slots of a row.
"""

import torch
from torch import Tensor

from featherlight.solvers.simplex_qp.adjoint import Solved, adjoint
from featherlight.solvers.simplex_qp.batched import solve_batched
from featherlight.solvers.simplex_qp.compiled import adjoint_compiled, solve_compiled, use_kernels
from featherlight.solvers.simplex_qp.pricing import centre, settled
from featherlight.solvers.simplex_qp.problem import Found, SimplexProblem


@torch.library.custom_op("featherlight::simplex_active_set", mutates_args=())
def solve_exactly(
    z_NF: Tensor, codebook_KF: Tensor, strength: Tensor, prior_N: Tensor | None, width: int, max_steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Prior, indices, weights, status, KKT residual and gap of every row, by the active-set method."""
    problem = SimplexProblem(z_NF, codebook_KF, strength, prior_N)
    centred = centre(z_NF, codebook_KF)
    if use_kernels(z_NF):
        found = Found(*solve_compiled(problem, centred, width=width, num_steps=max_steps, moves=0, certify=True))
        found = found._replace(status_N=settled(centred, found.status_N, found.gap_N))
    else:
        found = solve_batched(problem, centred, width, max_steps)
    return found[0], found[1], found[2], found[3], found[4], found[5]


@solve_exactly.register_fake
def _(
    z_NF: Tensor, codebook_KF: Tensor, strength: Tensor, prior_N: Tensor | None, width: int, max_steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    num_rows = z_NF.shape[0]
    return (
        z_NF.new_empty(num_rows, dtype=torch.int64),
        z_NF.new_empty(num_rows, width, dtype=torch.int64),
        z_NF.new_empty(num_rows, width),
        z_NF.new_empty(num_rows, dtype=torch.int64),
        z_NF.new_empty(num_rows),
        z_NF.new_empty(num_rows),
    )


@torch.library.custom_op("featherlight::simplex_adjoint", mutates_args=())
def adjoint_once(
    z_NF: Tensor,
    codebook_KF: Tensor,
    strength: Tensor,
    prior_N: Tensor,
    indices_Nk: Tensor,
    weights_Nk: Tensor,
    grad_values_NF: Tensor,
    grad_weights_Nk: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of rows, codebook and strength, without a graph of their own."""
    solved = Solved(z_NF, codebook_KF, strength, prior_N, indices_Nk, weights_Nk, grad_values_NF, grad_weights_Nk)
    if use_kernels(z_NF):
        return adjoint_compiled(solved)
    with torch.no_grad():
        return adjoint(solved)


@adjoint_once.register_fake
def _(z_NF: Tensor, codebook_KF: Tensor, strength: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(z_NF), torch.empty_like(codebook_KF), torch.empty_like(strength)
