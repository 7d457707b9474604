"""A program of one's own through cvxpylayers is a rule as any other."""

import sys
from typing import Any

import cvxpy as cp
import pytest
import torch
from torch import Tensor, nn

from featherlight.optim.learned import ConvexRule, ConvexUpdate, CvxpyRule, CvxpyUpdate, FullSteps, PointIn
from featherlight.solvers.convex import Box
from tests.unit.optim.learned.off_class import SIZE, class_metric, shifted
from tests.unit.optim.learned.test_safeguard import One

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of cvxpylayers' own


def in_a_box(root: Tensor) -> tuple[Any, dict[str, Any], list[Any]]:
    """`min g'd + |root d|^2 / 2` with x + d in [-1, 1]."""
    d, g, x, factor = cp.Variable(SIZE), cp.Parameter(SIZE), cp.Parameter(SIZE), cp.Parameter((SIZE, SIZE))
    problem = cp.Problem(cp.Minimize(g @ d + 0.5 * cp.sum_squares(factor @ d)), [x + d <= 1, x + d >= -1])
    return problem, {"gradients": [g], "points": [x], "learned": {factor: root}}, [d]


def test_the_same_program_makes_the_same_steps_as_the_kernel() -> None:
    own = class_metric()
    problem, parameters, variables = in_a_box(torch.linalg.cholesky(own).T)
    problems = shifted("turned", 1, torch.Generator().manual_seed(0))
    start = problems.start[0].clamp(-1, 1)
    x, y = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = ConvexRule(FullSteps.from_inverse([torch.linalg.inv(own)]), constraint=PointIn(Box(-1.0, 1.0)))
    one = ConvexUpdate([x], ours, lr=0.1, safeguard=None)
    other = CvxpyUpdate(problem, parameters, variables, [y], lr=0.1)
    for _ in range(4):
        one.step(One(problems, 0, x))
        other.step(One(problems, 0, y))
        torch.testing.assert_close(x.detach(), y.detach(), rtol=0, atol=1e-5)
    rule = other.rule
    assert isinstance(rule, CvxpyRule)
    (step,), _ = rule.update((torch.ones(SIZE, dtype=torch.float64),), rule.init((start,)), (start,))
    step.sum().backward()
    assert float(rule.learned[0].grad.norm()) > 0


def test_bad_programs_get_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, parameters, variables = in_a_box(torch.eye(SIZE, dtype=torch.float64))
    with pytest.raises(ValueError, match="must say which take the `gradients`"):
        CvxpyUpdate(problem, {"points": []}, variables, [nn.Parameter(torch.zeros(SIZE))])
    without = {name: value for name, value in parameters.items() if name != "points"}
    with pytest.raises(ValueError, match="the problem has parameters that nothing is put into"):
        CvxpyUpdate(problem, without, variables, [nn.Parameter(torch.zeros(SIZE))])
    with pytest.raises(ValueError, match=r"CvxpyRule of this rule is made for tensors of shapes \[\(8,\)\]"):
        CvxpyUpdate(problem, parameters, variables, [nn.Parameter(torch.zeros(3))])
    d, g, low = cp.Variable(2), cp.Parameter(2), cp.Parameter(2)
    empty = cp.Problem(cp.Minimize(g @ d + cp.sum_squares(d)), [d >= low, d <= low - 1])
    rule = CvxpyRule(empty, [d], [g], learned={low: torch.zeros(2)})
    point = (torch.zeros(2, dtype=torch.float64),)
    with pytest.raises(ValueError, match="the solver found no step"):
        rule.update(point, rule.init(point), point)
    monkeypatch.setitem(sys.modules, "cvxpylayers.torch", None)
    with pytest.raises(
        ValueError, match=r"need cvxpylayers, which is not installed: pip install 'featherlight\[cvxpy\]'"
    ):
        CvxpyUpdate(problem, parameters, variables, [nn.Parameter(torch.zeros(SIZE))])
