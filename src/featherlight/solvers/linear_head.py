"""The best linear map from fixed features to labels: multinomial logistic regression, or ridge for numbers.

Features are kept as they are handed over, and read in chunks of a fixed number of rows that are centred in float64. What
is held besides them is a few matrices of D x D and N x C.

Legend of shapes: N rows, D features, C classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_CHUNK_ROWS = 512
_MAX_PASSES = 200
_MAX_INNER_STEPS = 50
_MAX_HALVINGS = 30
_TOLERANCE = 1e-6
_TINY = 1e-300


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """A fitted head.

    Attributes:
        weight: (C, D) float64.
        bias: (C,) float64.
        penalty: the chosen regularisation, relative to the mean variance of a feature.
        held_out_loss: mean loss on the held-out rows.
        converged: whether the solver met its tolerance for the chosen penalty.
    """

    weight: Float[Tensor, "C D"]
    bias: Float[Tensor, "C"]
    penalty: float
    held_out_loss: float
    converged: bool


def fit_regression(
    train_x: Float[Tensor, "N D"],
    train_y: Float[Tensor, "N"],
    held_x: Tensor,
    held_y: Tensor,
    *,
    intercept: bool = True,
) -> LinearHead:
    """Ridge regression for each penalty from one eigendecomposition; the best on held-out rows is returned.

    Raises:
        ValueError: a feature is not finite.
    """
    rows = _Rows(train_x, intercept)
    y = train_y.double()[:, None]
    center_y = y.mean(0) if intercept else torch.zeros(1, dtype=torch.float64)
    values, vectors = rows.spectrum()
    moments = vectors.T @ sum(x.T @ (y[part] - center_y) for part, x in rows.chunks()) / len(y)
    best: LinearHead | None = None
    for penalty in PENALTIES:
        weight = (vectors @ (moments / (values + penalty * values.mean() + _TINY)[:, None])).T
        bias = center_y - weight @ rows.center
        loss = float((_outputs(held_x, weight, bias) - held_y.double()[:, None]).square().mean())
        if best is None or loss < best.held_out_loss:
            best = LinearHead(weight=weight, bias=bias, penalty=penalty, held_out_loss=loss, converged=True)
    assert best is not None
    return best


def fit_classifier(
    train_x: Float[Tensor, "N D"],
    train_y: Int[Tensor, "N"],
    held_x: Tensor,
    held_y: Tensor,
    *,
    num_classes: int,
    intercept: bool = True,
) -> LinearHead:
    """Multinomial logistic regression for each penalty, warm-started along the path; the best on held-out rows.

    Newton's method, each step found by conjugate gradients in the coordinates of the features' covariance, in which
    the curvature is nearly diagonal. A penalty whose loss on held-out rows rises ends the path. A pass over the rows
    costs two products of (N, D) by (D, C); a penalty takes some tens of passes, at most about 250.

    Raises:
        ValueError: a feature is not finite.
    """
    rows = _Rows(train_x, intercept)
    values, vectors = rows.spectrum()
    weight = torch.zeros(num_classes, train_x.shape[1], dtype=torch.float64)
    bias = torch.zeros(num_classes, dtype=torch.float64)
    if intercept:
        bias = (torch.bincount(train_y, minlength=num_classes).double() / len(train_y) + 1e-6).log()
    best: LinearHead | None = None
    for penalty in PENALTIES:
        problem = _Logistic(rows, train_y, values, vectors, penalty * values.mean() + _TINY)
        start = torch.cat((weight @ vectors / problem.scale, bias[:, None]), 1)
        found, converged = _minimize(problem, start)
        weight, bias = problem.original(found)
        moved = bias - weight @ rows.center
        loss = float(torch.nn.functional.cross_entropy(_outputs(held_x, weight, moved), held_y))
        if best is not None and loss > 1.02 * best.held_out_loss:
            break
        if best is None or loss < best.held_out_loss:
            best = LinearHead(weight=weight, bias=moved, penalty=penalty, held_out_loss=loss, converged=converged)
    assert best is not None
    return best


class _Rows:
    """Features, handed out centred and in float64, a chunk at a time; only centred where there is an intercept."""

    def __init__(self, x: Float[Tensor, "N D"], intercept: bool) -> None:
        self.x = x
        self.intercept = intercept
        self._room = torch.empty(min(len(x), _CHUNK_ROWS), x.shape[1], dtype=torch.float64)
        self.center = torch.zeros(x.shape[1], dtype=torch.float64)
        if intercept:
            self.center = sum((x[part].double().sum(0) for part in self._parts()), self.center) / len(x)

    def _parts(self) -> Iterator[slice]:
        return (slice(start, start + _CHUNK_ROWS) for start in range(0, len(self.x), _CHUNK_ROWS))

    def chunks(self) -> Iterator[tuple[slice, Float[Tensor, "N D"]]]:
        """Each part of the rows with its features, which the next one overwrites."""
        for part in self._parts():
            x = self.x[part]
            yield part, torch.sub(x, self.center, out=self._room[: len(x)])

    def spectrum(self) -> tuple[Float[Tensor, "D"], Float[Tensor, "D D"]]:
        """Eigenvalues, at least 0, and eigenvectors of the covariance."""
        covariance = torch.zeros(2 * self.x.shape[1:], dtype=torch.float64)
        for _, x in self.chunks():
            covariance.addmm_(x.T, x)
        covariance /= len(self.x)
        if not torch.isfinite(covariance).all():
            raise ValueError(
                "the model's features hold values that are not finite (nan or inf), so no head can be fitted to them. "
                "Look at the base model's weights and dtype, or leave the fit out with `--no-head-start`."
            )
        values, vectors = torch.linalg.eigh(covariance)
        return values.clamp(min=0), vectors


class _Logistic:
    """The penalised mean cross-entropy and its derivatives at parameters (C, D + 1), the last column being the bias.

    The parameters are coordinates along the eigenvectors of the features' covariance, in units in which variance and
    penalty add up to 1.
    """

    def __init__(self, rows: _Rows, y: Int[Tensor, "N"], values: Tensor, vectors: Tensor, strength: Tensor) -> None:
        self.rows = rows
        self.y = y
        self.scale = (values + strength).rsqrt()
        self.axes = vectors * self.scale
        self.variance = torch.cat((values * self.scale**2, torch.ones(1, dtype=torch.float64)))
        self.ridge = torch.cat((strength * self.scale**2, torch.zeros(1, dtype=torch.float64)))
        self.passes = 0
        self._probabilities = torch.empty(0)

    def original(self, parameters: Tensor) -> tuple[Float[Tensor, "C D"], Float[Tensor, "C"]]:
        """Weight and bias for centred features."""
        return parameters[:, :-1] @ self.axes.T, parameters[:, -1]

    def value_and_gradient(self, parameters: Tensor) -> tuple[float, Tensor]:
        """The loss and its gradient; the curvature asked for next is the one here."""
        weight, bias = self.original(parameters)
        loss, gradient = torch.zeros((), dtype=torch.float64), torch.zeros_like(weight)
        of_bias = torch.zeros_like(bias)
        self.passes += 1
        self._probabilities = torch.empty(len(self.y), len(bias))
        for part, x in self.rows.chunks():
            logs = (x @ weight.T + bias).log_softmax(1)
            loss -= logs.gather(1, self.y[part, None]).sum()
            errors = logs.exp_()
            self._probabilities[part] = errors.to(self._probabilities)
            errors.scatter_add_(1, self.y[part, None], -torch.ones(len(x), 1, dtype=torch.float64))
            gradient.addmm_(errors.T, x)
            of_bias += errors.sum(0)
        penalty = 0.5 * (parameters.square() * self.ridge).sum()
        return float(loss / len(self.y) + penalty), self._coordinates(gradient, of_bias) + self.ridge * parameters

    def curvature(self, direction: Tensor) -> Tensor:
        """The Hessian at the last point times a direction; its probabilities are of float32, which steps can bear."""
        weight, bias = self.original(direction)
        result, of_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        self.passes += 1
        for part, x in self.rows.chunks():
            p = self._probabilities[part].double()
            change = x @ weight.T + bias
            change = p * (change - (p * change).sum(1, keepdim=True) / p.sum(1, keepdim=True))
            result.addmm_(change.T, x)
            of_bias += change.sum(0)
        return self._coordinates(result, of_bias) + self.ridge * direction

    def diagonal(self) -> Tensor:
        """About the diagonal of the Hessian."""
        total = torch.zeros(self._probabilities.shape[1], dtype=torch.float64)
        for p in self._probabilities.split(_CHUNK_ROWS):
            total += (p * (1 - p)).double().sum(0)
        return (total / len(self.y) + 1e-12)[:, None] * self.variance + self.ridge

    def _coordinates(self, of_weight: Tensor, of_bias: Tensor) -> Tensor:
        of_bias = of_bias if self.rows.intercept else torch.zeros_like(of_bias)
        return torch.cat((of_weight @ self.axes, of_bias[:, None]), 1) / len(self.y)


def _minimize(problem: _Logistic, start: Tensor) -> tuple[Tensor, bool]:
    """The minimum, and whether the gradient there, measured by the curvature, is below the tolerance.

    The loss is then within half the square of the tolerance of the least one.
    """
    point = start
    value, gradient = problem.value_and_gradient(point)
    while True:
        diagonal = problem.diagonal()
        size = float((gradient.square() / diagonal).sum().sqrt())
        if size < _TOLERANCE:
            return point, True
        if problem.passes >= _MAX_PASSES:
            return point, False
        step = _newton_step(problem, gradient, diagonal, min(0.3, size**0.5))
        slope = float((gradient * step).sum())
        for halving in range(_MAX_HALVINGS):
            tried = point + 0.5**halving * step
            new_value, new_gradient = problem.value_and_gradient(tried)
            if new_value <= value + 1e-4 * 0.5**halving * slope + 1e-15 * abs(value):
                break
        else:
            return point, False
        point, value, gradient = tried, new_value, new_gradient


def _newton_step(problem: _Logistic, gradient: Tensor, diagonal: Tensor, accuracy: float) -> Tensor:
    """Minus the inverse Hessian times the gradient, by preconditioned conjugate gradients to a relative accuracy.

    A constant added to all biases changes no probability, so that part of the step is left out.
    """
    step, residual = torch.zeros_like(gradient), -gradient
    scaled = residual / diagonal
    direction, product = scaled, float((residual * scaled).sum())
    goal = accuracy**2 * product
    for _ in range(_MAX_INNER_STEPS):
        bent = problem.curvature(direction)
        curvature = float((direction * bent).sum())
        if curvature <= 0:
            break
        step = step + product / curvature * direction
        residual = residual - product / curvature * bent
        scaled = residual / diagonal
        before, product = product, float((residual * scaled).sum())
        if product <= goal:
            break
        direction = scaled + product / before * direction
    step[:, -1] -= step[:, -1].mean()
    return step


def _outputs(x: Float[Tensor, "N D"], weight: Tensor, bias: Tensor) -> Float[Tensor, "N C"]:
    return torch.cat([part.double() @ weight.T + bias for part in x.split(_CHUNK_ROWS)])
