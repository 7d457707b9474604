"""Gradients of a solution by its optimality conditions, whatever method found it.

Legend of shapes: N rows, n rows of a chunk, F features, K codes, k codes that a row mixes.

With A the codes in use, H = C_A C_A' + strength I, v the gradient of the values and u that of the weights, the adjoint is

    [H  1; 1'  0] [w; eta] = [C_A v + u; 0],

and then dz = C_A' w, dC_A = w (z - x)' + p (v - C_A' w)', d strength = w . (e - p), at values x and shares p. The factor of H
is built anew from the codes, k^2 F / 2 products a row, so that nothing of size k^2 is kept between the two passes.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from featherlight.solvers.simplex_qp.pricing import rows_at_once


class Solved(NamedTuple):
    """A problem, its solution and the gradients that came back to it.

    Attributes:
        z_NF: the rows.
        codebook_KF: the codes.
        strength: of the penalty, ().
        prior_N: the prior codes.
        indices_Nk: codes in use; -1 in free slots.
        weights_Nk: their shares.
        grad_values_NF: gradient of the values.
        grad_weights_Nk: gradient of the shares.
    """

    z_NF: Tensor
    codebook_KF: Tensor
    strength: Tensor
    prior_N: Tensor
    indices_Nk: Tensor
    weights_Nk: Tensor
    grad_values_NF: Tensor
    grad_weights_Nk: Tensor


def adjoint(solved: Solved) -> tuple[Float[Tensor, "N F"], Float[Tensor, "K F"], Float[Tensor, ""]]:
    """Gradients of rows, codebook and strength; differentiable once more."""
    _, codebook_KF, strength, *_ = solved
    by_rows = (solved.z_NF, *solved[3:])
    if torch.compiler.is_compiling():
        chunks = [by_rows]
    else:
        slots, dim = solved.indices_Nk.shape[1], codebook_KF.shape[1]
        size = rows_at_once(4 * slots * max(dim, slots))
        chunks = list(zip(*(x.split(size) for x in by_rows), strict=True))
    of_z, of_codebook, of_strength = [], torch.zeros_like(codebook_KF), torch.zeros_like(strength)
    for z, *others in chunks:
        part = Solved(z, codebook_KF, strength, *others)
        rows, codes_nkF, in_strength = _adjoint_chunk(part)
        of_z.append(rows)
        slots = part.indices_Nk.clamp(min=0).flatten()
        of_codebook = of_codebook.index_add(0, slots, codes_nkF.flatten(0, 1))
        of_strength = of_strength + in_strength
    return torch.cat(of_z), of_codebook, of_strength


def _adjoint_chunk(solved: Solved) -> tuple[Tensor, Tensor, Tensor]:
    z, codebook, strength, prior, indices, weights, grad_values, grad_weights = solved
    dtype = z.dtype
    work = torch.float32 if z.device.type == "mps" else torch.float64
    used_nk = indices >= 0
    share_nk, v_nF = weights.to(work), grad_values.to(work)
    codes_nkF = torch.where(used_nk[..., None], codebook[indices.clamp(min=0)], 0).to(work)
    x_nF = (share_nk[..., None] * codes_nkF).sum(1)
    around_nkF = torch.where(used_nk[..., None], codes_nkF - x_nF[:, None], 0)
    side_nk = torch.where(used_nk, (around_nkF * v_nF[:, None]).sum(2) + grad_weights.to(work), 0)
    w_nk = _solve_adjoint(around_nkF, used_nk, strength.to(work), side_nk)
    of_z_nF = (w_nk[..., None] * around_nkF).sum(1)
    live_n1 = used_nk.any(1, keepdim=True)
    residual_nF = torch.where(live_n1, z.to(work) - x_nF, 0)
    left_nF = torch.where(live_n1, v_nF - of_z_nF, 0)
    of_codes_nkF = w_nk[..., None] * residual_nF[:, None] + share_nk[..., None] * left_nF[:, None]
    at_prior_nk = (indices == prior[:, None]).to(work)
    of_strength = (w_nk * (at_prior_nk - share_nk)).sum()
    return of_z_nF.to(dtype), of_codes_nkF.to(dtype), of_strength.to(dtype)


def _solve_adjoint(around_nkF: Tensor, used_nk: Tensor, strength: Tensor, side_nk: Tensor) -> Float[Tensor, "n k"]:
    """w of the system above; the lift of a support's curvature changes H only along 1, in which w has no part."""
    ones_nk = used_nk.to(around_nkF.dtype)
    gram_nkk = torch.bmm(around_nkF, around_nkF.mT)
    lift_n = gram_nkk.diagonal(dim1=1, dim2=2).sum(1) / ones_nk.sum(1).clamp(min=1) + strength
    floor_n = 4 * torch.finfo(lift_n.dtype).eps * lift_n
    gram_nkk = gram_nkk + lift_n[:, None, None] * ones_nk[..., None] * ones_nk[:, None]
    diagonal_nk = torch.where(used_nk, strength + floor_n[:, None], 1)
    factor_nkk, _ = torch.linalg.cholesky_ex(gram_nkk + torch.diag_embed(diagonal_nk))
    solved_nk2 = torch.cholesky_solve(torch.stack((side_nk, ones_nk), 2), factor_nkk)
    level_n = solved_nk2[..., 0].sum(1) / solved_nk2[..., 1].sum(1).clamp(min=torch.finfo(lift_n.dtype).tiny)
    return solved_nk2[..., 0] - level_n[:, None] * solved_nk2[..., 1]
