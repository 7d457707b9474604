"""Bad input to convex updates gets a sentence, and leaves everything as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featherlight.objective import NonFiniteLossError
from featherlight.optim.learned import (
    AdaptiveSteps,
    ConvexRule,
    ConvexUpdate,
    DiagonalSteps,
    FullSteps,
    KroneckerSteps,
    L1Penalty,
    MirrorSteps,
    Momentum,
    PastTerms,
    PointIn,
    ScalarSteps,
    StepIn,
    sgd,
)
from featherlight.solvers.convex import AffineEquality, Box, L1Ball, L2Ball
from tests.unit.optim.problems import bits_of, make_model, make_objective

TWO = torch.tensor([[1.0, 0.0], [0.0, -0.5]])
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "indefinite": (
        lambda: FullSteps.from_inverse([TWO]),
        "the inverse metric is indefinite: its smallest eigenvalue is -0.5",
    ),
    "asymmetric": (lambda: FullSteps.from_inverse([torch.ones(2, 3)]), "must be a symmetric matrix"),
    "size": (lambda: ScalarSteps(-0.1), "`sizes` must be finite and positive, .* indefinite .*; got -0.1"),
    "sizes": (lambda: DiagonalSteps([torch.tensor([1.0, 0.0, -1.0])]), "got 0.0 and 1 more such"),
    "factor": (lambda: KroneckerSteps([torch.ones(2, 3)], [None]), "must be finite square matrices"),
    "eps": (lambda: AdaptiveSteps(eps=0.0), "`eps` must be finite and positive"),
    "beta": (lambda: Momentum(1.0), r"`beta` must be in \[0, 1\)"),
    "past": (lambda: PastTerms(step_weights=(float("nan"),)), "weights of past terms must be finite"),
    "no set": (lambda: PointIn(), "give one constraint for all tensors"),
    "empty box": (lambda: PointIn(Box(1.0, 0.0)), "the box is empty"),
    "joint rows": (lambda: StepIn(L2Ball(1.0), rows=True, jointly=True), "`jointly` takes a single set"),
    "strength": (lambda: L1Penalty(-1.0), "`strength` must be"),
    "step and penalty": (
        lambda: ConvexRule(constraint=StepIn(L2Ball(1.0)), prox=L1Penalty(1.0)),
        "a penalty is on the point and StepIn on the step",
    ),
    "mirror": (lambda: ConvexRule(MirrorSteps(), PastTerms()), "MirrorSteps goes with"),
    "rule and parts": (
        lambda: ConvexUpdate([nn.Parameter(torch.zeros(2))], sgd(0.1), metric=ScalarSteps(0.1)),
        "a `rule` or parts of one, not both",
    ),
    "class": (
        lambda: ConvexUpdate([nn.Parameter(torch.zeros(2))], metric=DiagonalSteps([torch.ones(3)])),
        r"made for tensors of shapes \[\(3,\)\], but is handed shapes \[\(2,\)\]",
    ),
    "number of tensors": (
        lambda: ConvexUpdate([nn.Parameter(torch.zeros(2))], metric=ScalarSteps([0.1, 0.2])),
        "has 2 step sizes, one for each tensor of its class, but is handed 1",
    ),
    "lr": (lambda: ConvexUpdate([nn.Parameter(torch.zeros(2))], sgd(0.1), lr=-1.0), "`lr` must be"),
}


@pytest.mark.parametrize(("make", "sentence"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_when_it_is_made(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


INFEASIBLE = {
    "box": PointIn(Box(torch.ones(24), torch.zeros(24)), None, None, None),
    "equations": PointIn(AffineEquality(torch.ones(2, 24), torch.tensor([0.0, 1.0])), None, None, None),
}
AT_THE_STEP: dict[str, tuple[dict[str, Any], str]] = {
    **{
        name: (
            {"constraint": one, "metric": ScalarSteps(0.1)},
            r"step of tensor 0, shape \(6, 4\), has no solution: infeasible",
        )
        for name, one in INFEASIBLE.items()
    },
    "too far": ({"constraint": PointIn(Box(-1.0, 1.0)), "lr": 2.0}, "`lr` must be at most 1 under PointIn"),
    "no kernel": (
        {
            "constraint": StepIn(L1Ball(0.1), rows=True),
            "metric": KroneckerSteps.constant(list(make_model().parameters())),
        },
        "`rows` of a constraint need step sizes",
    ),
    "not finite": ({"metric": ScalarSteps(1e300), "safeguard": None}, "the rule's step is not finite although"),
}


@pytest.mark.parametrize(("options", "sentence"), AT_THE_STEP.values(), ids=AT_THE_STEP)
def test_a_step_that_cannot_be_made_leaves_the_weights_alone(options: dict[str, Any], sentence: str) -> None:
    model = make_model()
    before = bits_of(model)
    with pytest.raises(ValueError, match=sentence):
        ConvexUpdate(model.parameters(), **options).step(make_objective(model))
    assert bits_of(model) == before


def test_parameters_that_are_all_frozen_are_refused() -> None:
    with pytest.raises(ValueError, match="none of the parameters requires a gradient, so there is nothing to move"):
        ConvexUpdate([torch.zeros(3)])


class Broken:
    """An Objective whose loss or gradient is not a number."""

    def __init__(self, x: nn.Parameter, loss: float, slope: float) -> None:
        self.x, self.loss, self.slope = x, loss, slope

    def __call__(self) -> Tensor:
        self.x.grad = torch.full_like(self.x, self.slope)
        return self.value()

    def value(self) -> Tensor:
        return torch.tensor(self.loss)

    def values(self) -> Tensor:
        return self.value()[None]


@pytest.mark.parametrize(
    ("loss", "slope", "sentence"),
    [
        (float("nan"), 1.0, "the loss is nan, so no step was taken"),
        (1.0, float("nan"), r"the gradient of a parameter of shape \(2,\) is not finite"),
    ],
)
def test_what_is_no_number_is_named_and_no_step_taken(loss: float, slope: float, sentence: str) -> None:
    x = nn.Parameter(torch.ones(2))
    optimizer = ConvexUpdate([x], sgd(0.1, momentum=0.9))
    with pytest.raises(NonFiniteLossError, match=sentence):
        optimizer.step(Broken(x, loss, slope))
    assert torch.equal(x.detach(), torch.ones(2))
    assert not optimizer.state[x]


def test_a_state_of_another_rule_is_refused() -> None:
    model = make_model()
    one = ConvexUpdate(model.parameters(), sgd(0.01, momentum=0.9))
    one.step(make_objective(model))
    other = ConvexUpdate(model.parameters(), metric=AdaptiveSteps(), memory=PastTerms())
    other.load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="the state that was loaded is of another rule"):
        other.step(make_objective(model))
