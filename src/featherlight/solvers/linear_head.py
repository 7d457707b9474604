"""The best linear map from fixed features to labels: multinomial logistic regression, or ridge for numbers.

Legend of shapes: N rows, D features, C classes.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_MAX_ITERATIONS = 100
_TOLERANCE = 1e-5


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
    """Ridge regression for each penalty from one eigendecomposition; the best on held-out rows is returned."""
    x, y, center_x, center_y = _centered(train_x, train_y.double()[:, None], intercept)
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    moments = vectors.T @ (x.T @ y) / len(x)
    best: LinearHead | None = None
    for penalty in PENALTIES:
        weight = (vectors @ (moments / (values.clamp(min=0) + penalty * values.mean())[:, None])).T
        bias = center_y - weight @ center_x
        loss = float((held_x.double() @ weight.T + bias - held_y.double()[:, None]).square().mean())
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

    The features are whitened, which makes the curvature nearly the same in all directions, so that a few dozen
    quasi-Newton steps do. A penalty whose loss on held-out rows rises ends the path.
    """
    one_hot = torch.nn.functional.one_hot(train_y, num_classes).double()
    x, _, center, _ = _centered(train_x, one_hot, intercept)
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    values = values.clamp(min=1e-10 * float(values.max()) + 1e-300)
    scale = values.rsqrt()
    white = x @ (vectors * scale)
    start = torch.zeros(num_classes, white.shape[1] + 1, dtype=torch.float64)
    if intercept:
        start[:, -1] = (one_hot.mean(0) + 1e-6).log()
    best: LinearHead | None = None
    for penalty in PENALTIES:
        start, converged = _logistic(white, train_y, penalty * values.mean() / values, start, intercept)
        weight = start[:, :-1] @ (vectors * scale).T
        bias = start[:, -1] - weight @ center
        loss = float(torch.nn.functional.cross_entropy(held_x.double() @ weight.T + bias, held_y))
        if best is not None and loss > 1.02 * best.held_out_loss:
            break
        if best is None or loss < best.held_out_loss:
            best = LinearHead(weight=weight, bias=bias, penalty=penalty, held_out_loss=loss, converged=converged)
    assert best is not None
    return best


def _logistic(white: Tensor, y: Tensor, ridge: Tensor, start: Tensor, intercept: bool) -> tuple[Tensor, bool]:
    parameters = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=_MAX_ITERATIONS,
        tolerance_grad=_TOLERANCE,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        weight, bias = parameters[:, :-1], parameters[:, -1]
        logits = white @ weight.T + bias if intercept else white @ weight.T
        loss = torch.nn.functional.cross_entropy(logits, y) + 0.5 * (weight.square() * ridge).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
        closure()
    assert parameters.grad is not None
    return parameters.detach(), float(parameters.grad.abs().max()) < 100 * _TOLERANCE


def _centered(x: Tensor, y: Tensor, intercept: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = x.double()
    if not intercept:
        return x, y, torch.zeros_like(x[0]), torch.zeros_like(y[0])
    center_x, center_y = x.mean(0), y.mean(0)
    return x - center_x, y - center_y, center_x, center_y
