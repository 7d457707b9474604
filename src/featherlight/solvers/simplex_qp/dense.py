"""What first-order methods share: dense iterates of a chunk of rows, checked now and then, kept as the few codes in use.

Legend of shapes: N rows, n rows still at work, F features, K codes, k codes in use.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from featherlight.solvers.simplex_qp.pricing import Centred, centre, certified, nearest_codes, rows_at_once
from featherlight.solvers.simplex_qp.problem import Found, SimplexProblem, SimplexStatus

_STEPS_BETWEEN_CHECKS = 10


class Programs(NamedTuple):
    """Some rows and the centred codebook.

    Attributes:
        z_nF: rows.
        prior_n: their prior codes.
        codebook_KF: codes; 0 where not usable.
        excluded_K: 0; -inf for codes that are not usable, to be added before a projection.
        strength: ().
    """

    z_nF: Float[Tensor, "n F"]
    prior_n: Int[Tensor, "n"]
    codebook_KF: Float[Tensor, "K F"]
    excluded_K: Float[Tensor, "K"]
    strength: Float[Tensor, ""]

    def at_prior(self) -> Float[Tensor, "n K"]:
        """All of each row on its prior code."""
        shares_nK = self.z_nF.new_zeros(self.z_nF.shape[0], self.codebook_KF.shape[0])
        return shares_nK.scatter_(1, self.prior_n[:, None], 1)

    def gradient(self, p_nK: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        """Half the gradient of the objective."""
        gradient_nK = (p_nK @ self.codebook_KF - self.z_nF) @ self.codebook_KF.T
        gradient_nK.add_(self.strength * p_nK)
        return gradient_nK.scatter_add_(1, self.prior_n[:, None], (-self.strength).expand(len(p_nK), 1))

    def gap(self, p_nK: Float[Tensor, "n K"]) -> Float[Tensor, "n"]:
        """The duality gap of feasible shares."""
        gradient_nK = self.gradient(p_nK)
        return 2 * ((gradient_nK * p_nK).sum(1) - (gradient_nK - self.excluded_K).amin(1))


State = tuple[Tensor, ...]
"""Of an iteration: tensors of one row each a row, the first of them feasible shares, (n, K)."""

Step = Callable[[Programs, State], State]
"""One iteration of all rows."""


def solve_dense(
    problem: SimplexProblem,
    begin: Callable[[Programs], State],
    step: Step,
    *,
    tolerance: float,
    max_steps: int,
) -> Found:
    """Iterates each row until its gap is at most `tolerance` times ||z||^2 plus the codes' mean squared length."""
    centred = centre(problem.z_NF, problem.codebook_KF)
    prior_N = nearest_codes(centred) if problem.prior_N is None else problem.prior_N.clone()
    excluded_K = torch.where(centred.usable_K, 0.0, -torch.inf).to(problem.z_NF.dtype)
    found = []
    size = rows_at_once(problem.codebook_KF.shape[0])
    for z_nF, prior_n in zip(centred.z_NF.split(size), prior_N.split(size), strict=True):
        programs = Programs(z_nF, prior_n, centred.codebook_KF, excluded_K, problem.strength)
        allowed_n = tolerance * (z_nF.square().sum(1) + centred.scale)
        found.append(_solve_chunk(programs, begin, step, allowed_n, max_steps))
    width = max([1, *(indices.shape[1] for indices, _, _ in found)])
    indices_Nk = torch.cat([torch.nn.functional.pad(x, (0, width - x.shape[1]), value=-1) for x, _, _ in found])
    weights_Nk = torch.cat([torch.nn.functional.pad(x, (0, width - x.shape[1])) for _, x, _ in found])
    return certified(problem, centred, prior_N, indices_Nk, weights_Nk, torch.cat([x for _, _, x in found]))


def _solve_chunk(
    programs: Programs, begin: Callable[[Programs], State], step: Step, allowed_n: Tensor, max_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices, weights and status."""
    state = begin(programs)
    shares_nK = state[0].clone()
    status_n = torch.full_like(programs.prior_n, int(SimplexStatus.STEP_LIMIT))
    number_n = torch.arange(len(shares_nK), device=shares_nK.device)
    for count in range(1, max_steps + 1):
        state = step(programs, state)
        if count % _STEPS_BETWEEN_CHECKS and count < max_steps:
            continue
        solved_n = programs.gap(state[0]) <= allowed_n
        shares_nK[number_n] = state[0]
        status_n[number_n[solved_n]] = int(SimplexStatus.CONVERGED)
        keep = (~solved_n).nonzero()[:, 0]
        if not len(keep):
            break
        state, number_n, allowed_n = tuple(x[keep] for x in state), number_n[keep], allowed_n[keep]
        programs = programs._replace(z_nF=programs.z_nF[keep], prior_n=programs.prior_n[keep])
    return *_in_use(shares_nK), status_n


def _in_use(shares_nK: Tensor) -> tuple[Tensor, Tensor]:
    """The codes with a share, largest first."""
    width = max(1, int((shares_nK > 0).sum(1).max())) if len(shares_nK) else 1
    weights_nk, indices_nk = shares_nK.topk(width, dim=1)
    return torch.where(weights_nk > 0, indices_nk, -1), weights_nk / weights_nk.sum(1, keepdim=True)


def largest_curvature(centred: Centred) -> float:
    """The largest eigenvalue of C C', from the F x F matrix C' C."""
    wide = centred.codebook_KF.to(torch.float32 if centred.codebook_KF.device.type == "mps" else torch.float64)
    return float(torch.linalg.eigvalsh(wide.T @ wide)[-1].clamp(min=0))
