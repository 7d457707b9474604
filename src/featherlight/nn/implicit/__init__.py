"""Implicit models: layers whose states solve an equation."""

from featherlight.nn.implicit.activations import ELU, IDENTITY, RELU, SIGMOID, TANH, Activation, leaky_relu
from featherlight.nn.implicit.certificates import (
    OutputInterval,
    PerronFrobenius,
    Sensitivity,
    output_interval,
    perron_frobenius,
    scaled_system,
    sensitivity,
)
from featherlight.nn.implicit.convex_layer import (
    ConvexLayer,
    CvxpyProgram,
    LearnedDiagonal,
    LearnedFull,
    LearnedLowRank,
    LearnedMetric,
)
from featherlight.nn.implicit.equilibrium import Equilibrium
from featherlight.nn.implicit.gradients import (
    GradientMode,
    ImplicitDifferentiation,
    JacobianFree,
    Phantom,
    StateEquation,
    Unrolled,
)
from featherlight.nn.implicit.implicit_layer import ImplicitLayer
from featherlight.nn.implicit.results import ImplicitResult
from featherlight.nn.implicit.triangular import StrictlyTriangular
from featherlight.nn.implicit.well_posedness import (
    IteratedWellPosedness,
    MonotoneOperator,
    RowProjection,
    RowRescaling,
    Unconstrained,
    WellPosedness,
)

__all__ = [
    "ELU",
    "IDENTITY",
    "RELU",
    "SIGMOID",
    "TANH",
    "Activation",
    "ConvexLayer",
    "CvxpyProgram",
    "Equilibrium",
    "GradientMode",
    "ImplicitDifferentiation",
    "ImplicitLayer",
    "ImplicitResult",
    "IteratedWellPosedness",
    "JacobianFree",
    "LearnedDiagonal",
    "LearnedFull",
    "LearnedLowRank",
    "LearnedMetric",
    "MonotoneOperator",
    "OutputInterval",
    "PerronFrobenius",
    "Phantom",
    "RowProjection",
    "RowRescaling",
    "Sensitivity",
    "StateEquation",
    "StrictlyTriangular",
    "Unconstrained",
    "Unrolled",
    "WellPosedness",
    "leaky_relu",
    "output_interval",
    "perron_frobenius",
    "scaled_system",
    "sensitivity",
]
