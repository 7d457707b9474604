"""A step as the solution of a small convex program whose metric, memory, constraint and penalty are parts."""

from typing import Any, NamedTuple

from torch import nn

from featherlight.optim.learned.memory import NoMemory
from featherlight.optim.learned.metrics import ScalarSteps
from featherlight.optim.learned.protocols import MemoryPart, MetricPart, Tensors, UpdateRule

__all__ = ["ConvexRule", "ConvexState", "UpdateRule"]


class ConvexState(NamedTuple):
    """What a ConvexRule keeps from step to step.

    Attributes:
        memory: of its memory part.
        metric: of its metric part.
    """

    memory: Any
    metric: Any


class ConvexRule(nn.Module):
    """The step `argmin_d m'd + |d - drift|^2_M / 2`: M of a metric, m and drift of a memory, all learned.

    Args:
        metric: how far a step goes in which direction; None takes `ScalarSteps(1.0)`.
        memory: what of the past goes into it; None takes `NoMemory()`.

    It is an UpdateRule: two pure functions of tensors.
    Source: Gautam, Pfrommer, Sojoudi 2023 (arXiv 2303.16952).
    """

    def __init__(self, metric: MetricPart | None = None, memory: MemoryPart | None = None) -> None:
        super().__init__()
        self.metric = metric if metric is not None else ScalarSteps(1.0)
        self.memory = memory if memory is not None else NoMemory()

    def init(self, points: Tensors) -> ConvexState:
        """The state before the first step; raises ValueError for tensors that a part is not made for."""
        return ConvexState(self.memory.init(points), self.metric.init(points))

    def update(self, gradients: Tensors, state: ConvexState, points: Tensors) -> tuple[Tensors, ConvexState]:
        """The steps and the next state."""
        (linear, drift), memory = self.memory.update(gradients, state.memory, points)
        inverses, metric = self.metric.update(gradients, state.metric, points)
        steps = tuple(-inverse.times(one) for inverse, one in zip(inverses, linear, strict=True))
        if drift is not None:
            steps = tuple(step + one for step, one in zip(steps, drift, strict=True))
        return tuple(s.to(p.dtype) for s, p in zip(steps, points, strict=True)), ConvexState(memory, metric)
