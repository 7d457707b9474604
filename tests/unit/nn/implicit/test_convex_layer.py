"""Convex programs as layers: what holds of their outputs, what is learned, failures by sample, and cvxpy's programs."""

import copy
import sys

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from featherlight.nn.implicit import (
    ConvexLayer,
    CvxpyProgram,
    LearnedDiagonal,
    LearnedFull,
    LearnedLowRank,
    LearnedMetric,
)
from featherlight.solvers.convex import (
    AffineEquality,
    Box,
    Constraint,
    ConvexError,
    ConvexStatus,
    L1Ball,
    L1Prox,
    L2Ball,
    LinfBall,
    Simplex,
)

DIM = 4


def make(metric: LearnedMetric, constraint: Constraint | None, prox: L1Prox | None = None) -> ConvexLayer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ConvexLayer(DIM, metric=metric, constraint=constraint, prox=prox).double()


def inputs() -> Tensor:
    return 2 * torch.randn(2, 3, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


ROWS = [
    (LearnedFull(), Box(torch.full((DIM,), -0.5), torch.full((DIM,), 0.5)), None, 3),
    (LearnedFull(), AffineEquality(torch.ones(1, DIM), torch.ones(1)), None, 3),
    (LearnedFull(), Simplex(), None, 1),
    (LearnedDiagonal(), LinfBall(torch.tensor(0.5)), L1Prox(torch.full((DIM,), 0.3)), 3),
    (LearnedLowRank(rank=2), L1Ball(1.0), None, 2),
    (LearnedLowRank(rank=1), L2Ball(torch.tensor(0.7)), None, 3),
    (LearnedDiagonal(), None, L1Prox(0.5), 1),
]


@pytest.mark.parametrize(("metric", "constraint", "prox", "count"), ROWS)
def test_parameters_are_learned_by_exact_gradients(
    metric: LearnedMetric, constraint: Constraint | None, prox: L1Prox | None, count: int
) -> None:
    layer, u = copy.deepcopy(make(metric, constraint, prox)), inputs().requires_grad_()
    names = [name for name, _ in layer.named_parameters()]
    assert len(names) == count
    result = layer(u)
    assert result.values.shape == u.shape
    assert result.statuses.shape == (2, 3)
    assert (result.residuals < 1e-12).all()

    def outputs(u: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (u,)).values

    assert gradcheck(outputs, (u, *layer.parameters()), fast_mode=True)


def test_outputs_keep_to_the_constraint_and_training_finds_a_metric() -> None:
    target, layer = make(LearnedFull(), Simplex()), make(LearnedFull(floor=0.01), Simplex())
    u = torch.randn(64, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        target.get_parameter("root").mul_(2)
        expected = target(u).values
    torch.testing.assert_close(expected.sum(-1), torch.ones(64, dtype=torch.float64))
    assert (expected > -1e-12).all()
    optimizer, losses = torch.optim.Adam(layer.parameters(), lr=0.05), []
    for _ in range(80):
        loss = (layer(u).values - expected).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_samples_that_fail_are_named_and_harm_no_other() -> None:
    layer, u = make(LearnedFull(), Box(-0.5, 0.5)), inputs()
    good = layer(u)
    u[0, 1, 2] = torch.nan
    with pytest.raises(ConvexError, match=r"The program of element \(0, 1\) \(1 of 6\) holds nan or inf"):
        layer(u)
    some = layer.attempt(u)
    assert some.statuses[0, 1] == ConvexStatus.NOT_FINITE
    assert not some.values[0, 1].any()
    healthy = some.statuses == ConvexStatus.SOLVED
    assert healthy.sum() == 5
    assert torch.equal(some.values[healthy], good.values[healthy])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ConvexLayer(0), r"`dim` must be at least 1"),
        (lambda: ConvexLayer(3)(torch.ones(2, 4)), r"takes inputs of 3 coordinates; got shape \(2, 4\)"),
        (lambda: ConvexLayer(3, constraint=L2Ball(1.0), prox=L1Prox(1.0)), r"L1Prox goes alone"),
        (lambda: LearnedLowRank(rank=0), r"`rank` must be at least 1; got 0"),
        (lambda: LearnedFull(floor=0.0), r"`floor` must be in \(0, 1\)"),
    ],
)
def test_bad_input_gets_a_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_program_of_cvxpy_is_a_layer() -> None:
    cvxpy = pytest.importorskip("cvxpy")
    pytest.importorskip("cvxpylayers")
    y, u, low, bound = cvxpy.Variable(2), cvxpy.Parameter(2), cvxpy.Parameter(), cvxpy.Parameter()
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(y - u)), [y >= low, cvxpy.sum(y) <= bound])
    serial = {"eps": 1e-10, "n_jobs_forward": 1, "n_jobs_backward": 1}
    layer = CvxpyProgram(problem, inputs=[u, low], output=y, learned={bound: torch.tensor(1.0)}, solver_args=serial)
    points = torch.tensor([[2.0, 1.0], [0.1, 0.2], [-3.0, 0.5]]).requires_grad_()
    result = layer(points, torch.tensor(0.0))
    torch.testing.assert_close(result.values, torch.tensor([[1.0, 0.0], [0.1, 0.2], [0.0, 0.5]]), atol=1e-5, rtol=0)
    result.values[:, 1].sum().backward()
    (bound_learned,) = layer.parameters()
    assert bound_learned.grad is not None
    assert points.grad is not None
    torch.testing.assert_close(points.grad[1], torch.tensor([0.0, 1.0]), atol=1e-4, rtol=0)
    lows = torch.tensor([0.0, 2.0, torch.nan])
    some = layer.attempt(points, lows)
    assert some.statuses.tolist() == [0, ConvexStatus.INFEASIBLE, ConvexStatus.NOT_FINITE]
    torch.testing.assert_close(some.values, torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), atol=1e-5, rtol=0)
    some.values.sum().backward()
    assert points.grad.isfinite().all()
    with pytest.raises(ConvexError, match=r"No point fulfils the constraint of element 1 .* The program of element 2"):
        layer(points, lows)
    with pytest.raises(ValueError, match=r"input 0 must have shape \(\.\.\., \(2,\)\); got \(3,\)"):
        layer(torch.ones(3), lows)
    with pytest.raises(ValueError, match="takes 2 inputs, at least one; got 1"):
        layer(points)
    curved = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(low * y * bound)))
    with pytest.raises(ValueError, match="convex only for fixed parameters"):
        CvxpyProgram(curved, inputs=[low, bound], output=y)


def test_without_cvxpylayers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cvxpylayers.torch", None)
    with pytest.raises(ValueError, match=r"pip install 'featherlight\[cvxpy\]'"):
        CvxpyProgram(None, inputs=[], output=None)
