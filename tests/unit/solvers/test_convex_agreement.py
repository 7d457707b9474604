"""Steps and all gradients beside cvxpy with Clarabel and beside moreau; second derivatives, vmap and shapes of batches."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradgradcheck

from featherlight.solvers.convex import (
    AffineEquality,
    Box,
    Constraint,
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
from featherlight.solvers.convex import active_set as active_set_module
from featherlight.solvers.convex.pivoting import find_states
from tests.oracles import convex_step as oracle

SIZE = 6
METRICS = {"diagonal": ("diagonal",), "low rank": ("diagonal", "factors"), "full": ("matrix",)}
PLAIN = ("none", "box", "linf", "l2", "l1", "simplex", "affine")
WITH_PROX = ("none", "box", "linf", "l1", "simplex")


def numbers(names: tuple[str, ...], kind: str, prox: bool, *, seed: int = 0, n: int = SIZE) -> dict[str, Tensor]:
    """A program of one element."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    square = normal(n, n)
    every = {
        "diagonal": normal(n).square() + 0.3,
        "factors": normal(n, 2),
        "matrix": square @ square.T / n + 0.1 * torch.eye(n),
    }
    found = {"m": 2 * normal(n), "x": 0.3 * normal(n)} | {name: every[name] for name in names}
    found |= {"box": {"low": -0.3 - 0.3 * normal(n).abs(), "high": 0.2 + 0.3 * normal(n).abs()}}.get(kind, {})
    radius = {"linf": 0.4, "l2": 0.7, "l1": 1.1, "simplex": 1.3}.get(kind)
    found |= {} if radius is None else {"radius": torch.tensor(radius, dtype=torch.float64)}
    found |= {"matrix_a": normal(2, n), "vector": normal(2)} if kind == "affine" else {}
    return found | ({"strength": 0.2 + 0.2 * normal(n).abs()} if prox else {})


def solve(kind: str, given: dict[str, Tensor]) -> ConvexSolution:
    """The step of a program by its numbers."""
    metric: Metric
    if "matrix" in given:
        metric = FullMetric(given["matrix"])
    elif "factors" in given:
        metric = LowRankMetric(given["diagonal"], given["factors"])
    else:
        metric = DiagonalMetric(given["diagonal"])
    constraints: dict[str, Callable[[], Constraint | None]] = {
        "none": lambda: None,
        "box": lambda: Box(given["low"], given["high"]),
        "linf": lambda: LinfBall(given["radius"]),
        "l2": lambda: L2Ball(given["radius"]),
        "l1": lambda: L1Ball(given["radius"]),
        "simplex": lambda: Simplex(given["radius"]),
        "affine": lambda: AffineEquality(given["matrix_a"], given["vector"]),
    }
    prox = L1Prox(given["strength"]) if "strength" in given else None
    return solve_convex_step(given["m"], metric, point_BN=given["x"], constraint=constraints[kind](), prox=prox)


CASES = [(kind, False) for kind in PLAIN] + [(kind, True) for kind in WITH_PROX]


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("kind", "prox"), CASES, ids=[f"{kind}{'+l1' * prox}" for kind, prox in CASES])
def test_steps_and_all_gradients_are_those_of_clarabel(kind: str, prox: bool, metric: str) -> None:
    given = numbers(METRICS[metric], kind, prox)
    weights = torch.linspace(-1, 2, SIZE, dtype=torch.float64)
    leaves = {name: value.clone().requires_grad_() for name, value in given.items()}
    solution = solve(kind, leaves)
    assert solution.status_B == ConvexStatus.SOLVED
    assert solution.residual_B < 1e-13
    (solution.step_BN * weights).sum().backward()
    plain = {name: value.numpy() for name, value in given.items()}
    near = oracle.by_clarabel(kind, plain)
    step = np.real(oracle.exact(kind, plain, near))
    assert np.abs(step + plain["x"] - near).max() < 1e-4
    np.testing.assert_allclose(solution.step_BN.detach(), step, atol=1e-10)
    for name, expected in oracle.gradients(kind, plain, near, weights.numpy()).items():
        gradient = leaves[name].grad
        actual = np.zeros(expected.shape) if gradient is None else gradient.numpy()
        np.testing.assert_allclose(actual, expected, atol=1e-8, err_msg=name)


