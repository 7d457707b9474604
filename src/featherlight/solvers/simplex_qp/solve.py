"""The one call: rows, codebook and strength in, mixtures of codes out."""

from jaxtyping import Float, Int
from torch import Tensor

from featherlight.solvers.simplex_qp.active_set import ActiveSet
from featherlight.solvers.simplex_qp.pricing import unit_of
from featherlight.solvers.simplex_qp.problem import SimplexMethod, SimplexProblem, SimplexSolution, check_problem

_EXACT = ActiveSet()


def solve_simplex_least_squares(
    z_NF: Float[Tensor, "N F"],
    codebook_KF: Float[Tensor, "K F"],
    strength: Tensor | float,
    *,
    prior_N: Int[Tensor, "N"] | None = None,
    method: SimplexMethod = _EXACT,
) -> SimplexSolution:
    """The mixture of codes nearest to each row, held to its prior code by a quadratic penalty.

    Minimises ||z - C' p||^2 + strength * ||p - e_prior||^2 over p >= 0 with sum(p) = 1, for every row z at once. As `strength`
    grows the answer goes to the prior code, the nearest one; as it goes to 0 the values go to the projection of the row on
    the hull of the codes. Rows, codes times s and `strength` times s^2 give the same shares.

    Args:
        z_NF: (N, F), float32 or float64. A row that is not finite gets status NON_FINITE, value 0 and gradient 0.
        codebook_KF: (K, F), same dtype and device. A code that is not finite is never used.
        strength: weight of the penalty, above 0, in the unit of ||z||^2; a number or a tensor of one.
        prior_N: (N,) int64, the prior codes; None is the nearest code of each row.
        method: how it is solved. `ActiveSet()` is exact; `FrankWolfe(max_codes=k)` mixes at most k codes.

    Returns:
        Values, codes, shares, status, KKT residual and duality gap of each row. Values and weights are differentiable in
        `z_NF`, `codebook_KF` and `strength`, by the optimality conditions on the codes in use.

    Raises:
        ValueError: shapes or dtypes do not fit, or `strength` is not above 0.

    Rows and codes may be of any scale, though `strength` has to be a number of their dtype: they are worked in units of a power
    of two near to the largest code, which changes no digit.

    Source: Gautam et al. 2023, "Soft Convex Quantization", arXiv 2310.03004, equation of the exact program.
    """
    problem = check_problem(z_NF, codebook_KF, strength, prior_N)
    unit = unit_of(codebook_KF)
    scaled = SimplexProblem(z_NF / unit, codebook_KF / unit, problem.strength / unit / unit, prior_N)
    found = method.solve(scaled)
    return found._replace(
        values_NF=found.values_NF * unit,
        kkt_residual_N=found.kkt_residual_N * unit * unit,
        gap_N=found.gap_N * unit * unit,
    )
