"""A saved rule is the same rule again, and is refused for other problems."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
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
    load_rule,
    save_rule,
    trust_region,
)
from featherlight.solvers.convex import Box, L2Ball

POINTS = (torch.full((3, 4), 0.25, dtype=torch.float64), torch.full((4,), 0.25, dtype=torch.float64))
RULES = {
    "adaptive": ConvexRule(
        AdaptiveSteps(DiagonalSteps.constant(POINTS, 0.1), decay=0.9), PastTerms(gradient_weights=(0.3,))
    ),
    "sums": ConvexRule(AdaptiveSteps(decay=None), Momentum(0.3, nesterov=True)),
    "Kronecker": ConvexRule(KroneckerSteps.constant(POINTS, 0.2, largest=3), MovingAverage(corrected=False)),
    "full, in a box": ConvexRule(
        FullSteps.constant(POINTS, 0.2), constraint=PointIn(Box(torch.zeros(12), torch.ones(12)), None)
    ),
    "sizes, penalty": ConvexRule(ScalarSteps([0.1, 0.2]), constraint=PointIn(Box(-1.0, 1.0)), prox=L1Penalty(0.3)),
    "trust region": trust_region(0.1),
    "rows": ConvexRule(constraint=StepIn(L2Ball(0.1), None, rows=True)),
    "a radius for each row": ConvexRule(constraint=StepIn(L2Ball(torch.tensor([0.1, 0.2, 0.3])), None, rows=True)),
    "mirror": exponentiated_gradient(0.2),
}


def two_steps(rule: ConvexRule) -> tuple[Tensor, ...]:
    points, state = POINTS, rule.init(POINTS)
    for scale in (1.0, -0.4):
        gradients = tuple((scale * torch.arange(1.0, p.numel() + 1)).sin().to(p).reshape(p.shape) for p in points)
        steps, state = rule.update(gradients, state, points)
        points = tuple(p + s for p, s in zip(points, steps, strict=True))
    return points


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_loaded_rule_does_the_same_to_the_bit(rule: ConvexRule, tmp_path: Path) -> None:
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter.add_(0.1 * torch.arange(parameter.numel()).reshape(parameter.shape).cos())
    save_rule(tmp_path / "rule.safetensors", rule, POINTS, about="a test")
    loaded = load_rule(tmp_path / "rule.safetensors", POINTS)
    assert isinstance(loaded, ConvexRule)
    moved = two_steps(rule)
    assert all(torch.equal(one, two) for one, two in zip(two_steps(loaded), moved, strict=True))
    assert not torch.equal(moved[1], POINTS[1])
    assert (tmp_path / "rule.safetensors").stat().st_size < 8_000


def test_other_shapes_are_refused_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "rule.safetensors"
    save_rule(path, ConvexRule(DiagonalSteps.constant(POINTS)), POINTS, about="plants of three states")
    sentence = (
        r"made for tensors of shapes \[\(3, 4\), \(4,\)\] \(plants of three states\), but is handed shapes \[\(5,\)\]"
    )
    with pytest.raises(ValueError, match=sentence):
        load_rule(path, [torch.zeros(5)])
    with pytest.raises(ValueError, match="is made for tensors of shapes"):
        save_rule(path, ConvexRule(DiagonalSteps.constant(POINTS)), POINTS[:1])


def test_files_that_are_no_rules_are_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10")
    for name in ("other", "torn", "absent"):
        with pytest.raises(ValueError, match=rf"{name}.safetensors holds no update rule that can be read"):
            load_rule(tmp_path / f"{name}.safetensors")
