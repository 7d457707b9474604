"""What Picard, Anderson and Broyden share: evaluating, measuring, and letting each sample stop on its own.

Legend of shapes: N samples, ... a state of any shape, F its numbers in a row.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from math import isqrt
from typing import Protocol

import torch
from torch import Tensor

from featherlight.solvers.fixed_point.outcome import FixedPoint, Status

_FLOOR = 1e-8
_TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}
_HALF_TOLERANCE = 1e-2


class Advance(Protocol):
    """Where a method looks next; made anew for each solve."""

    def next(self, x_NF: Tensor, fx_NF: Tensor, /) -> Tensor:
        """The next point, given a point and the map there."""
        ...


def iterate(
    f: Callable[[Tensor], Tensor],
    start: Tensor,
    advance: Advance,
    *,
    max_steps: int,
    tolerance: float | None,
    check_every: int | None,
) -> FixedPoint:
    """Runs a method until every sample is done.

    A sample's value is fixed at the first check at which it is converged, so that it does not depend on how long others
    of its batch take. Residuals are looked at in every `check_every`-th step and in the last one, and only then the device
    is waited for. Without `check_every` they are looked at in the first step, and then as far apart as the square root of
    the steps so far, at least 2: the cost of looks and that of steps that were not needed are then about equal. Autocast
    is off, as its products end far above any tolerance.
    """
    _check_start(start)
    tolerance = _TOLERANCES.get(start.dtype, _HALF_TOLERANCE) if tolerance is None else tolerance
    with torch.no_grad(), without_autocast(start.device):
        watch = _Watch(tolerance, max_steps)
        x, look = start.flatten(1), 1 if check_every is None else check_every
        for step in range(1, max_steps + 1):
            fx = f(x.reshape(start.shape))
            if step == 1:
                _check_map(fx, start)
                watch.first = fx.flatten(1)
            fx = fx.flatten(1)
            if step in (look, max_steps):
                if watch.all_done(x, fx, step):
                    break
                look += max(2, isqrt(step)) if check_every is None else check_every
            x = advance.next(x, fx)
        assert watch.found is not None
        return replace(watch.found, value=watch.found.value.view(start.shape))


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context without autocast, for nothing where it is off."""
    on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()


class _Watch:
    """Which samples are done, and their values; until the first one is, nothing is kept.

    A residual is NaN where the state or its size is beyond the dtype.
    """

    def __init__(self, tolerance: float, max_steps: int) -> None:
        self.tolerance = tolerance
        self.max_steps = max_steps
        self.first: Tensor | None = None
        self.found: FixedPoint | None = None
        self.open: Tensor | None = None

    def all_done(self, x_NF: Tensor, fx_NF: Tensor, step: int) -> bool:
        """Takes in the newest values of the samples that were open, and closes those that are converged or broken."""
        size = torch.linalg.vector_norm(fx_NF, dim=1)
        residual = torch.linalg.vector_norm(fx_NF - x_NF, dim=1) / size.clamp(min=_FLOOR)
        residual = residual.add_(size, alpha=0)
        if self.found is None and len(residual) > 0:
            ends = residual.aminmax()
            least, most = float(ends.min), float(ends.max)
            if self.tolerance < least and most < float("inf") and step < self.max_steps:
                self.first = None
                return False
            if most <= self.tolerance:
                self.found = self._outcome(fx_NF, residual, torch.zeros_like(residual, dtype=torch.int8), step)
                return True
        converged = residual <= self.tolerance
        broken = ~residual.isfinite()
        status = torch.full_like(residual, int(Status.STEPS_EXHAUSTED), dtype=torch.int8)
        status.masked_fill_(broken, int(Status.DIVERGED))
        if self.first is not None:
            status.masked_fill_(broken & ~self.first.isfinite().all(1), int(Status.BROKEN_INPUT))
            self.first = None
        status.masked_fill_(converged, int(Status.CONVERGED))
        found = self._outcome(fx_NF, residual, status, step)
        if self.found is not None:
            assert self.open is not None
            found = replace(
                found,
                value=torch.where(self.open[:, None], fx_NF, self.found.value),
                residual=torch.where(self.open, residual, self.found.residual),
                status=torch.where(self.open, status, self.found.status),
                steps=torch.where(self.open, found.steps, self.found.steps),
            )
        self.found, self.open = found, found.status == Status.STEPS_EXHAUSTED
        return not bool(self.open.any())

    def _outcome(self, value: Tensor, residual: Tensor, status: Tensor, step: int) -> FixedPoint:
        return FixedPoint(
            value=value,
            residual=residual,
            status=status,
            steps=torch.full_like(status, step, dtype=torch.int32),
            tolerance=self.tolerance,
            max_steps=self.max_steps,
        )


def check_limits(max_steps: int, tolerance: float | None, check_every: int | None) -> None:
    """Raises ValueError for limits under which nothing could be found."""
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1, or the map is never evaluated; got {max_steps}.")
    if tolerance is not None and not 0 < tolerance < 1:
        raise ValueError(
            f"`tolerance` must be in (0, 1), a residual relative to the size of the state; got {tolerance}. "
            "None picks it by the dtype."
        )
    if check_every is not None and check_every < 1:
        raise ValueError(f"`check_every` must be at least 1; got {check_every}.")


def _check_start(start: Tensor) -> None:
    if start.ndim < 2 or (len(start) > 0 and start.numel() == 0):
        raise ValueError(
            f"a fixed point is searched from a start of shape (samples, ...) with at least one number a sample; got "
            f"{tuple(start.shape)}."
        )
    if not start.is_floating_point():
        raise ValueError(f"a fixed point needs floating-point states; got {start.dtype}.")


def _check_map(fx: Tensor, start: Tensor) -> None:
    if fx.shape != start.shape or fx.dtype != start.dtype:
        raise ValueError(
            f"the map must return the shape and dtype of its state, {tuple(start.shape)} {start.dtype}; it returned "
            f"{tuple(fx.shape)} {fx.dtype}."
        )