def test_steps_and_gradients_in_a_box_are_those_of_moreau(path: str) -> None:
    peer = pytest.importorskip("moreau")
    from moreau import torch as module  # pyright: ignore[reportMissingImports]

    make: Any = module.Solver

    given = {name: torch.stack([numbers(("matrix",), "box", False, seed=b)[name] for b in range(5)])
             for name in ("m", "x", "matrix", "low", "high")}  # fmt: skip
    n, every = SIZE, torch.arange(SIZE)
    settings = peer.Settings(solver="active_set", device="cpu", batch_size=5, enable_grad=True)
    solver = make(
        n, 2 * n, torch.arange(n + 1) * n, every.repeat(n), torch.arange(2 * n + 1), every.repeat(2),
        cones=peer.Cones(num_nonneg_cones=2 * n), settings=settings,
    )  # fmt: skip
    signs = torch.ones(5, 2 * n, dtype=torch.float64)
    signs[:, n:] = -1
    results = []
    for by_peer in (False, True):
        leaves = {name: value.clone().requires_grad_() for name, value in given.items()}
        if by_peer:
            sides = torch.cat((leaves["high"] - leaves["x"], leaves["x"] - leaves["low"]), 1)
            step = solver.solve(leaves["matrix"].flatten(1), signs, leaves["m"], sides).x
        else:
            step = solve("box", leaves).unwrap()
        gradients = dict(zip(leaves, torch.autograd.grad(step.sin().sum(), list(leaves.values())), strict=True))
        gradients["matrix"] = 0.5 * (gradients["matrix"] + gradients["matrix"].mT)
        results.append([step, *gradients.values()])
    torch.testing.assert_close(*results, atol=1e-8, rtol=0)


TWICE = [("torch", *case) for case in [
    ("full", "box", False), ("full", "l1", True), ("full", "simplex", False), ("full", "l2", False), ("full", "affine", False),
    ("low rank", "l1", False), ("low rank", "l2", False), ("diagonal", "box", True), ("diagonal", "l2", False),
]] + [("kernel", "full", "box", False)]  # fmt: skip


@pytest.mark.parametrize(("path", "metric", "kind", "prox"), TWICE, indirect=["path"])
def test_derivatives_of_gradients(path: str, metric: str, kind: str, prox: bool) -> None:
    given = numbers(METRICS[metric], kind, prox, n=4)
    leaves = [value.requires_grad_() for value in given.values()]
    assert gradgradcheck(
        lambda *tensors: solve(kind, dict(zip(given, tensors, strict=True))).step_BN, leaves, atol=1e-6, fast_mode=True
    )


def spd(*shape: int, generator: torch.Generator) -> Tensor:
    square = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return square @ square.mT / shape[-1] + 0.2 * torch.eye(shape[-1])


