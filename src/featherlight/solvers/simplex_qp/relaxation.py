"""The scalable relaxation of soft convex quantization as published.

Legend of shapes: N rows, F features, K codes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from featherlight.solvers.projections import project_simplex
from featherlight.solvers.simplex_qp.pricing import centre, certified, nearest_codes
from featherlight.solvers.simplex_qp.problem import SimplexProblem, SimplexSolution, SimplexStatus


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """The program without its constraints, and then the projection of its answer onto the simplex.

    The K x K system of the paper is never formed: with e the prior's one-hot vector, the unconstrained answer is
    e + C (strength I + C' C)^-1 (z - C' e), one F x F factor for all rows. What is found is feasible but not optimal; the gap
    says how far off it is, and the status is APPROXIMATE.

    The shares are dense: `indices_Nk` counts all K codes and `weights_Nk` is (N, K), which is its memory. The gradient is
    that of these very operations, the prior held fixed.

    Source: Gautam et al. 2023, arXiv 2310.03004, the relaxed algorithm.
    """

    def solve(self, problem: SimplexProblem) -> SimplexSolution:
        """The relaxed solution of every row."""
        with torch.no_grad():
            centred = centre(problem.z_NF, problem.codebook_KF)
            prior_N = nearest_codes(centred) if problem.prior_N is None else problem.prior_N
            usable_N1 = (centred.usable_N & centred.usable_K[prior_N])[:, None]
        codebook_KF = torch.where(centred.usable_K[:, None], problem.codebook_KF, 0)
        z_NF = torch.where(usable_N1, problem.z_NF, 0)
        away_NF = z_NF - codebook_KF[prior_N]
        free_NK = away_NF @ _ridge(codebook_KF, problem.strength)
        free_NK = free_NK + torch.nn.functional.one_hot(prior_N, codebook_KF.shape[0])
        weights_NK = project_simplex(torch.where(centred.usable_K, free_NK, -torch.inf))
        weights_NK = torch.where(usable_N1, weights_NK, 0)
        with torch.no_grad():
            all_NK = torch.arange(codebook_KF.shape[0], device=z_NF.device).expand(z_NF.shape[0], -1)
            status_N = torch.full_like(prior_N, int(SimplexStatus.APPROXIMATE))
            found = certified(problem, centred, prior_N, all_NK, weights_NK, status_N)
        return SimplexSolution(weights_NK @ codebook_KF, found.indices_Nk, weights_NK, *found[3:])


def _ridge(codebook_KF: Tensor, strength: Tensor) -> Tensor:
    """(strength I + C' C)^-1 C', (F, K), by a factor in float64 where the device has it."""
    work = torch.float32 if codebook_KF.device.type == "mps" else torch.float64
    wide_KF = codebook_KF.to(work)
    square_FF = wide_KF.T @ wide_KF
    floor = 4 * torch.finfo(work).eps * square_FF.detach().diagonal().sum()
    identity_FF = torch.eye(wide_KF.shape[1], dtype=work, device=wide_KF.device)
    factor_FF, _ = torch.linalg.cholesky_ex(square_FF + (strength.to(work) + floor) * identity_FF)
    return torch.cholesky_solve(wide_KF.T, factor_FF).to(codebook_KF.dtype)
