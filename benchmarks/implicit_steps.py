"""One training step of a full and of a triangular model beside torchdeq, its memory, and models made sparse by their states.

Legend of shapes: B rows of a batch, I inputs, S states.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import FinishedRuns, Row, in_turn, spread, target
from benchmarks.implicit_sides import is_there
from featherlight.nn.implicit import RELU, ImplicitLayer, StrictlyTriangular, Unconstrained
from featherlight.recipes.implicit.matching import match_states
from featherlight.solvers import Anderson, Picard
from featherlight.solvers.row_lasso import RowStatus

BATCH, INPUTS, OUTPUTS = 128, 50, 10
_GOAL = 1e-5
_TOLERANCES = (3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)
Step = Callable[[], tuple[Tensor, Tensor]]
"""From nothing to states and the gradient of A."""


def _matrices(
    states: int, sizes: Sequence[int] | None, dtype: torch.dtype, *, slow: bool = False
) -> tuple[Tensor, ...]:
    """A with rows of sizes that sum to 0.9, strictly triangular where there are `sizes`; B, C, D and a batch.

    Entries of random signs make iterations converge quickly; of `slow` ones all are positive, with the largest eigenvalue 0.9.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    a = drawn(states, states)
    if slow:
        a = a.abs()
    if sizes is not None:
        block = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        a = a * (block[:, None] < block)
    a = 0.9 * a / a.abs().sum(1, keepdim=True).clamp(min=1e-9)
    b, c, d, u = drawn(states, INPUTS), drawn(OUTPUTS, states), drawn(OUTPUTS, INPUTS), drawn(BATCH, INPUTS)
    return tuple(one.to(dtype) for one in (a, b / INPUTS**0.5, c / states**0.5, d, u))


def _our_step(layer: ImplicitLayer, u: Tensor) -> Step:
    def step() -> tuple[Tensor, Tensor]:
        layer.zero_grad()
        a = layer.A
        a.retain_grad()
        found = layer(u)
        found.values.square().mean().backward()
        return found.states.detach(), torch.cat([p.grad.flatten() for p in layer.free.values() if p.grad is not None])

    return step


def _torchdeq_step(
    matrices: tuple[Tensor, ...], solver: str, tolerances: tuple[float, float], free: Callable[[Tensor], Tensor]
) -> Step:
    from torchdeq import get_deq  # pyright: ignore[reportMissingImports]

    a, b, c, d, u = matrices
    a = a.clone().requires_grad_()
    limits = {"f_max_iter": 300, "b_max_iter": 300, "f_tol": tolerances[0], "b_tol": tolerances[1]}
    deq = get_deq(f_solver=solver, b_solver=solver, ift=True, f_stop_mode="rel", b_stop_mode="rel", **limits)

    def step() -> tuple[Tensor, Tensor]:
        a.grad = None
        b_u = u @ b.mT
        found, _ = deq(lambda x: torch.relu(torch.addmm(b_u, x, a.mT)), torch.zeros_like(b_u))
        (found[-1] @ c.mT + u @ d.mT).square().mean().backward()
        assert a.grad is not None
        return found[-1].detach(), free(a.grad)

    return step


def _exact(matrices: tuple[Tensor, ...], kind: Any) -> tuple[Tensor, Tensor]:
    """States and gradient in float64 to 1e-13."""
    doubles = [one.double() for one in matrices]
    own = {} if isinstance(kind, StrictlyTriangular) else {"solver": Anderson(memory=1, tolerance=1e-13)}
    return _our_step(ImplicitLayer.from_matrices(*doubles[:4], activation=RELU, well_posed=kind, **own), doubles[4])()


def _errors(step: Step, exact: tuple[Tensor, Tensor]) -> list[float]:
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(step(), exact, strict=True)]


def _compare(states: int, sizes: Sequence[int] | None, rounds: int, *, slow: bool = False) -> Row:
    """Every side at the loosest tolerances with which states and gradient are within `_GOAL`; exact substitution has none."""
    kind = Unconstrained() if sizes is None else StrictlyTriangular(block_sizes=sizes)
    matrices = _matrices(states, sizes, torch.float32, slow=slow)
    exact = _exact(matrices, kind)
    there = matrices[0] != 0

    def free(gradient: Tensor) -> Tensor:
        return torch.cat([part.flatten() for part in kind.parameters_of(gradient * there).values()])

    steps: dict[str, Step] = {}
    if sizes is not None:
        steps["featherlight"] = _our_step(_layer(matrices, kind), matrices[4])
    else:
        for name, solver in (("Anderson", partial(Anderson, memory=1)), ("Picard", Picard)):
            for tolerance in _TOLERANCES:
                step = _our_step(_layer(matrices, kind, solver=solver(tolerance=tolerance, max_steps=300)), matrices[4])
                steps[f"featherlight, {name}"] = step
                if max(_errors(step, exact)) <= _GOAL:
                    break
    for solver in ("anderson", "fixed_point_iter") if is_there("torchdeq") else ():
        steps[f"torchdeq, {solver}"] = _as_exact(matrices, solver, free, exact)
    errors = {name: _errors(step, exact) for name, step in steps.items()}
    seconds = in_turn(steps, rounds=rounds, warmup=2)
    return {
        "milliseconds": {name: spread([1e3 * s for s in values]) for name, values in seconds.items()},
        "state and gradient error": errors,
    }


def _layer(matrices: tuple[Tensor, ...], kind: Any, **parts: Any) -> ImplicitLayer:
    return ImplicitLayer.from_matrices(*matrices[:4], activation=RELU, well_posed=kind, **parts)


