"""First-order methods for the same program: accelerated projected gradient, and splitting.

Both keep all K shares of the rows they work on, a chunk of rows at a time, and take tens to thousands of steps where
`ActiveSet` takes one or two a code; they are here to check it, and for devices on which only large products are fast.
The number of steps depends on the values, so that neither compiles without graph breaks.

Legend of shapes: n rows at work, F features, K codes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from featherlight.solvers.projections import project_simplex
from featherlight.solvers.simplex_qp.backward import connect
from featherlight.solvers.simplex_qp.dense import Programs, State, largest_curvature, solve_dense
from featherlight.solvers.simplex_qp.pricing import centre
from featherlight.solvers.simplex_qp.problem import SimplexProblem, SimplexSolution


@dataclass(frozen=True, kw_only=True)
class FISTA:
    """Accelerated projected gradient with restarts where the momentum points uphill.

    Args:
        tolerance: of the duality gap, in parts of ||z||^2 plus the codes' mean squared length.
        max_steps: after which a row ends with status STEP_LIMIT.

    Cost: two products of (N, F) by (F, K) and a projection of (N, K) a step.

    Source: Beck and Teboulle 2009, "FISTA"; restarts of O'Donoghue and Candes 2015, arXiv 1204.3982, row by row.
    """

    tolerance: float = 1e-6
    max_steps: int = 2000

    def __post_init__(self) -> None:
        _check(self.tolerance, self.max_steps)

    def solve(self, problem: SimplexProblem) -> SimplexSolution:
        """The solution of every row, to the tolerance."""
        with torch.no_grad():
            centred = centre(problem.z_NF, problem.codebook_KF)
            bound = largest_curvature(centred) + float(problem.strength)

            def begin(programs: Programs) -> State:
                shares_nK = programs.at_prior()
                return shares_nK, shares_nK, shares_nK.new_ones(len(shares_nK), 1)

            def step(programs: Programs, state: State) -> State:
                return _accelerated(programs, bound, *state)

            found = solve_dense(problem, begin, step, tolerance=self.tolerance, max_steps=self.max_steps)
        return connect(problem, found)


def _accelerated(programs: Programs, bound: float, p_nK: Tensor, ahead_nK: Tensor, speed_n1: Tensor) -> State:
    new_nK = project_simplex(ahead_nK - programs.gradient(ahead_nK) / bound + programs.excluded_K)
    uphill_n1 = ((ahead_nK - new_nK) * (new_nK - p_nK)).sum(1, keepdim=True) > 0
    speed_n1 = torch.where(uphill_n1, 1, speed_n1)
    faster_n1 = (1 + (1 + 4 * speed_n1.square()).sqrt()) / 2
    momentum_n1 = torch.where(uphill_n1, 0, (speed_n1 - 1) / faster_n1)
    return new_nK, new_nK + momentum_n1 * (new_nK - p_nK), faster_n1


@dataclass(frozen=True, kw_only=True)
class ADMM:
    """Splitting into the least-squares problem, solved by one F x F factor, and the simplex.

    Args:
        penalty: of the difference between both parts, in the unit of `strength`; None is the codes' mean squared length,
            or the geometric mean of the curvature's bounds where that is larger.
        tolerance: of the duality gap, in parts of ||z||^2 plus the codes' mean squared length.
        max_steps: after which a row ends with status STEP_LIMIT.

    Cost: two products of (N, F) by (F, K) and a projection of (N, K) a step, and one Cholesky factor of F x F.

    Source: Boyd et al. 2011, "Distributed optimization and statistical learning via ADMM", over-relaxed by 1.6.
    """

    penalty: float | None = None
    tolerance: float = 1e-6
    max_steps: int = 2000

    def __post_init__(self) -> None:
        _check(self.tolerance, self.max_steps)
        if self.penalty is not None and not self.penalty > 0:
            raise ValueError(f"`penalty` must be above 0; got {self.penalty}. None chooses one from the codebook.")

    def solve(self, problem: SimplexProblem) -> SimplexSolution:
        """The solution of every row, to the tolerance."""
        with torch.no_grad():
            centred = centre(problem.z_NF, problem.codebook_KF)
            strength = float(problem.strength)
            balanced = ((largest_curvature(centred) + strength) * strength) ** 0.5
            penalty = self.penalty or max(balanced, float(centred.scale))
            solver = _RidgeSolver(centred.codebook_KF, strength + penalty)

            def begin(programs: Programs) -> State:
                shares_nK = programs.at_prior()
                return shares_nK, torch.zeros_like(shares_nK)

            def step(programs: Programs, state: State) -> State:
                return _split(programs, penalty, solver, *state)

            found = solve_dense(problem, begin, step, tolerance=self.tolerance, max_steps=self.max_steps)
        return connect(problem, found)


class _RidgeSolver:
    """(C C' + ridge I)^-1 on rows, by the factor of the F x F matrix C' C + ridge I."""

    def __init__(self, codebook_KF: Tensor, ridge: float) -> None:
        wide_KF = codebook_KF.to(torch.float32 if codebook_KF.device.type == "mps" else torch.float64)
        factor_FF = torch.linalg.cholesky(wide_KF.T @ wide_KF + ridge * torch.eye(wide_KF.shape[1]).to(wide_KF))
        self.codebook_KF, self.ridge = codebook_KF, ridge
        self.through_FK = torch.cholesky_solve(wide_KF.T, factor_FF).to(codebook_KF.dtype)

    def __call__(self, side_nK: Tensor) -> Tensor:
        return (side_nK - (side_nK @ self.codebook_KF) @ self.through_FK) / self.ridge


def _split(programs: Programs, penalty: float, solver: _RidgeSolver, q_nK: Tensor, dual_nK: Tensor) -> State:
    side_nK = programs.z_nF @ programs.codebook_KF.T + penalty * (q_nK - dual_nK)
    side_nK.scatter_add_(1, programs.prior_n[:, None], programs.strength.expand(len(q_nK), 1))
    p_nK = 1.6 * solver(side_nK) - 0.6 * q_nK
    new_nK = project_simplex(p_nK + dual_nK + programs.excluded_K)
    return new_nK, dual_nK + p_nK - new_nK


def _check(tolerance: float, max_steps: int) -> None:
    if not tolerance > 0:
        raise ValueError(f"`tolerance` must be above 0; got {tolerance}, which rounding never lets a row reach.")
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1; got {max_steps}. Without a step nothing is solved.")
