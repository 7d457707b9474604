"""A step as the solution of a small convex program whose metric, memory, constraint and penalty are parts."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from featherlight.optim.learned.inverses import DiagonalInverse, MirrorInverse
from featherlight.optim.learned.memory import NoMemory, PastTerms
from featherlight.optim.learned.metrics import MirrorSteps, ScalarSteps
from featherlight.optim.learned.programs import solve_steps
from featherlight.optim.learned.protocols import MemoryPart, MetricPart, Tensors, Terms, UpdateRule, wide
from featherlight.optim.learned.sets import L1Penalty, PointIn, StepIn

__all__ = ["ConvexRule", "ConvexState", "UpdateRule"]


class ConvexState(NamedTuple):
    """What a ConvexRule keeps from step to step.

    Attributes:
        memory: of its memory part.
        metric: of its metric part.
        status: of the last program of each tensor: a number of `featherlight.solvers.convex.ConvexStatus`.
    """

    memory: Any
    metric: Any
    status: Tensor


class ConvexRule(nn.Module):
    """The step `argmin_d m'd + |d - drift|^2_M / 2 + r(x + d)` with x + d or d in X.

    Args:
        metric: M, how far a step goes in which direction; None takes `ScalarSteps(1.0)`.
        memory: makes m and the drift of the gradients and steps so far; None takes `NoMemory()`.
        constraint: X, `PointIn(...)` or `StepIn(...)`.
        prox: r.

    It is an UpdateRule: two pure functions of tensors, differentiable in all that its parts have learned. Where a program has
    no solution, steps and gradients are 0 and the status in the state says why.

    Raises:
        ValueError: parts that no kernel covers together.

    Source: Gautam, Pfrommer, Sojoudi 2023 (arXiv 2303.16952).
    """

    def __init__(
        self,
        metric: MetricPart | None = None,
        memory: MemoryPart | None = None,
        *,
        constraint: PointIn | StepIn | None = None,
        prox: L1Penalty | None = None,
    ) -> None:
        super().__init__()
        self.metric = metric if metric is not None else ScalarSteps(1.0)
        self.memory = memory if memory is not None else NoMemory()
        self.constraint = constraint
        self.prox = prox
        if prox is not None and isinstance(constraint, StepIn):
            raise ValueError(
                "a penalty is on the point and StepIn on the step, which no kernel has together. Take PointIn."
            )
        if isinstance(metric, MirrorSteps) and (
            prox is not None or isinstance(constraint, StepIn) or isinstance(memory, PastTerms)
        ):
            raise ValueError(
                "MirrorSteps goes with `PointIn(Simplex())` or no constraint, without a penalty and without past steps; for "
                "others take ScalarSteps."
            )

    def init(self, points: Tensors) -> ConvexState:
        """The state before the first step; raises ValueError for tensors that a part is not made for."""
        if self.constraint is not None:
            self.constraint.check(points)
        status = torch.zeros(len(points), dtype=torch.int8, device=points[0].device)
        return ConvexState(self.memory.init(points), self.metric.init(points), status)

    def update(self, gradients: Tensors, state: ConvexState, points: Tensors) -> tuple[Tensors, ConvexState]:
        """The steps and the next state."""
        terms, memory = self.memory.update(gradients, state.memory, points)
        inverses, metric = self.metric.update(gradients, state.metric, wide(points))
        steps, status = solve_steps(terms, inverses, points, self.constraint, self.prox)
        return tuple(s.to(p.dtype) for s, p in zip(steps, points, strict=True)), ConvexState(memory, metric, status)

    def gradient_steps(self, gradients: Tensors, points: Tensors, sizes: Sequence[float]) -> Tensors:
        """Projected, proximal or mirrored gradient steps of these sizes, one for each tensor, without metric and memory."""
        kind = MirrorInverse if isinstance(self.metric, MirrorSteps) else DiagonalInverse
        linear = wide(gradients)
        inverses = [kind(one.new_tensor(size)) for one, size in zip(linear, sizes, strict=True)]
        steps, _ = solve_steps(Terms(linear), inverses, points, self.constraint, self.prox)
        return tuple(s.to(p.dtype) for s, p in zip(steps, points, strict=True))

    def penalty(self, points: Tensors) -> Tensor:
        """What is added to the objective at these points, ()."""
        return self.prox.value(points) if self.prox is not None else torch.zeros((), dtype=torch.float64)

    def description(self) -> dict[str, Any]:
        """The parts."""
        return {"metric": self.metric, "memory": self.memory, "constraint": self.constraint, "prox": self.prox}

    @property
    def is_free(self) -> bool:
        """Whether there is neither a constraint nor a penalty, nor a mirror."""
        return self.constraint is None and self.prox is None and not isinstance(self.metric, MirrorSteps)
