"""Functions of tensors that solve a problem; they know no Module."""

from featherlight.solvers.fixed_point import (
    Anderson,
    Broyden,
    FixedPoint,
    FixedPointError,
    FixedPointSolver,
    Picard,
    Status,
)
from featherlight.solvers.linear_head import LinearHead, fit_classifier, fit_regression
from featherlight.solvers.projections import (
    project_box,
    project_l1_ball,
    project_l2_ball,
    project_linf_rows,
    project_simplex,
)

__all__ = [
    "Anderson",
    "Broyden",
    "FixedPoint",
    "FixedPointError",
    "FixedPointSolver",
    "LinearHead",
    "Picard",
    "Status",
    "fit_classifier",
    "fit_regression",
    "project_box",
    "project_l1_ball",
    "project_l2_ball",
    "project_linf_rows",
    "project_simplex",
]
