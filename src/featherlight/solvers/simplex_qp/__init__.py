"""Simplex-constrained least squares with a shared codebook: the program that soft convex quantization solves."""

from featherlight.solvers.simplex_qp.active_set import ActiveSet
from featherlight.solvers.simplex_qp.frank_wolfe import FrankWolfe, greedy_mixture
from featherlight.solvers.simplex_qp.problem import SimplexMethod, SimplexProblem, SimplexSolution, SimplexStatus
from featherlight.solvers.simplex_qp.solve import solve_simplex_least_squares

__all__ = [
    "ActiveSet",
    "FrankWolfe",
    "SimplexMethod",
    "SimplexProblem",
    "SimplexSolution",
    "SimplexStatus",
    "greedy_mixture",
    "solve_simplex_least_squares",
]
