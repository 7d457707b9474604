"""Optimizers whose step is a small convex program, learned from past problems of a class."""

from featherlight.optim.learned.adaptive import AdaptiveSteps
from featherlight.optim.learned.convex_update import ConvexUpdate
from featherlight.optim.learned.cvxpy_rule import CvxpyRule, CvxpyUpdate
from featherlight.optim.learned.memory import Momentum, MovingAverage, NoMemory, PastTerms
from featherlight.optim.learned.metrics import DiagonalSteps, FullSteps, KroneckerSteps, MirrorSteps, ScalarSteps
from featherlight.optim.learned.protocols import DescribedRule, MemoryPart, MetricPart, Tensors, Terms, UpdateRule
from featherlight.optim.learned.rule import ConvexRule, ConvexState
from featherlight.optim.learned.rule_file import load_rule, save_rule
from featherlight.optim.learned.safeguard import Measured, Safeguard, SafeguardState, Trials
from featherlight.optim.learned.sets import L1Penalty, PointIn, StepIn
from featherlight.optim.learned.special_cases import (
    adagrad,
    adam,
    clipped_gradient,
    exponentiated_gradient,
    ista,
    projected_gradient,
    rmsprop,
    sgd,
    sign_descent,
    trust_region,
)

__all__ = [
    "AdaptiveSteps",
    "ConvexRule",
    "ConvexState",
    "ConvexUpdate",
    "CvxpyRule",
    "CvxpyUpdate",
    "DescribedRule",
    "DiagonalSteps",
    "FullSteps",
    "KroneckerSteps",
    "L1Penalty",
    "Measured",
    "MemoryPart",
    "MetricPart",
    "MirrorSteps",
    "Momentum",
    "MovingAverage",
    "NoMemory",
    "PastTerms",
    "PointIn",
    "Safeguard",
    "SafeguardState",
    "ScalarSteps",
    "StepIn",
    "Tensors",
    "Terms",
    "Trials",
    "UpdateRule",
    "adagrad",
    "adam",
    "clipped_gradient",
    "exponentiated_gradient",
    "ista",
    "load_rule",
    "projected_gradient",
    "rmsprop",
    "save_rule",
    "sgd",
    "sign_descent",
    "trust_region",
]