def _as_exact(
    matrices: tuple[Tensor, ...], solver: str, free: Callable[[Tensor], Tensor], exact: tuple[Tensor, Tensor]
) -> Step:
    """torchdeq's step with the loosest tolerances, forward and then backward, that reach `_GOAL`, or the tightest."""
    forward = next(
        (
            tolerance
            for tolerance in _TOLERANCES
            if _errors(_torchdeq_step(matrices, solver, (tolerance, 1e-6), free), exact)[0] <= _GOAL
        ),
        _TOLERANCES[-1],
    )
    step = _torchdeq_step(matrices, solver, (forward, _TOLERANCES[0]), free)
    for backward in _TOLERANCES[1:]:
        if _errors(step, exact)[1] <= _GOAL:
            break
        step = _torchdeq_step(matrices, solver, (forward, backward), free)
    return step


def _equals_picard(states: int, sizes: Sequence[int]) -> float:
    a, b, c, d, u = _matrices(states, sizes, torch.float64)
    layer = ImplicitLayer.from_matrices(a, b, c, d, activation=RELU, well_posed=StrictlyTriangular(block_sizes=sizes))
    b_u = u @ b.mT
    with torch.no_grad():
        x = Picard(tolerance=1e-14, max_steps=len(sizes) + 2)(lambda x: torch.relu(b_u + x @ a.mT), b_u).value
        return float((layer(u).states - x).abs().max() / x.abs().max())


def _saved_bytes(run: Callable[[], object]) -> int:
    """What autograd keeps for the backward pass, storage by storage, parameters apart."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if not tensor.is_leaf:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return sum(kept.values())


def _memory() -> Row:
    """Of a step of the last of 10 blocks of 100, and of all blocks at once, on 128 rows."""
    sizes = [100] * 10
    matrices = _matrices(1000, sizes, torch.float32)
    kind = StrictlyTriangular(block_sizes=sizes)
    layer = ImplicitLayer.from_matrices(*matrices[:4], activation=RELU, well_posed=kind)
    u = matrices[4]
    frozen = layer(u).states.detach()[:, 100:]
    weights = layer.free["block_0"].detach().clone().requires_grad_()
    read = matrices[2].clone().requires_grad_()

    def block() -> Tensor:
        states = torch.relu(frozen @ weights.mT + u @ matrices[1][:100].mT)
        return (states @ read[:, :100].mT + frozen @ read[:, 100:].mT).square().mean()

    return {
        "one block": _saved_bytes(block),
        "all blocks": _saved_bytes(lambda: layer(u).values.square().mean()),
        "float": 4,
    }


def _sparsity() -> list[Row]:
    """Test error and zeros of models that match the states of a sequentially trained one on MNIST."""
    from benchmarks.implicit import mnist, mnist_settings
    from benchmarks.implicit_sides import sequential_layer

    problem, test, _, _ = mnist()
    layer = sequential_layer(problem, mnist_settings("sequential")[2], 0)
    pad = torch.nn.functional.pad
    u, held = (pad(one, (0, 1), value=1.0) for one in (problem.x[:4000], test.inputs))
    rows = []
    for penalty in (None, 3e-4, 1e-3, 3e-3, 1e-2):
        matched = None if penalty is None else match_states(layer, u, penalty=penalty)
        with torch.no_grad():
            wrong = (matched.layer if matched else layer)(held).values.argmax(1) != test.targets
        row: Row = {"penalty": penalty, "error": 100 * float(wrong.double().mean())}
        if matched is not None:
            statuses = torch.cat((matched.states.status, matched.outputs.status))
            row |= {"zeros": matched.zeros, "not solved": int((statuses != RowStatus.CONVERGED).sum())}
        rows.append(row)
    return rows


def measure_sparsity(done: FinishedRuns, line: Callable[[Row], str]) -> None:
    """The curve of error against zeros."""
    done.get({"kind": "sparsity"}, lambda: {"curve": _sparsity()}, line)


def measure(done: FinishedRuns, line: Callable[[Row], str]) -> None:
    """All rows of this file but the curve of sparsity."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done.get({"kind": "step, full A, n = 100"}, lambda: _compare(100, None, 15), line)
        done.get({"kind": "step, full positive A, n = 100"}, lambda: _compare(100, None, 15, slow=True), line)
        done.get({"kind": "step, triangular, n = 1000"}, lambda: _compare(1000, [100] * 10, 7), line)
    key = {"kind": "triangular against Picard, n = 1000"}
    done.get(key, lambda: {"difference": _equals_picard(1000, [100] * 10)}, line)
    done.get({"kind": "bytes kept for backward"}, _memory, line)


def targets(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """What was asked of the steps."""
    by_kind = {row["kind"]: row for row in rows}
    for kind, goal in (
        ("step, full A, n = 100", 2.0),
        ("step, full positive A, n = 100", 2.0),
        ("step, triangular, n = 1000", 3.0),
    ):
        times = by_kind.get(kind, {}).get("milliseconds", {})
        theirs = [one["median"] for name, one in times.items() if name.startswith("torchdeq")]
        if theirs:
            ours = min(one["median"] for name, one in times.items() if name.startswith("featherlight"))
            times_faster = min(theirs) / ours
            yield target(f"{kind}, torchdeq's best over ours", times_faster, ">=", goal, "times")
    if (found := by_kind.get("triangular against Picard, n = 1000")) is not None:
        yield target("triangular engine against Picard", found["difference"], "<=", 1e-12, "relative")
    if (found := by_kind.get("bytes kept for backward")) is not None:
        share = found["one block"] / found["all blocks"]
        yield target("memory for backward, a block's over that of all 10", share, "<=", 0.2, "times")
