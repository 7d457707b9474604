"""Simplex-constrained least squares the slow way: by every support there is, and by an interior-point solver.

Legend of shapes: F features, K codes.
"""

from itertools import combinations

import clarabel
import numpy as np
import torch
from scipy import sparse
from torch import Tensor


def objective(p_K: Tensor, z_F: Tensor, codebook_KF: Tensor, strength: float, prior: int) -> float:
    """||z - C' p||^2 + strength * ||p - e_prior||^2, in float64."""
    p_K, z_F, codebook_KF = p_K.double(), z_F.double(), codebook_KF.double()
    prior_K = torch.nn.functional.one_hot(torch.tensor(prior), len(p_K))
    return float((z_F - p_K @ codebook_KF).square().sum() + strength * (p_K - prior_K).square().sum())


def by_supports(z_F: Tensor, codebook_KF: Tensor, strength: float, prior: int) -> Tensor:
    """The best of the equality-constrained minima, one a set of codes, whose shares are none of them negative; (K,)."""
    num_codes = len(codebook_KF)
    prior_K = torch.nn.functional.one_hot(torch.tensor(prior), num_codes).double()
    best, best_value = prior_K, objective(prior_K, z_F, codebook_KF, strength, prior)
    for size in range(1, num_codes + 1):
        for support in combinations(range(num_codes), size):
            codes = codebook_KF[list(support)].double()
            system = torch.ones(size + 1, size + 1, dtype=torch.float64)
            system[:size, :size] = codes @ codes.T + strength * torch.eye(size, dtype=torch.float64)
            system[size, size] = 0
            side = torch.cat((codes @ z_F.double() + strength * prior_K[list(support)], torch.ones(1)))
            shares = torch.linalg.solve(system, side)[:size]
            if (shares < 0).any():
                continue
            p_K = torch.zeros(num_codes, dtype=torch.float64)
            p_K[list(support)] = shares
            value = objective(p_K, z_F, codebook_KF, strength, prior)
            if value < best_value:
                best, best_value = p_K, value
    return best


def by_clarabel(z_F: Tensor, codebook_KF: Tensor, strength: float, prior: int) -> Tensor:
    """Shares of an interior-point solver, (K,), made feasible to the last digit."""
    codes = codebook_KF.double().numpy()
    num_codes = len(codes)
    linear = -2 * codes @ z_F.double().numpy()
    linear[prior] -= 2 * strength
    quadratic = sparse.triu(2 * (codes @ codes.T + strength * np.eye(num_codes)), format="csc")
    constraints = sparse.vstack((np.ones((1, num_codes)), -sparse.identity(num_codes)), format="csc")
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-13
    bound = np.concatenate(([1.0], np.zeros(num_codes)))
    cones = [clarabel.ZeroConeT(1), clarabel.NonnegativeConeT(num_codes)]
    found = clarabel.DefaultSolver(quadratic, linear, constraints, bound, cones, settings).solve()
    p_K = torch.tensor(found.x, dtype=torch.float64).clamp(min=0)
    return p_K / p_K.sum()