@pytest.mark.parametrize("kind", ["none", "l2", "affine"])
def test_a_kronecker_metric_is_its_full_one(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    leaves = [spd(3, 3, generator=generator), spd(2, 2, 2, generator=generator)]
    leaves += [torch.randn(2, 3, 2, generator=generator, dtype=torch.float64) for _ in range(2)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    a = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    given = {"none": None, "l2": L2Ball(0.5), "affine": AffineEquality(a, a.sum(1))}[kind]

    def step(full: bool, left: Tensor, right: Tensor, m: Tensor, x: Tensor) -> Tensor:
        metric = KroneckerMetric(left, right)
        torch.testing.assert_close(metric.solve(metric.apply(m)), m)
        if full:
            flat = solve_convex_step(m.flatten(-2), metric.as_full(), point_BN=x.flatten(-2), constraint=given)
            return flat.unwrap().unflatten(-1, (3, 2))
        return solve_convex_step(m, metric, point_BN=x, constraint=given).unwrap()

    ours, theirs = step(False, *leaves), step(True, *leaves)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    weights = torch.randn(2, 3, 2, generator=generator, dtype=torch.float64)
    first = [torch.autograd.grad((each * weights).sum(), leaves, materialize_grads=True) for each in (ours, theirs)]
    torch.testing.assert_close(*first, atol=1e-10, rtol=0)
    assert gradgradcheck(lambda *tensors: step(False, *tensors), leaves, atol=1e-6, fast_mode=True)


def test_the_entropy_mirror_is_exponentiated_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 5, generator=generator, dtype=torch.float64)
    x[1, 2] = 0
    m = torch.randn(3, 5, generator=generator, dtype=torch.float64).requires_grad_()
    solution = solve_convex_step(m, EntropyMirror(0.5), point_BN=x, constraint=Simplex(2.0))
    assert solution.status_B.tolist() == [0, ConvexStatus.DEGENERATE, 0]
    moved = x * (-m / 0.5).exp()
    expected = 2 * moved / moved.sum(1, keepdim=True)
    torch.testing.assert_close(solution.step_BN, expected - x)
    of_ours, of_theirs = (
        torch.autograd.grad(each.square().sum(), m, retain_graph=True)[0] for each in (solution.step_BN, expected - x)
    )
    torch.testing.assert_close(of_ours, of_theirs)
    torch.testing.assert_close(solve_convex_step(m, EntropyMirror(0.5), point_BN=x).unwrap(), moved - x)


@pytest.mark.parametrize("kind", ["none", "box", "l2", "l1", "simplex", "affine"])
def test_vmap_is_one_more_axis_of_the_batch(path: str, kind: str) -> None:
    given = numbers(("matrix",), kind, False)
    m = torch.randn(2, 3, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def step(m: Tensor, matrix: Tensor) -> Tensor:
        return solve(kind, {**given, "m": m, "matrix": matrix}).step_BN

    for dims, matrix in (((0, None), given["matrix"]), ((0, 0), torch.stack((given["matrix"], 2 * given["matrix"])))):
        batch = matrix[:, None] if matrix.ndim == 3 else matrix
        torch.testing.assert_close(torch.func.vmap(step, in_dims=dims)(m, matrix), step(m, batch), atol=1e-13, rtol=0)
        slope = torch.func.grad(lambda m, matrix: step(m, matrix).square().sum())
        rows = torch.func.vmap(slope, in_dims=dims)(m, matrix)
        torch.testing.assert_close(rows, slope(m, batch), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["l1", "simplex"])
def test_a_multiplier_searched_from_outside_ends_at_the_same_states(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {name: torch.stack([numbers(("matrix",), kind, False, seed=b)[name] for b in range(20)])
             for name in ("m", "x", "matrix", "radius")}  # fmt: skip
    usual = solve(kind, given)
    monkeypatch.setattr(active_set_module, "find_states", lambda *rows: find_states(*rows, together=0))
    from_outside = solve(kind, given)
    assert (from_outside.status_B == ConvexStatus.SOLVED).all()
    torch.testing.assert_close(from_outside.step_BN, usual.step_BN, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_shapes_of_batches(path: str, dtype: torch.dtype) -> None:
    given = numbers(("matrix",), "box", False)
    shared = {name: value.to(dtype) for name, value in given.items()}
    shared["m"] = shared["m"] * torch.ones(2, 1, 3, 1, dtype=dtype)
    shared["low"] = shared["low"].expand(4, 1, SIZE)
    matrix = shared["matrix"].requires_grad_()
    solution = solve("box", shared)
    assert solution.step_BN.shape == (2, 4, 3, SIZE)
    assert solution.step_BN.dtype == dtype
    assert solution.status_B.shape == (2, 4, 3)
    tolerance = {torch.bfloat16: 0.1, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(solution.unwrap()[1, 2, 0].double(), solve("box", given).step_BN, atol=tolerance, rtol=0)
    solution.step_BN.sum().backward()
    assert matrix.grad is not None
    assert matrix.grad.shape == (SIZE, SIZE)
    for n in (0, 1):
        empty = solve_convex_step(given["m"][None].expand(n, SIZE), FullMetric(given["matrix"]), constraint=Box(-1, 1))
        assert empty.unwrap().shape == (n, SIZE)
