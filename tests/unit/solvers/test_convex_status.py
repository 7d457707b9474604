"""Programs without a solution, with a kink in it, or that make no sense; and that no element touches another."""

import pytest
import torch
from torch import Tensor

from featherlight.solvers.convex import (
    AffineEquality,
    Box,
    Constraint,
    ConvexError,
    ConvexSolution,
    ConvexStatus,
    DiagonalMetric,
    EntropyMirror,
    FullMetric,
    KroneckerMetric,
    L1Ball,
    L1Prox,
    L2Ball,
    LinfBall,
    LowRankMetric,
    Metric,
    Simplex,
    solve_convex_step,
)

BATCH, SIZE = 7, 33
SOLVED, DEGENERATE, INFEASIBLE, INDEFINITE, NOT_FINITE, NOT_CONVERGED = ConvexStatus
KINDS = ("none", "box", "linf", "l2", "l1", "simplex", "affine", "l1 term")
COMBINATIONS = [("torch", metric, kind) for metric in ("full", "diagonal", "low rank") for kind in KINDS]
COMBINATIONS += [("kernel", "full", "box"), ("kernel", "full", "linf")]
EVERY = pytest.mark.parametrize(("path", "metric", "kind"), COMBINATIONS, indirect=["path"])


def sample(dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
    """Numbers of all kinds of programs, an element each."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(BATCH, *shape, generator=generator, dtype=torch.float64).to(dtype)

    square = normal(SIZE, SIZE)
    matrix = square @ square.mT / SIZE + 0.1 * torch.eye(SIZE, dtype=dtype)
    return {
        "m": 2 * normal(SIZE), "x": 0.3 * normal(SIZE), "matrix": matrix, "diagonal": normal(SIZE).square() + 0.3,
        "factors": normal(SIZE, 2), "low": -0.2 - normal(SIZE).abs(), "high": 0.2 + normal(SIZE).abs(),
        "radius": 0.5 + normal().abs(), "a": normal(2, SIZE), "b": normal(2),
    }  # fmt: skip


def solve(kind: str, metric: str, given: dict[str, Tensor]) -> ConvexSolution:
    """Steps of the programs of a sample."""
    metrics: dict[str, Metric] = {
        "full": FullMetric(given["matrix"]),
        "diagonal": DiagonalMetric(given["diagonal"]),
        "low rank": LowRankMetric(given["diagonal"], given["factors"]),
    }
    radius = given["radius"]
    constraints: dict[str, Constraint | None] = {
        "box": Box(given["low"], given["high"]), "linf": LinfBall(radius), "l2": L2Ball(radius), "l1": L1Ball(radius),
        "simplex": Simplex(radius), "affine": AffineEquality(given["a"], given["b"]),
    }  # fmt: skip
    prox = L1Prox(0.3) if kind == "l1 term" else None
    return solve_convex_step(
        given["m"], metrics[metric], point_BN=given["x"], constraint=constraints.get(kind), prox=prox
    )


def solve_and_differentiate(
    kind: str, metric: str, given: dict[str, Tensor]
) -> tuple[ConvexSolution, dict[str, Tensor]]:
    leaves = {name: value.clone().requires_grad_() for name, value in given.items()}
    solution = solve(kind, metric, leaves)
    solution.step_BN.sin().sum().backward()
    return solution, {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@EVERY
def test_broken_elements_have_a_status_and_harm_no_other(path: str, kind: str, metric: str, dtype: torch.dtype) -> None:
    good = sample(dtype)
    expected, of_expected = solve_and_differentiate(kind, metric, good)
    assert (expected.status_B == SOLVED).all()
    bad = {name: value.clone() for name, value in good.items()}
    bad["m"][1, 2] = torch.nan
    bad["matrix"][2] -= 5 * torch.eye(SIZE, dtype=dtype)
    bad["diagonal"][2, 3] = 0
    bad["x"][3, 0] = torch.inf
    bad["matrix"][4, 1, 0] = bad["diagonal"][4, 0] = torch.nan
    bad["low"][5, 4], bad["radius"][5] = bad["high"][5, 4] + 0.1, -1.0
    bad["a"][5, 1], bad["b"][5, 1] = bad["a"][5, 0], bad["b"][5, 0] + 1
    found, gradients = solve_and_differentiate(kind, metric, bad)
    fails = SOLVED if kind in ("none", "l1 term") else INFEASIBLE
    assert found.status_B.tolist() == [SOLVED, NOT_FINITE, INDEFINITE, NOT_FINITE, NOT_FINITE, fails, SOLVED]
    healthy = found.status_B == SOLVED
    assert torch.equal(found.step_BN[healthy], expected.step_BN[healthy])
    assert not found.step_BN[~healthy].any()
    assert not found.residual_B[~healthy].any()
    for name, gradient in gradients.items():
        assert torch.equal(gradient[healthy], of_expected[name][healthy]), name
        assert not gradient[~healthy].any(), name


@EVERY
def test_an_element_alone_has_the_bits_it_has_among_others(path: str, kind: str, metric: str) -> None:
    given = sample()
    every, of_every = solve_and_differentiate(kind, metric, given)
    for chosen in ([3], [6, 2], [0, 1, 2, 3, 4]):
        some, of_some = solve_and_differentiate(kind, metric, {name: value[chosen] for name, value in given.items()})
        assert torch.equal(some.step_BN, every.step_BN[chosen])
        for name, gradient in of_some.items():
            assert torch.equal(gradient, of_every[name][chosen]), name


def flat(
    constraint: Constraint | None, prox: L1Prox | None = None, *, m: float = 0.0, x: float = 0.0
) -> ConvexSolution:
    """Of two coordinates with the metric I, differentiated."""
    gradient = torch.full((2,), m, dtype=torch.float64, requires_grad=True)
    matrix = torch.eye(2, dtype=torch.float64, requires_grad=True)
    point = torch.full((2,), x, dtype=torch.float64)
    solution = solve_convex_step(gradient, FullMetric(matrix), point_BN=point, constraint=constraint, prox=prox)
    solution.step_BN.sum().backward()
    for leaf in (gradient, matrix):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    return solution


def test_steps_at_a_kink_are_degenerate_with_finite_gradients(path: str) -> None:
    a = torch.tensor([[1.0, 2.0], [2.0, 4.0]], dtype=torch.float64)
    assert flat(Box(-1.0, 1.0), m=1.0).status_B == DEGENERATE
    assert flat(Box(-1.0, 1.0), m=0.5).status_B == SOLVED
    assert flat(Box(-1.0, -1.0), m=0.5).status_B == SOLVED
    assert flat(LinfBall(0.0), m=1.0).unwrap().tolist() == [0.0, 0.0]
    assert flat(None, L1Prox(1.0), m=1.0).status_B == DEGENERATE
    assert flat(L1Ball(1.0), m=-0.5).status_B == DEGENERATE
    assert flat(L2Ball(2.0**0.5), m=-1.0).status_B == DEGENERATE
    for constraint in (L2Ball(0.0), L1Ball(0.0), Simplex(0.0)):
        solution = flat(constraint, m=1.0, x=0.25)
        assert solution.status_B == DEGENERATE
        assert solution.unwrap().tolist() == [-0.25, -0.25]
    repeated = flat(AffineEquality(a, torch.tensor([1.0, 2.0], dtype=torch.float64)))
    assert repeated.status_B == DEGENERATE
    torch.testing.assert_close(repeated.unwrap(), torch.tensor([0.2, 0.4], dtype=torch.float64))
    assert flat(AffineEquality(a, torch.tensor([1.0, 2.1], dtype=torch.float64))).status_B == INFEASIBLE
    assert flat(Box(-torch.inf, torch.inf), m=1.0).unwrap().tolist() == [-1.0, -1.0]


def test_hard_programs_end_and_short_searches_say_so(path: str) -> None:
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(4, 30, 30, generator=generator, dtype=torch.float64)
    scale = torch.logspace(-3, 3, 30, dtype=torch.float64)
    matrix = square.mT @ (scale[:, None] * square)
    m = matrix @ torch.randn(4, 30, 1, generator=generator, dtype=torch.float64)
    for constraint in (Box(-0.5, 0.5), L1Ball(2.0), Simplex(1.0)):
        solution = solve_convex_step(m[..., 0], FullMetric(matrix), constraint=constraint)
        assert solution.solved.all()
        assert solution.residual_B.max() < 1e-8
    short = solve_convex_step(m[..., 0], FullMetric(matrix), constraint=Box(-0.5, 0.5), max_steps=1)
    assert (short.status_B == NOT_CONVERGED).any()
    with pytest.raises(ConvexError, match=r"The active set of elements 0, .* was not found"):
        short.unwrap()


def test_the_mirror_refuses_points_outside_of_its_domain() -> None:
    x = torch.tensor([[0.5, 0.5], [-0.1, 1.1], [0.0, 0.0], [0.5, 0.5], [0.5, 0.5]], dtype=torch.float64)
    strength = torch.tensor([1.0, 1.0, 1.0, -1.0, torch.nan], dtype=torch.float64)
    solution = solve_convex_step(torch.ones_like(x), EntropyMirror(strength), point_BN=x, constraint=Simplex())
    assert solution.status_B.tolist() == [SOLVED, INFEASIBLE, INFEASIBLE, INDEFINITE, NOT_FINITE]


EYE = torch.eye(3)
M = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: solve_convex_step(M, FullMetric(torch.eye(4))),
            r"steps of shape \(4,\), the gradient has shape \(4, 3\)",
        ),
        (lambda: solve_convex_step(M.long(), FullMetric(EYE)), r"must hold floating-point numbers; got torch\.int64"),
        (lambda: solve_convex_step(M, FullMetric(EYE), point_BN=torch.ones(2)), r"the point has shape \(2,\)"),
        (lambda: FullMetric(torch.ones(2, 3)), r"`matrix_NN` must be square matrices; got shape \(2, 3\)"),
        (lambda: FullMetric(torch.ones(2)), r"`matrix_NN` needs at least 2 axes"),
        (lambda: DiagonalMetric(torch.ones(2, dtype=torch.int64)), r"`diagonal_N` must hold floating-point numbers"),
        (lambda: LowRankMetric(torch.ones(3), torch.ones(2, 1)), r"a row for each of the 3 numbers"),
        (lambda: Box(1.0, 0.0), r"the box is empty: `lower` is 1\.0 and `upper` 0\.0"),
        (lambda: L2Ball(-1.0), r"a radius must be a finite number of at least 0; got -1\.0"),
        (lambda: L1Prox(float("inf")), r"`strength` must be a finite number of at least 0; got inf"),
        (lambda: EntropyMirror(0.0), r"`strength` must be a finite number above 0; got 0\.0"),
        (lambda: AffineEquality(EYE, torch.ones(2)), r"a row for each number of `vector_M`"),
        (lambda: solve_convex_step(M, FullMetric(EYE), constraint=Box(0.0, 1.0), max_steps=0), r"at least 1; got 0"),
        (lambda: solve_convex_step(M, EntropyMirror(1.0)), r"measures from a positive point"),
        (lambda: solve_convex_step(M, EntropyMirror(1.0), point_BN=M, constraint=L2Ball(1.0)), r"got L2Ball"),
        (
            lambda: solve_convex_step(M, DiagonalMetric(M), constraint=L2Ball(1.0), prox=L1Prox(1.0)),
            r"L1Prox goes alone",
        ),
        (
            lambda: solve_convex_step(M, DiagonalMetric(M), constraint=AffineEquality(torch.eye(2), torch.ones(2))),
            r"the equations are of 2 coordinates and the steps have 3",
        ),
        (
            lambda: solve_convex_step(M, KroneckerMetric(torch.eye(4), EYE), constraint=Box(0.0, 1.0)),
            r"a KroneckerMetric goes with L2Ball, AffineEquality or no constraint.*got Box.*`metric.as_full\(\)`",
        ),
        (
            lambda: solve_convex_step(M, FullMetric(-EYE)).unwrap(),
            r"The metric of elements 0, 1, 2, 3 \(4 of 4\) is not positive definite, .* Add a multiple of the identity",
        ),
        (
            lambda: solve_convex_step(M[0] * torch.nan, FullMetric(EYE)).unwrap(),
            r"The program of the one element holds nan",
        ),
        (
            lambda: solve_convex_step(M, FullMetric(EYE), constraint=Box(M, -M)).unwrap(),
            r"No point fulfils the constraint of elements 0, 1",
        ),
    ],
)
def test_bad_input_gets_a_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
