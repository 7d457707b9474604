"""Steps that are small convex programs, in batches: metrics, constraints, and the one call that solves and differentiates."""

from featherlight.solvers.convex.constraints import (
    AffineEquality,
    Box,
    Constraint,
    EntropyMirror,
    L1Ball,
    L1Prox,
    L2Ball,
    LinfBall,
    Simplex,
)
from featherlight.solvers.convex.cvxpy_layer import make_cvxpy_layer
from featherlight.solvers.convex.metrics import DiagonalMetric, FullMetric, KroneckerMetric, LowRankMetric, Metric
from featherlight.solvers.convex.outcome import ConvexError, ConvexSolution, ConvexStatus
from featherlight.solvers.convex.step import solve_convex_step

__all__ = [
    "AffineEquality",
    "Box",
    "Constraint",
    "ConvexError",
    "ConvexSolution",
    "ConvexStatus",
    "DiagonalMetric",
    "EntropyMirror",
    "FullMetric",
    "KroneckerMetric",
    "L1Ball",
    "L1Prox",
    "L2Ball",
    "LinfBall",
    "LowRankMetric",
    "Metric",
    "Simplex",
    "make_cvxpy_layer",
    "solve_convex_step",
]
