"""Simplex-constrained least squares with a shared codebook: the program that soft convex quantization solves."""

from featherlight.solvers.simplex_qp.active_set import ActiveSet
from featherlight.solvers.simplex_qp.first_order import ADMM, FISTA
from featherlight.solvers.simplex_qp.frank_wolfe import FrankWolfe, greedy_mixture, mix_greedily
from featherlight.solvers.simplex_qp.problem import SimplexMethod, SimplexProblem, SimplexSolution, SimplexStatus
from featherlight.solvers.simplex_qp.relaxation import Relaxation
from featherlight.solvers.simplex_qp.solve import solve_simplex_least_squares

__all__ = [
    "ADMM",
    "FISTA",
    "ActiveSet",
    "FrankWolfe",
    "Relaxation",
    "SimplexMethod",
    "SimplexProblem",
    "SimplexSolution",
    "SimplexStatus",
    "greedy_mixture",
    "mix_greedily",
    "solve_simplex_least_squares",
]
