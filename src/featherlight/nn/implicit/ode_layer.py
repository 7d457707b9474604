"""A layer that follows an ordinary differential equation: neural ODEs, through torchdiffeq.

Legend of shapes: N samples, T times, ... a state of any shape.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from featherlight.nn.implicit.broken import broken_samples, without_samples
from featherlight.solvers import Status
from featherlight.solvers.fixed_point.loop import without_autocast

_TOLERANCES = {torch.float64: (1e-9, 1e-10)}
_FLOAT32_TOLERANCES = (1e-5, 1e-6)


class OdeMethod(Protocol):
    """How an equation is integrated: a method of torchdiffeq with its settings."""

    def settings(self, dtype: torch.dtype, /) -> dict[str, Any]:
        """Keyword arguments of `torchdiffeq.odeint`."""
        ...


@dataclass(frozen=True, kw_only=True)
class DormandPrince:
    """Runge-Kutta of order 5 whose steps adapt to an estimate of the error.

    Each sample's estimate, as a root mean square over its state, is held to the tolerances; the steps are those that the worst
    sample needs, so a sample's rounding depends on its batch.

    Args:
        relative_tolerance: None is 1e-9 in float64 and 1e-5 otherwise.
        absolute_tolerance: None is 1e-10 in float64 and 1e-6 otherwise.
        max_steps: between two times.
    """

    relative_tolerance: float | None = None
    absolute_tolerance: float | None = None
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        for name in ("relative_tolerance", "absolute_tolerance"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"`{name}` must be in (0, 1); got {value}. None picks it by the dtype.")
        _check_steps("max_steps", self.max_steps)

    def settings(self, dtype: torch.dtype) -> dict[str, Any]:
        """See OdeMethod."""
        relative, absolute = _TOLERANCES.get(dtype, _FLOAT32_TOLERANCES)
        return {
            "method": "dopri5",
            "rtol": relative if self.relative_tolerance is None else self.relative_tolerance,
            "atol": absolute if self.absolute_tolerance is None else self.absolute_tolerance,
            "options": {"norm": _worst_sample, "max_num_steps": self.max_steps},
        }


@dataclass(frozen=True, kw_only=True)
class RungeKutta4:
    """Runge-Kutta of order 4 with equal steps, whose error nobody watches.

    Args:
        steps: between two times.
    """

    steps: int = 20

    def __post_init__(self) -> None:
        _check_steps("steps", self.steps)

    def settings(self, dtype: torch.dtype) -> dict[str, Any]:
        """See OdeMethod."""
        return {"method": "rk4", "options": {"grid_constructor": self._grid}}

    def _grid(self, f: object, y: Tensor, times: Tensor) -> Tensor:
        shares = torch.arange(self.steps, dtype=times.dtype, device=times.device) / self.steps
        inner = (times[:-1, None] + shares * times.diff()[:, None]).reshape(-1)
        return torch.cat((inner, times[-1:]))


class OdeGradient(Protocol):
    """How gradients pass through the path of the states."""

    def integrate(
        self,
        f: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        times: Tensor,
        tensors: tuple[Tensor, ...],
        settings: Any,
        /,
    ) -> Tensor:
        """The states at all times, (T, N, ...), with gradients to `x`, `times` and `tensors`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Adjoint:
    """A second equation, solved backwards in time: memory does not grow with the steps.

    Exact to the method's tolerance. It has no second derivatives, and says so.

    Source: Chen, Rubanova, Bettencourt, Duvenaud 2018, "Neural ordinary differential equations".
    """

    def integrate(
        self,
        f: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        times: Tensor,
        tensors: tuple[Tensor, ...],
        settings: Any,
    ) -> Tensor:
        """See OdeGradient."""
        from torchdiffeq import odeint_adjoint

        wanted = tuple(tensor for tensor in tensors if tensor.requires_grad)
        return _Once.apply(odeint_adjoint(f, x, times, adjoint_params=wanted, **settings))


