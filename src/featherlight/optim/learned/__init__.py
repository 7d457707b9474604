"""Optimizers whose step is a small convex program, learned from past problems of a class."""

from featherlight.optim.learned.adaptive import AdaptiveSteps
from featherlight.optim.learned.convex_update import ConvexUpdate
from featherlight.optim.learned.cvxpy_rule import CvxpyRule, CvxpyUpdate
from featherlight.optim.learned.greedy_curvature import Curvature, MeanCurvature, Quadratics
from featherlight.optim.learned.greedy_fit import GreedyLeastSquares, fit_greedy
from featherlight.optim.learned.greedy_rule import GreedyRule, GreedyState
from featherlight.optim.learned.memory import Momentum, MovingAverage, NoMemory, PastTerms
from featherlight.optim.learned.meta_objective import MetaObjective
from featherlight.optim.learned.meta_score import (
    MeanLogGap,
    Score,
    evaluations_to,
    last_loss,
    mean_loss,
    relative_gaps,
)
from featherlight.optim.learned.meta_tasks import ProblemClass, TaskLoss, Tasks
from featherlight.optim.learned.metrics import DiagonalSteps, FullSteps, KroneckerSteps, MirrorSteps, ScalarSteps
from featherlight.optim.learned.protocols import DescribedRule, MemoryPart, MetricPart, Tensors, Terms, UpdateRule
from featherlight.optim.learned.rule import ConvexRule, ConvexState
from featherlight.optim.learned.rule_file import load_rule, save_rule
from featherlight.optim.learned.safeguard import Measured, Safeguard, SafeguardState, Trials
from featherlight.optim.learned.secant_rule import SecantRule, SecantState
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
    "Curvature",
    "CvxpyRule",
    "CvxpyUpdate",
    "DescribedRule",
    "DiagonalSteps",
    "FullSteps",
    "GreedyLeastSquares",
    "GreedyRule",
    "GreedyState",
    "KroneckerSteps",
    "L1Penalty",
    "MeanCurvature",
    "MeanLogGap",
    "Measured",
    "MemoryPart",
    "MetaObjective",
    "MetricPart",
    "MirrorSteps",
    "Momentum",
    "MovingAverage",
    "NoMemory",
    "PastTerms",
    "PointIn",
    "ProblemClass",
    "Quadratics",
    "Safeguard",
    "SafeguardState",
    "ScalarSteps",
    "Score",
    "SecantRule",
    "SecantState",
    "StepIn",
    "TaskLoss",
    "Tasks",
    "Tensors",
    "Terms",
    "Trials",
    "UpdateRule",
    "adagrad",
    "adam",
    "clipped_gradient",
    "evaluations_to",
    "exponentiated_gradient",
    "fit_greedy",
    "ista",
    "last_loss",
    "load_rule",
    "mean_loss",
    "projected_gradient",
    "relative_gaps",
    "rmsprop",
    "save_rule",
    "sgd",
    "sign_descent",
    "trust_region",
]
