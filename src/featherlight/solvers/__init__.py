"""Functions of tensors that solve a problem; they know no Module."""

from featherlight.solvers.linear_head import LinearHead, fit_classifier, fit_regression
from featherlight.solvers.projections import (
    project_box,
    project_l1_ball,
    project_l2_ball,
    project_linf_rows,
    project_simplex,
)
from featherlight.solvers.simplex_qp import (
    ADMM,
    FISTA,
    ActiveSet,
    FrankWolfe,
    Relaxation,
    SimplexMethod,
    SimplexProblem,
    SimplexSolution,
    SimplexStatus,
    greedy_mixture,
    mix_greedily,
    solve_simplex_least_squares,
)

__all__ = [
    "ADMM",
    "FISTA",
    "ActiveSet",
    "FrankWolfe",
    "LinearHead",
    "Relaxation",
    "SimplexMethod",
    "SimplexProblem",
    "SimplexSolution",
    "SimplexStatus",
    "fit_classifier",
    "fit_regression",
    "greedy_mixture",
    "mix_greedily",
    "project_box",
    "project_l1_ball",
    "project_l2_ball",
    "project_linf_rows",
    "project_simplex",
    "solve_simplex_least_squares",
]
