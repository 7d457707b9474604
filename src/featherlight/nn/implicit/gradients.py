"""Ways to differentiate states that a solver has found."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from featherlight.solvers import Status


class Found(NamedTuple):
    """States (N, ...) with a graph, and how the search of each sample ended; as in ImplicitResult."""

    states: Tensor
    residuals: Tensor
    statuses: Tensor


class StateEquation(Protocol):
    """x = f(x) with parameters, as a gradient needs it."""

    def start(self) -> Tensor:
        """Where a search begins."""
        ...

    def exact(self) -> Found:
        """The solution, differentiated exactly."""
        ...

    def detached(self) -> Found:
        """The solution without a graph."""
        ...

    def map(self, x: Tensor, /) -> Tensor:
        """f(x) with its graph to `x` and the parameters."""
        ...


class GradientMode(Protocol):
    """How gradients pass through the states."""

    def states(self, equation: StateEquation, /) -> Found:
        """The states of an equation, with the graph that backward goes along."""
        ...


@dataclass(frozen=True, kw_only=True)
class ImplicitDifferentiation:
    """The exact gradient, of any order, by the implicit function theorem: one linear equation of the same form a backward.

    Memory does not grow with the solver's steps. Source: Bai, Kolter, Koltun 2019; El Ghaoui et al. 2021, section 4.
    """

    def states(self, equation: StateEquation) -> Found:
        """See GradientMode."""
        return equation.exact()


@dataclass(frozen=True, kw_only=True)
class JacobianFree:
    """Backward through one application of the map at the solution, as if its state were given: cheap and not exact.

    A descent direction where the map contracts strongly enough. Source: Fung et al. 2022, "JFB".
    """

    def states(self, equation: StateEquation) -> Found:
        """See GradientMode."""
        found = equation.detached()
        return found._replace(states=equation.map(found.states))


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """Backward through a few damped applications of the map at the solution; exact in the limit of many.

    Args:
        steps: applications, at least 1.
        damping: share of the map in each step, in (0, 1].

    Source: Geng et al. 2021, "On training implicit models", unrolled form.
    """

    steps: int = 5
    damping: float = 0.5

    def __post_init__(self) -> None:
        _check_steps(self.steps)
        if not 0 < self.damping <= 1:
            raise ValueError(f"`damping` must be in (0, 1], the share of the map in a step; got {self.damping}.")

    def states(self, equation: StateEquation) -> Found:
        """See GradientMode."""
        found = equation.detached()
        x = found.states
        for _ in range(self.steps):
            x = torch.lerp(x, equation.map(x), self.damping)
        return found._replace(states=x)


@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """The map applied so many times with ordinary backpropagation; no solver is asked.

    What is returned is the state after `steps`, not the fixed point; residuals say how far it is from one, and samples
    above `tolerance` have the status STEPS_EXHAUSTED. Memory grows with the steps.

    Args:
        steps: applications, at least 1.
        tolerance: of the residual of a sample that counts as converged.
    """

    steps: int = 20
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        _check_steps(self.steps)
        if not 0 < self.tolerance < 1:
            raise ValueError(f"`tolerance` must be in (0, 1); got {self.tolerance}.")

    def states(self, equation: StateEquation) -> Found:
        """See GradientMode."""
        before = x = equation.start()
        for _ in range(self.steps):
            before, x = x, equation.map(x)
        with torch.no_grad():
            size = torch.linalg.vector_norm(x.flatten(1), dim=1).clamp(min=torch.finfo(x.dtype).tiny)
            residuals = torch.linalg.vector_norm((x - before).flatten(1), dim=1) / size
            ended = torch.where(residuals <= self.tolerance, int(Status.CONVERGED), int(Status.STEPS_EXHAUSTED))
            ended = torch.where(residuals.isfinite(), ended, int(Status.DIVERGED)).to(torch.int8)
        return Found(x, residuals, ended)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1; got {steps}.")
