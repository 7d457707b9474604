"""Textbook updates of one vector, float64: x, g -> next x."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Batched = Callable[[Tensor], Tensor]


def soft_threshold_step(x: Tensor, g: Tensor, size: float, strength: float) -> Tensor:
    """ISTA, entry by entry."""
    after = []
    for value in (x - size * g).tolist():
        after.append(math.copysign(max(abs(value) - size * strength, 0.0), value))
    return torch.tensor(after, dtype=x.dtype)


def clamped_step(x: Tensor, g: Tensor, size: float, low: float, high: float) -> Tensor:
    """Projected gradient on a box."""
    return torch.tensor([min(max(value, low), high) for value in (x - size * g).tolist()], dtype=x.dtype)


def multiplied_step(x: Tensor, g: Tensor, size: float) -> Tensor:
    """Exponentiated gradient on the simplex."""
    weights = [value * math.exp(-size * slope) for value, slope in zip(x.tolist(), g.tolist(), strict=True)]
    return torch.tensor([weight / sum(weights) for weight in weights], dtype=x.dtype)


def signed_step(x: Tensor, g: Tensor, size: float) -> Tensor:
    """Sign descent."""
    return torch.tensor(
        [v - size * ((s > 0) - (s < 0)) for v, s in zip(x.tolist(), g.tolist(), strict=True)], dtype=x.dtype
    )


def scaled_step(x: Tensor, g: Tensor, size: float, radius: float) -> Tensor:
    """A gradient step of `size`, no longer than `radius`: a trust region, or a clipped gradient."""
    length = size * math.sqrt(sum(s * s for s in g.tolist()))
    return x - size * min(1.0, radius / length) * g


def backtracking_descent(
    value: Batched, gradient: Batched, x_BN: Tensor, target_B: Tensor, *, limit: int = 10**9
) -> Tensor:
    """Evaluations until each of B problems is below its target, by Armijo's rule with a factor of 1/2.

    Sizes start from the last one, doubled if that was taken at once.

    Args:
        value: of points (B, N), one number each.
        gradient: likewise.
        x_BN: where it starts, with a size of 1.
        target_B: values to be reached.
        limit: evaluations after which a problem is given up, which are then its result.
    """
    x, count = x_BN.clone(), torch.zeros(len(x_BN), dtype=torch.float64)
    reached = torch.full_like(count, torch.inf)
    size, doubled = torch.ones_like(count), torch.zeros_like(count, dtype=torch.bool)
    while bool((active := reached.isinf()).any()):
        at, slope = value(x), gradient(x)
        count += active
        size = torch.where(doubled, 2 * size, size)
        pending, doubled = active, torch.ones_like(doubled)
        while bool(pending.any()):
            low = value(x - size[:, None] * slope) <= at - 1e-4 * size * slope.square().sum(1) + 1e-15 * at.abs()
            count += pending
            pending = pending & ~low
            doubled = doubled & ~pending
            size = torch.where(pending, size / 2, size)
        x = torch.where(active[:, None], x - size[:, None] * slope, x)
        reached = torch.where(active & ((value(x) <= target_B) | (count >= limit)), count, reached)
    return reached
