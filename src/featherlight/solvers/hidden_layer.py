"""One hidden layer beside features that are there already: the weights by Levenberg and Marquardt, the read-out eliminated.

The problem is the minimum over W, V of |T - X V_1 - phi(X W^T) V_2|^2 + ridge |V|^2 + decay |W|^2. For each W the best V is known
(`LeastSquares`), so that only W is searched for, by steps of the variable projection method in Kaufman's form: the Jacobian is
that of the hidden layer with what the features explain taken out.

Legend of shapes: N rows, M rows that the curvature is of, E features, H hidden units, Y targets, R of random candidates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from featherlight.solvers.incremental_least_squares import LeastSquares, products

_MOST_COUPLED = 1200
"""H E up to which the curvature couples the hidden units; beyond it each has its own."""
_MOST_DOUBLES = 500_000
"""Numbers of a Jacobian up to which the curvature is computed in float64; a rougher one costs a few steps."""
_LEAST_DAMPING, _MOST_DAMPING = 1e-9, 1e9


class HiddenStatus(IntEnum):
    """How the search for a hidden layer ended."""

    CONVERGED = 0
    """The loss fell by less than `tolerance` of itself in a step."""
    STEPS_EXHAUSTED = 1
    """It still fell after `max_steps`."""
    NO_DESCENT = 2
    """No damping gives a lower loss, up to rounding."""


@dataclass(frozen=True, kw_only=True)
class HiddenLayer:
    """The outcome of a search.

    Attributes:
        weights: (H, E), float64.
        units: (N, H), float64, phi(X W^T).
        read_out: the least squares of features and units together.
        loss: at the end, the terms of ridge and decay included.
        losses: after each step, from the start on; they never rise.
        status: how it ended.
    """

    weights: Tensor
    units: Tensor
    read_out: LeastSquares
    loss: float
    losses: tuple[float, ...]
    status: HiddenStatus


@dataclass(frozen=True, kw_only=True)
class VariableProjection:
    """How a hidden layer is searched for.

    Args:
        decay: on the squares of the hidden weights.
        max_steps: evaluations of the loss.
        tolerance: part of the loss below whose fall in a step the search ends.
        curvature_rows: the most rows that the curvature is computed of; the loss and its gradient are always of all.

    Source: Golub and Pereyra 1973; Kaufman 1975.
    """

    decay: float = 1e-4
    max_steps: int = 50
    tolerance: float = 1e-4
    curvature_rows: int = 4096

    def __post_init__(self) -> None:
        if self.max_steps < 1 or self.curvature_rows < 1:
            raise ValueError(
                f"`max_steps` and `curvature_rows` must be at least 1; got {self.max_steps} and {self.curvature_rows}."
            )
        if not (0 <= self.decay < float("inf") and 0 <= self.tolerance < 1):
            raise ValueError(
                f"`decay` must be finite and at least 0 and `tolerance` in [0, 1); got {self.decay} and {self.tolerance}."
            )

    def __call__(
        self,
        features_NE: Tensor,
        targets_NY: Tensor,
        read_out: LeastSquares,
        start_HE: Tensor,
        phi: Callable[[Tensor], Tensor],
        slope: Callable[[Tensor], Tensor],
    ) -> HiddenLayer:
        """Searches from `start_HE`.

        Args:
            features_NE: X, float64.
            targets_NY: T, float64.
            read_out: the least squares of `features_NE` alone.
            start_HE: hidden weights to begin at.
            phi: the activation.
            slope: its derivative as a function of its value.

        Cost a step: 4 N H E, M (H E)^2 and (H E)^3 / 3; beyond H E = 1200 the last two are M H E^2 and H E^3 / 3.
        """
        problem = _Problem(features_NE, targets_NY, read_out, phi, slope, self)
        point, losses, damping = problem.at(start_HE), [], 1e-2
        losses.append(point.loss)
        local: tuple[Tensor, Tensor] | None = None
        status = HiddenStatus.STEPS_EXHAUSTED
        growth = 4.0
        for _ in range(self.max_steps):
            if point.loss == float("inf"):
                status = HiddenStatus.NO_DESCENT
                break
            if local is None:
                local = problem.curvature(point), problem.gradient(point)
            step = _solve(*local, damping, self.decay)
            tried = problem.at(point.weights - step)
            if tried.loss < point.loss:
                fall = (point.loss - tried.loss) / point.loss
                point, local = tried, None
                losses.append(point.loss)
                damping, growth = max(damping / 5, _LEAST_DAMPING), 4.0
                if fall < self.tolerance:
                    status = HiddenStatus.CONVERGED
                    break
                continue
            damping, growth = damping * growth, 2 * growth
            if damping > _MOST_DAMPING:
                status = HiddenStatus.NO_DESCENT
                break
        return HiddenLayer(
            weights=point.weights,
            units=point.units,
            read_out=point.read_out,
            loss=point.loss,
            losses=tuple(losses),
            status=status,
        )


def promising_units(
    features_NE: Tensor,
    residual_NY: Tensor,
    read_out: LeastSquares,
    candidates_RE: Tensor,
    count: int,
    phi: Callable[[Tensor], Tensor],
    *,
    row_weight: float = 1.0,
) -> Tensor:
    """The candidates that explain most of a residual, one after the other, each with what earlier ones explain taken out.

    Args:
        features_NE: X.
        residual_NY: what the features leave.
        read_out: the least squares of `features_NE`.
        candidates_RE: weights of random hidden units.
        count: how many are chosen, at most R.
        phi: the activation.
        row_weight: for how many rows of those that `read_out` is of each of these stands.

    Returns:
        (count, E), of `candidates_RE`.

    Cost: N R (E + Y) and count R^2.
    """
    units = phi(features_NE @ candidates_RE.mT)
    cross, gram, onto = (row_weight * one for one in products(features_NE, units, residual_NY))
    below = torch.linalg.solve_triangular(read_out.factor, cross, upper=False)
    size = gram.diagonal().clone() + read_out.ridge
    gram = gram - below.mT @ below
    gram.diagonal().add_(read_out.ridge)
    chosen: list[int] = []
    for _ in range(count):
        left = gram.diagonal().clamp(min=0)
        score = onto.square().sum(1) / left
        score[left < 1e-8 * size] = -1
        score[chosen] = -2
        best = int(score.argmax())
        chosen.append(best)
        column = gram[:, best] / gram[best, best].clamp(min=1e-300)
        onto = onto - column[:, None] * onto[best]
        gram = gram - column[:, None] * gram[best]
    return candidates_RE[chosen]


@dataclass(frozen=True, kw_only=True)
class _Point:
    weights: Tensor
    units: Tensor
    read_out: LeastSquares
    loss: float


@dataclass(frozen=True)
class _Problem:
    features: Tensor
    targets: Tensor
    base: LeastSquares
    phi: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    how: VariableProjection

    def at(self, weights: Tensor) -> _Point:
        units = self.phi(self.features @ weights.mT)
        read_out = self.base.grown_or_none(*products(self.features, units, self.targets))
        if read_out is None:
            return _Point(weights=weights, units=units, read_out=self.base, loss=float("inf"))
        loss = max(read_out.minimum, 0.0) + self.how.decay * float(weights.square().sum())
        return _Point(weights=weights, units=units, read_out=read_out, loss=loss)

    def gradient(self, point: _Point) -> Tensor:
        """Half of it, (H, E)."""
        v = point.read_out.weights
        old, new = v[: self.features.shape[1]], v[self.features.shape[1] :]
        residual = self.targets - self.features @ old - point.units @ new
        pulled = residual @ new.mT * self.slope(point.units)
        return self.how.decay * point.weights - pulled.mT @ self.features

    def curvature(self, point: _Point) -> Tensor:
        """Half of Gauss and Newton's, without `decay`: (H E, H E), or (H, E, E) where hidden units are not coupled."""
        every = -(-len(self.features) // self.how.curvature_rows)
        size = self.features.shape[1]
        numbers = -(-len(self.features) // every) * size * point.units.shape[1]
        dtype = torch.float64 if numbers <= _MOST_DOUBLES else torch.float32
        features, units = self.features[::every].to(dtype), point.units[::every].to(dtype)
        slopes = self.slope(units)
        new = point.read_out.weights[size:].to(dtype)
        within = new @ new.mT
        x = torch.cat((features, units), 1)
        scale = len(self.features) / len(features)
        gram, tiny = (x.mT @ x).double(), 1e-12 if dtype == torch.float64 else 1e-6
        gram.diagonal().add_(point.read_out.ridge / scale + tiny * gram.diagonal())
        factor = torch.linalg.cholesky_ex(gram).L.to(dtype)
        if slopes.shape[1] * features.shape[1] > _MOST_COUPLED:
            each = [_left_over(x, factor, slope[:, None] * features) for slope in slopes.unbind(1)]
            return (scale * within.diagonal()[:, None, None] * torch.stack(each)).double()
        rows = (slopes[:, :, None] * features[:, None, :]).flatten(1)
        size_HH = within.repeat_interleave(size, 0).repeat_interleave(size, 1)
        return (scale * _left_over(x, factor, rows) * size_HH).double()


def _left_over(x: Tensor, factor: Tensor, rows: Tensor) -> Tensor:
    """rows^T rows, with what `x` explains of them taken out."""
    explained = torch.linalg.solve_triangular(factor, x.mT @ rows, upper=False)
    return rows.mT @ rows - explained.mT @ explained


def _solve(curvature: Tensor, gradient: Tensor, damping: float, decay: float) -> Tensor:
    """(curvature + damping of its diagonal + decay)^-1 gradient; a diagonal that is next to nothing is damped as well."""
    diagonal = curvature.diagonal(dim1=-2, dim2=-1).clamp(min=0)
    usual = float(diagonal.mean()) + 1e-300
    added = decay + damping * (diagonal + 1e-3 * usual) + 1e-12 * usual
    factor, _ = torch.linalg.cholesky_ex(curvature + torch.diag_embed(added))
    right = gradient if curvature.ndim == 3 else gradient.reshape(1, -1)
    return torch.cholesky_solve(right[..., None], factor)[..., 0].view(gradient.shape)
