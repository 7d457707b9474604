"""Rules are pure functions: a batch of tasks gives what single tasks give, and what they learn has the right gradient."""

import pytest
import torch
from torch import Tensor

from featherlight.optim.learned import (
    AdaptiveSteps,
    ConvexRule,
    DiagonalSteps,
    FullSteps,
    KroneckerSteps,
    L1Penalty,
    Momentum,
    MovingAverage,
    PastTerms,
    PointIn,
    ScalarSteps,
    StepIn,
    exponentiated_gradient,
    trust_region,
)
from featherlight.solvers.convex import Box, L2Ball, Simplex

NUM_TASKS = 3
POINTS = (torch.full((2, 3), 1 / 3, dtype=torch.float64), torch.full((4,), 0.25, dtype=torch.float64))
RULES = {
    "diagonal": ConvexRule(DiagonalSteps.constant(POINTS, 0.2), Momentum(0.5, nesterov=True)),
    "adaptive": ConvexRule(AdaptiveSteps(ScalarSteps([0.1, 0.2]), decay=0.8), MovingAverage(0.5)),
    "Kronecker, past": ConvexRule(
        KroneckerSteps.constant(POINTS, 0.2), PastTerms(gradient_weights=(0.2,), step_weights=(0.3, -0.1))
    ),
    "full in a simplex, past": ConvexRule(
        FullSteps.constant(POINTS, 0.2), PastTerms(step_weights=(0.3,)), constraint=PointIn(Box(-1.0, 0.4), Simplex())
    ),
    "Kronecker in balls": ConvexRule(KroneckerSteps.constant(POINTS, 0.5), constraint=StepIn(L2Ball(0.1))),
    "penalty in a box": ConvexRule(ScalarSteps(0.3), constraint=PointIn(Box(-0.2, 0.3)), prox=L1Penalty(0.1)),
    "rows": ConvexRule(DiagonalSteps.constant(POINTS, 0.3), constraint=PointIn(Simplex(), rows=True)),
    "trust region": trust_region(0.2, 0.4),
    "mirror": exponentiated_gradient(0.5),
}


def unrolled(rule: ConvexRule, target: Tensor, steps: int = 3) -> Tensor:
    """The loss of one task after a few steps."""
    points, state = POINTS, rule.init(POINTS)
    for _ in range(steps):
        gradients = tuple((1 + n) * (p - target[n]) for n, p in enumerate(points))
        moves, state = rule.update(gradients, state, points)
        points = tuple(p + move for p, move in zip(points, moves, strict=True))
    return sum((p - target[n]).cosh().sum() for n, p in enumerate(points))  # pyright: ignore


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_batches_and_gradients(rule: ConvexRule) -> None:
    targets = torch.randn(NUM_TASKS, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = torch.func.vmap(lambda target: unrolled(rule, target))(targets)
    apart = torch.stack([unrolled(rule, target) for target in targets])
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)
    learned = [p for p in rule.parameters() if p.dtype == torch.float64]
    gradients = torch.autograd.grad(together.sum(), learned, allow_unused=True)
    for parameter, gradient in zip(learned, gradients, strict=True):
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        sides = []
        for sign in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign)
                sides.append(sum(float(unrolled(rule, target)) for target in targets))
                parameter.sub_(direction, alpha=sign)
        slope = 0.0 if gradient is None else float((gradient * direction).sum())
        assert slope == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-4, abs=1e-6)