@dataclass(frozen=True, kw_only=True)
class Direct:
    """Backpropagation through the steps taken, of any order: memory grows with them."""

    def integrate(
        self,
        f: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        times: Tensor,
        tensors: tuple[Tensor, ...],
        settings: Any,
    ) -> Tensor:
        """See OdeGradient."""
        from torchdiffeq import odeint

        return odeint(f, x, times, **settings)  # pyright: ignore[reportReturnType]


class IntegrationError(ValueError):
    """Some samples have no solution that could be followed to the last time."""


class OdeResult(NamedTuple):
    """The outcome of an ODELayer.

    Attributes:
        values: the states at the last time, (N, ...): what goes on in the network.
        states: at all times, (T, N, ...).
        evaluations: of the right-hand side in this call, without those of a backward pass.
        statuses: (N,), int8 numbers of `featherlight.solvers.Status`.
    """

    values: Tensor
    states: Tensor
    evaluations: int
    statuses: Tensor


class ODELayer(nn.Module):
    """The solution of dx/dt = f(t, x, *inputs) from a start, at given times. Needs `pip install 'featherlight[ode]'`.

    A layer keeps nothing between calls. The equation is solved in the dtype of its start, under autocast too. torch.compile
    breaks its graph here.

    Args:
        f: called as `f(t, x, *inputs)` with a time (); returns the shape and dtype of `x`, treats each sample of the first
            axis on its own, and is the same function at each call. Gradients reach its parameters and the inputs, and no
            tensor besides.
        method: how it is integrated.
        gradient: how backward passes through it.

    Raises:
        ValueError: torchdiffeq is not installed.

    Source: Chen et al. 2018; the methods are torchdiffeq's.
    """

    def __init__(self, f: nn.Module, *, method: OdeMethod | None = None, gradient: OdeGradient | None = None) -> None:
        super().__init__()
        if importlib.util.find_spec("torchdiffeq") is None:
            raise ValueError(
                "ODELayer needs the package torchdiffeq, which is not installed. Run: pip install 'featherlight[ode]'"
            )
        self.f = f
        self.method = DormandPrince() if method is None else method
        self.gradient = Adjoint() if gradient is None else gradient

    def forward(self, x: Tensor, *inputs: Tensor, times: Tensor | None = None) -> OdeResult:
        """The states at the last time and on the way.

        Args:
            x: (N, ...), the start, floating point.
            inputs: (N, ...), what `f` takes besides.
            times: (T,), rising or falling, of which the first is the start's; None is from 0 to 1.

        Raises:
            ValueError: shapes or times that do not fit.
            IntegrationError: nan or inf in some samples, by name, or a solution that leaves the dtype or needs more steps than
                allowed. `attempt` returns what there is instead.
        """
        return self._run(x, inputs, times, strict=True)

    def attempt(self, x: Tensor, *inputs: Tensor, times: Tensor | None = None) -> OdeResult:
        """As calling the layer, but failures are in the statuses.

        A sample with nan or inf in its start or inputs is NaN, and the others come out as if it had been zeros. If steps run
        out, which is known of the whole batch only, all samples are NaN.
        """
        return self._run(x, inputs, times, strict=False)

    @torch.compiler.disable(reason="the number of steps depends on values")
    def _run(self, x: Tensor, inputs: tuple[Tensor, ...], times: Tensor | None, *, strict: bool) -> OdeResult:
        times = _checked(x, inputs, times)
        broken = broken_samples((x, *inputs), len(x), x.device)
        if strict and bool(broken.any()):
            raise _failure("the start or the inputs hold nan or inf", broken, "Look for them there")
        if len(x) == 0:
            return OdeResult(x, x.expand(len(times), *x.shape), 0, broken.to(torch.int8))
        right = _RightHandSide(self.f, [without_samples(each, broken) for each in inputs])
        tensors = (*self.f.parameters(), *right.inputs)
        try:
            with without_autocast(x.device):
                states = self.gradient.integrate(
                    right, without_samples(x, broken), times, tensors, self.method.settings(x.dtype)
                )
        except AssertionError as error:
            everyone = torch.ones_like(broken)
            if strict:
                raise _failure(f"the integration stopped ({error})", everyone, _STIFF) from error
            nothing = torch.full((len(times), *x.shape), float("nan"), dtype=x.dtype, device=x.device)
            statuses = torch.where(broken, int(Status.BROKEN_INPUT), int(Status.STEPS_EXHAUSTED)).to(torch.int8)
            return OdeResult(nothing[-1], nothing, right.evaluations, statuses)
        left = ~states.detach().isfinite().movedim(1, 0).flatten(1).all(1)
        if strict and bool(left.any()):
            raise _failure(f"the solution left the range of {x.dtype}", left, _STIFF)
        statuses = torch.full_like(broken, int(Status.CONVERGED), dtype=torch.int8)
        statuses = statuses.masked_fill(left, int(Status.DIVERGED)).masked_fill(broken, int(Status.BROKEN_INPUT))
        states = states.masked_fill(broken.view(-1, *[1] * (x.ndim - 1)), float("nan"))
        return OdeResult(states[-1], states, right.evaluations, statuses)


