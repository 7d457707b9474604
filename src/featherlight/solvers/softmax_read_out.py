"""The softmax read-out of fixed features by a bound of its curvature, which is factored once.

The Hessian of the cross-entropy is at most X^T X / 2 for each class (Böhning 1992), so that steps with this bound never raise the
loss, and the factor that least squares keep serves for them.

Legend of shapes: N samples, F features, C classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class SoftmaxReadOut:
    """The outcome.

    Attributes:
        weights: (F, C), in the features' dtype.
        losses: regularised, at the start and after each step; they never rise.
        converged: whether the last step took less than the tolerance off the loss.
    """

    weights: Tensor
    losses: tuple[float, ...]
    converged: bool


def softmax_read_out(
    features_NF: Tensor,
    labels_N: Tensor,
    start_FC: Tensor,
    factor_FF: Tensor,
    *,
    ridge: float,
    max_steps: int = 20,
    tolerance: float = 1e-4,
) -> SoftmaxReadOut:
    """Lowers sum of cross-entropies + ridge |W|^2 / 2 from a start.

    Args:
        features_NF: a constant one among them is a bias.
        labels_N: classes as whole numbers.
        start_FC: weights to begin at.
        factor_FF: lower Cholesky factor of X^T X + 2 ridge, such as of `LeastSquares` with twice the ridge.
        ridge: at least 0.
        max_steps: passes over the features.
        tolerance: part of the loss below whose fall in a step it ends.

    Cost: a step takes two products of (N, F) with (F, C).
    """
    weights, momentum = start_FC, start_FC
    loss, gradient = loss_and_gradient(features_NF, labels_N, weights, ridge)
    losses, pace = [loss], 1.0
    for _ in range(max_steps):
        _, slope = (
            (loss, gradient) if momentum is weights else loss_and_gradient(features_NF, labels_N, momentum, ridge)
        )
        tried = momentum - 2 * torch.cholesky_solve(slope.double(), factor_FF).to(weights)
        new_loss, new_gradient = loss_and_gradient(features_NF, labels_N, tried, ridge)
        if new_loss > loss:
            if momentum is weights:
                break
            momentum, pace = weights, 1.0
            continue
        fall = (loss - new_loss) / max(abs(loss), 1e-300)
        next_pace = (1 + (1 + 4 * pace**2) ** 0.5) / 2
        momentum = tried + (pace - 1) / next_pace * (tried - weights)
        weights, loss, gradient, pace = tried, new_loss, new_gradient, next_pace
        losses.append(loss)
        if fall < tolerance:
            return SoftmaxReadOut(weights=weights, losses=tuple(losses), converged=True)
    return SoftmaxReadOut(weights=weights, losses=tuple(losses), converged=False)


def loss_and_gradient(features_NF: Tensor, labels_N: Tensor, weights_FC: Tensor, ridge: float) -> tuple[float, Tensor]:
    """Sum of cross-entropies + ridge |W|^2 / 2, and its gradient."""
    total, gradient = 0.0, ridge * weights_FC
    for x, labels in zip(features_NF.split(_CHUNK_ROWS), labels_N.split(_CHUNK_ROWS), strict=True):
        logs = (x @ weights_FC).log_softmax(1)
        total -= float(logs.gather(1, labels[:, None]).sum(dtype=torch.float64))
        pulled = logs.exp_()
        pulled.scatter_add_(1, labels[:, None], -torch.ones_like(pulled[:, :1]))
        gradient = gradient + x.mT @ pulled
    return total + ridge / 2 * float(weights_FC.double().square().sum()), gradient
