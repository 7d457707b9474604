"""Functions of tensors that solve a problem; they know no Module."""

from featherlight.solvers.linear_head import LinearHead, fit_classifier, fit_regression
from featherlight.solvers.simplex_qp import (
    ActiveSet,
    SimplexMethod,
    SimplexProblem,
    SimplexSolution,
    SimplexStatus,
    solve_simplex_least_squares,
)

__all__ = [
    "ActiveSet",
    "LinearHead",
    "SimplexMethod",
    "SimplexProblem",
    "SimplexSolution",
    "SimplexStatus",
    "fit_classifier",
    "fit_regression",
    "solve_simplex_least_squares",
]