_STIFF = (
    "The equation may be stiff or grow without bound there: bound its right-hand side (tanh), end earlier, or loosen the "
    "tolerances"
)


class _RightHandSide:
    """f with its inputs, counted."""

    def __init__(self, f: nn.Module, inputs: list[Tensor]) -> None:
        self.f = f
        self.inputs = inputs
        self.evaluations = 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        self.evaluations += 1
        slope = self.f(t, x, *self.inputs)
        if slope.shape != x.shape or slope.dtype != x.dtype:
            raise ValueError(
                f"`f` must return the shape and dtype of its state, {tuple(x.shape)} {x.dtype}; it returned "
                f"{tuple(slope.shape)} {slope.dtype}."
            )
        return slope


class _Once(torch.autograd.Function):
    """The identity; its gradient has no gradient, and says so rather than leave it out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        if torch.is_grad_enabled():
            raise ValueError("Adjoint() has no second derivatives; use ODELayer(..., gradient=Direct()).")
        return gradient


def _worst_sample(x: Tensor) -> Tensor:
    """The largest root mean square of a sample."""
    return x.flatten(1).square().mean(1).max().sqrt()


def _failure(what: str, which: Tensor, advice: str) -> IntegrationError:
    samples = which.nonzero()[:, 0].tolist()
    shown = ", ".join(map(str, samples[:5])) + (", ..." if len(samples) > 5 else "")
    return IntegrationError(
        f"{what} for sample{'s' * (len(samples) > 1)} {shown} ({len(samples)} of {len(which)}). {advice}; `attempt` gives the "
        "other samples."
    )


def _checked(x: Tensor, inputs: tuple[Tensor, ...], times: Tensor | None) -> Tensor:
    """The times, if all fits."""
    if x.ndim < 2 or not x.is_floating_point() or (len(x) > 0 and x.numel() == 0):
        raise ValueError(
            f"the start must be (samples, ...), floating point, with at least one number a sample; got {tuple(x.shape)} "
            f"{x.dtype}."
        )
    for each in inputs:
        if each.ndim < 1 or len(each) != len(x):
            raise ValueError(
                f"inputs must have the start's {len(x)} samples on their first axis; got {tuple(each.shape)}."
            )
    if times is None:
        return torch.tensor([0.0, 1.0], dtype=x.dtype, device=x.device)
    steps = times.detach().flatten().diff()
    if times.ndim != 1 or len(times) < 2 or not (bool((steps > 0).all()) or bool((steps < 0).all())):
        raise ValueError(f"`times` must be at least 2, all rising or all falling; got {times.tolist()}.")
    return times.to(x)


def _check_steps(name: str, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"`{name}` must be at least 1; got {steps}.")
