"""Optimizers whose step is a small convex program, learned from past problems of a class."""

from featherlight.optim.learned.memory import Momentum, MovingAverage, NoMemory, PastTerms
from featherlight.optim.learned.metrics import DiagonalSteps, FullSteps, KroneckerSteps, ScalarSteps
from featherlight.optim.learned.protocols import MemoryPart, MetricPart, Tensors, Terms, UpdateRule
from featherlight.optim.learned.rule import ConvexRule, ConvexState

__all__ = [
    "ConvexRule",
    "ConvexState",
    "DiagonalSteps",
    "FullSteps",
    "KroneckerSteps",
    "MemoryPart",
    "MetricPart",
    "Momentum",
    "MovingAverage",
    "NoMemory",
    "PastTerms",
    "ScalarSteps",
    "Tensors",
    "Terms",
    "UpdateRule",
]
