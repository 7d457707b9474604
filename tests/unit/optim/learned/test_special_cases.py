"""Known methods are special cases of the convex rule."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featherlight.optim.learned import (
    ConvexRule,
    ConvexUpdate,
    DiagonalSteps,
    FullSteps,
    KroneckerSteps,
    PastTerms,
    adagrad,
    adam,
    clipped_gradient,
    exponentiated_gradient,
    ista,
    projected_gradient,
    rmsprop,
    sgd,
    sign_descent,
    trust_region,
)
from featherlight.solvers.convex import Box
from tests.oracles import first_order_methods as oracle
from tests.unit.optim.problems import make_model, make_objective

OF_TORCH: dict[str, tuple[ConvexRule, Callable[..., Any], float]] = {
    "SGD": (sgd(0.05), lambda p, **k: torch.optim.SGD(p, lr=0.05, **k), 0.1),
    "momentum": (sgd(0.02, momentum=0.9), lambda p, **k: torch.optim.SGD(p, lr=0.02, momentum=0.9, **k), 0.1),
    "Nesterov": (
        sgd(0.02, momentum=0.9, nesterov=True),
        lambda p, **k: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, **k),
        0.1,
    ),
    "Adagrad": (adagrad(0.05), lambda p, **k: torch.optim.Adagrad(p, lr=0.05, **k), 0.1),
    "RMSprop": (rmsprop(0.01), lambda p, **k: torch.optim.RMSprop(p, lr=0.01, **k), 0.1),
    "RMSprop with momentum": (
        rmsprop(0.003, momentum=0.5),
        lambda p, **k: torch.optim.RMSprop(p, lr=0.003, momentum=0.5, **k),
        0.0,
    ),
    "Adam": (adam(0.02), lambda p, **k: torch.optim.Adam(p, lr=0.02, **k), 0.1),
}


@pytest.mark.parametrize(("rule", "of_torch", "decay"), OF_TORCH.values(), ids=OF_TORCH)
def test_torchs_own_optimizers_are_reproduced(rule: ConvexRule, of_torch: Callable[..., Any], decay: float) -> None:
    ours, theirs = make_model(dtype=torch.float64), make_model(dtype=torch.float64)
    mine = ConvexUpdate(ours.parameters(), rule, weight_decay=decay, safeguard=None)
    other = of_torch(theirs.parameters(), weight_decay=decay)
    for step in range(100):
        mine.step(make_objective(ours, step % 3))
        other.step(make_objective(theirs, step % 3))
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


class Quadratic:
    """An Objective over one vector, `sum a (x - b)^2 / 2`, that counts its evaluations."""

    def __init__(self, x: nn.Parameter, curvature: Tensor, centre: Tensor) -> None:
        self.x, self.curvature, self.centre, self.evaluations = x, curvature, centre, 0

    def gradient(self) -> Tensor:
        return self.curvature * (self.x.detach() - self.centre)

    def __call__(self) -> Tensor:
        self.x.grad = self.gradient()
        return self.value()

    def value(self) -> Tensor:
        self.evaluations += 1
        return 0.5 * (self.curvature * (self.x.detach() - self.centre).square()).sum()

    def values(self) -> Tensor:
        return self.value()[None]


OF_OURS: dict[str, tuple[ConvexRule, Callable[[Tensor, Tensor], Tensor]]] = {
    "ISTA": (ista(0.1, 0.5), lambda x, g: oracle.soft_threshold_step(x, g, 0.1, 0.5)),
    "projected gradient": (
        projected_gradient(0.1, Box(-0.1, 0.3)),
        lambda x, g: oracle.clamped_step(x, g, 0.1, -0.1, 0.3),
    ),
    "exponentiated gradient": (exponentiated_gradient(0.3), lambda x, g: oracle.multiplied_step(x, g, 0.3)),
    "sign descent": (sign_descent(0.01), lambda x, g: oracle.signed_step(x, g, 0.01)),
    "trust region": (trust_region(0.05, 0.2), lambda x, g: oracle.scaled_step(x, g, 0.2, 0.05)),
    "normalized gradient": (trust_region(0.05), lambda x, g: oracle.scaled_step(x, g, 1e30, 0.05)),
    "clipping": (clipped_gradient(0.1, 0.7), lambda x, g: oracle.scaled_step(x, g, 0.1, 0.07)),
}


@pytest.mark.parametrize(("rule", "next_point"), OF_OURS.values(), ids=OF_OURS)
def test_textbook_methods_are_reproduced(rule: ConvexRule, next_point: Callable[[Tensor, Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(6, dtype=torch.float64, generator=generator)
    x = nn.Parameter(start / start.sum())
    curvature = torch.linspace(0.2, 3, 6, dtype=torch.float64)
    objective = Quadratic(x, curvature, torch.randn(6, dtype=torch.float64, generator=generator))
    optimizer = ConvexUpdate([x], rule, safeguard=None)
    for _ in range(100):
        expected = next_point(x.detach().clone(), objective.gradient())
        optimizer.step(objective)
        torch.testing.assert_close(x.detach(), expected, rtol=1e-12, atol=1e-12)


def test_clipping_is_over_all_parameters_as_torchs() -> None:
    ours, theirs = make_model(dtype=torch.float64), make_model(dtype=torch.float64)
    mine = ConvexUpdate(ours.parameters(), clipped_gradient(0.05, 0.3), safeguard=None)
    other = torch.optim.SGD(theirs.parameters(), lr=0.05)
    for step in range(20):
        mine.step(make_objective(ours, step))
        other.zero_grad()
        make_objective(theirs, step)()
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.3)
        other.step()
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)  # torch adds 1e-6 to the norm


@pytest.mark.parametrize("metric", [KroneckerSteps, FullSteps, DiagonalSteps])
def test_weights_of_half_precision_are_trained_with_a_wider_state(metric: Any) -> None:
    model = make_model(dtype=torch.bfloat16)
    rule = ConvexRule(metric.constant(list(model.parameters()), 0.1), PastTerms(step_weights=(0.5,)))
    optimizer = ConvexUpdate(model.parameters(), rule)
    before = float(make_objective(model).value())
    for _ in range(20):
        optimizer.step(make_objective(model))
    assert float(make_objective(model).value()) < 0.7 * before
    state = optimizer.state_dict()["state"][0]["rule"]
    assert {one.dtype for one in state if one.is_floating_point()} == {torch.float32}
