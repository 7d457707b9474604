"""A training step of an implicit layer with a full A of 100 states beside torchdeq, at equal residual and gradient error.

    python -m benchmarks.implicit_step --short     half a minute
    python -m benchmarks.implicit_step             a few minutes; with `--minutes 0.1` one comparison, the same command goes on

A step is forward, cross-entropy and backward to A, B, C and D, in float32, 128 samples, on one thread; CPU milliseconds,
one call of each side in turn. `easy` is an A as the layer begins with, `slow` a positive one whose plain iteration gains 5%
a step. Both sides get the same matrices and start from phi(B u). Where A is a projection, torchdeq gets it from the same
function.

Both sides are tuned alike: of their solvers and tolerances the setting that takes least time among those whose residual and
gradient error are at most `GOAL`. torchdeq gets implicit differentiation in its faster form (a hook). The layer by its
defaults is a row of its own, and so is torchdeq with a fixed number of steps and no look at residuals, that number found
beforehand for these very matrices. Errors are against backpropagation through the plain iteration in float64.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.common import (
    RESULTS,
    FinishedRuns,
    OutOfTimeError,
    Row,
    in_turn,
    ratio,
    spread,
    target,
    write_results,
)
from featherlight.nn.implicit import ImplicitLayer, RowProjection, Unconstrained
from featherlight.solvers import Anderson, FixedPointSolver, Picard, project_linf_rows

SAMPLES, STATES, OUTPUTS = 128, 100, 10
BOUND = 0.95
GOAL = 1e-5
ASKED = 2.0
_TOLERANCES = (1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7)
_SOLVERS = ("fixed_point_iter", "anderson", "broyden")


@dataclass(frozen=True)
class Problem:
    """One batch and the parameters of a model, float32: A or what it is the projection of, B, C and D.

    `difficulty` is easy or slow.
    """

    difficulty: str
    projected: bool
    matrices: tuple[Tensor, Tensor, Tensor, Tensor]
    u: Tensor
    labels: Tensor


class Side(NamedTuple):
    """One way to make the step: `call` returns the states; gradients are then in the `parameters` (A, B, C, D)."""

    call: Callable[[], Tensor]
    parameters: list[torch.nn.Parameter]


def problem(difficulty: str, num_inputs: int, *, projected: bool, seed: int = 0) -> Problem:
    """Matrices as the layer draws them, or a positive A and B whose states are all at work.

    Where A is a projection, all its rows are, from a fifth beyond the bound.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(rows: int, columns: int, width: float) -> Tensor:
        return (2 * torch.rand(rows, columns, generator=generator) - 1) * width

    a = uniform(STATES, STATES, 1)
    b, c, d = (uniform(r, s, s**-0.5) for r, s in ((STATES, num_inputs), (OUTPUTS, STATES), (OUTPUTS, num_inputs)))
    if difficulty == "slow":
        a, b = a.abs(), b.abs()
    a = a / a.abs().sum(1, keepdim=True) * (1.2 if projected else 1.0) * BOUND
    u = torch.rand(SAMPLES, num_inputs, generator=generator)
    labels = torch.randint(OUTPUTS, (SAMPLES,), generator=generator)
    return Problem(difficulty, projected, (a, b, c, d), u, labels)


def ours(given: Problem, solver: FixedPointSolver | None = None) -> Side:
    """The layer, by its defaults or with a solver."""
    well_posed = RowProjection(bound=BOUND) if given.projected else Unconstrained()
    layer = ImplicitLayer(STATES, given.u.shape[1], OUTPUTS, solver=solver, well_posed=well_posed)
    parameters = [layer.free["weight"], layer.B, layer.C, layer.D]
    with torch.no_grad():
        for parameter, matrix in zip(parameters, given.matrices, strict=True):
            parameter.copy_(matrix)

    def call() -> Tensor:
        layer.zero_grad()
        found = layer(given.u)
        cross_entropy(found.values, given.labels).backward()
        return found.states.detach()

    return Side(call, parameters)


def theirs(given: Problem, *, tolerance: float, solver: str, steps: int | None = None) -> Side:
    """torchdeq by implicit differentiation; with `steps`, forward and backward take so many without a look."""
    from torchdeq import get_deq  # pyright: ignore[reportMissingImports]

    parameters = [torch.nn.Parameter(matrix.clone()) for matrix in given.matrices]
    limits = {"f_tol": tolerance, "b_tol": tolerance, "f_stop_mode": "rel", "b_stop_mode": "rel"}
    if steps is None:
        limits |= {"f_solver": solver, "b_solver": solver, "f_max_iter": 500, "b_max_iter": 500}
    else:
        limits |= {"f_solver": "simple_fixed_point_iter", "b_solver": "fixed_point_iter"}
        limits |= {"f_max_iter": steps, "b_max_iter": steps, "b_tol": 0.0}
    engine = get_deq(ift=True, hook_ift=True, **limits).train()

    def call() -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        weight, b, c, d = parameters
        a = project_linf_rows(weight, bound=BOUND) if given.projected else weight
        into = given.u @ b.T
        states = engine(lambda x: torch.relu(torch.addmm(into, x, a.T)), torch.relu(into.detach()))[0][-1]
        cross_entropy(states @ c.T + given.u @ d.T, given.labels).backward()
        return states.detach()

    return Side(call, parameters)


def exact(given: Problem) -> list[Tensor]:
    """The gradients of A, B, C and D, float64, by backpropagation through plain steps."""
    weight, b, c, d = parameters = [matrix.double().requires_grad_() for matrix in given.matrices]
    a, u = project_linf_rows(weight, bound=BOUND) if given.projected else weight, given.u.double()
    into = u @ b.T
    x = torch.relu(into)
    for _ in range(40 if given.difficulty == "easy" else 800):
        x = torch.relu(torch.addmm(into, x, a.T))
    return list(torch.autograd.grad(cross_entropy(x @ c.T + u @ d.T, given.labels), parameters))


def errors(side: Side, given: Problem, reference: list[Tensor]) -> tuple[float, float]:
    """The largest |f(x) - x| / |f(x)| of a sample, in float64, and the largest relative error of a gradient."""
    x = side.call().double()
    weight, b = (matrix.double() for matrix in given.matrices[:2])
    a = project_linf_rows(weight, bound=BOUND) if given.projected else weight
    fx = torch.relu(x @ a.T + given.u.double() @ b.T)
    residual = float(((fx - x).norm(dim=1) / fx.norm(dim=1)).max())
    pairs = [(p.grad.double(), r) for p, r in zip(side.parameters, reference, strict=True) if p.grad is not None]
    worst = torch.stack([(g - r).norm() / r.norm() for g, r in pairs]).max()  # nan where one is
    return residual, float(worst)


def tuned(given: Problem, reference: list[Tensor]) -> dict[str, Side]:
    """Both sides at their best, and torchdeq with as few steps as suffice, by their names."""

    def coarsest(sides: Iterable[tuple[str, Side]]) -> dict[str, Side]:
        good = ((n, s) for n, s in sides if all(error <= GOAL for error in errors(s, given, reference)))  # nan is not
        return dict(islice(good, 1))

    def nearest(kind: str, side: Side) -> dict[str, Side]:
        return {f"{kind}, {min(_TOLERANCES):.0e}, short of the goal": side}

    solvers = {
        f"{name}, a look each {every or 'root of the'} steps": partial(make, check_every=every)
        for name, make in (("Picard", Picard), ("Anderson(1)", partial(Anderson, memory=1)))
        for every in (None, 2, 3, 4)
    }
    own, peer = {}, {}
    for name, make in solvers.items():
        own |= coarsest((f"ImplicitLayer, {name}, {t:.0e}", ours(given, make(tolerance=t))) for t in _TOLERANCES)
    for name in _SOLVERS:
        peer |= coarsest((f"torchdeq, {name}, {t:.0e}", theirs(given, tolerance=t, solver=name)) for t in _TOLERANCES)
    counts = range(100, 400, 20) if given.difficulty == "slow" else range(2, 12)
    unseen = coarsest(
        (f"torchdeq, {k} steps unseen", theirs(given, tolerance=GOAL, solver="", steps=k)) for k in counts
    )
    own = own or nearest("ImplicitLayer, Picard", ours(given, Picard(tolerance=min(_TOLERANCES))))
    peer = peer or nearest(f"torchdeq, {_SOLVERS[0]}", theirs(given, tolerance=min(_TOLERANCES), solver=_SOLVERS[0]))
    return _fastest(own) | _fastest(peer) | unseen


def compare(difficulty: str, num_inputs: int, *, projected: bool, rounds: int) -> list[Row]:
    """A row a side, our tuned one first; `ratio` is of a side's time and that one's, pair by pair."""
    given = problem(difficulty, num_inputs, projected=projected)
    reference = exact(given)
    sides = tuned(given, reference) | {"ImplicitLayer by its defaults": ours(given)}
    taken = _milliseconds(sides, rounds)
    first = next(iter(taken.values()))
    rows = []
    for name, side in sides.items():
        found = errors(side, given, reference)
        rows.append(
            {"difficulty": difficulty, "inputs": num_inputs, "projected": projected, "side": name}
            | {"cpu_ms": spread(taken[name]), "ratio": ratio(taken[name], first)}
            | {"residual": found[0], "gradient_error": found[1]}
        )
        print(
            f"{difficulty} {num_inputs:4} inputs, {'projected' if projected else 'free A':9}  {name:62} "
            f"{rows[-1]['cpu_ms']['median']:8.3f} ms  {rows[-1]['ratio']['median']:5.2f}  residual {found[0]:.1e}  "
            f"gradient {found[1]:.1e}",
            flush=True,
        )
    return rows


def step_rows(rounds: int, runs: FinishedRuns, difficulties: Sequence[str] = ("easy", "slow")) -> list[Row]:
    """All comparisons, those that are there and those made now, one after the other.

    None, with a line that says so, where torchdeq is absent.

    Raises:
        OutOfTimeError: the minutes of `runs` are used up.
    """
    if importlib.util.find_spec("torchdeq") is None:
        print("torchdeq is absent: install benchmarks/peers.txt to have it measured")
        return []
    shapes = [(d, i) for d, i in (("easy", 784), ("easy", 100), ("slow", 784)) if d in difficulties]
    found = [
        runs.get(
            {"difficulty": difficulty, "inputs": inputs, "projected": projected, "rounds": rounds},
            lambda d=difficulty, i=inputs, p=projected: {"sides": compare(d, i, projected=p, rounds=rounds)},
            lambda row: f"{len(row['sides'])} sides",
        )
        for (difficulty, inputs), projected in product(shapes, (False, True))
    ]
    return [row for one in found for row in one["sides"]]


def step_targets(rows: list[Row]) -> list[Row]:
    """The step asked for, against the fastest torchdeq that looks at its residuals, where both sides come up to the goal."""
    found = []
    for row in rows:
        which = tuple(row[key] for key in ("difficulty", "inputs", "projected"))
        if row["side"].startswith("torchdeq") and not row["side"].endswith("unseen"):
            own = next(one for one in rows if which == tuple(one[k] for k in ("difficulty", "inputs", "projected")))
            if all(one[key] <= GOAL for one in (own, row) for key in ("residual", "gradient_error")):
                how = "projected" if row["projected"] else "free"
                what = f"step faster than torchdeq, {row['difficulty']} A, {row['inputs']} inputs, {how}"
                found.append(target(what, row["ratio"]["median"], ">=", ASKED, "times"))
    return found


def _fastest(sides: dict[str, Side]) -> dict[str, Side]:
    times = {name: statistics.median(taken) for name, taken in _milliseconds(sides, 15).items()}
    best = min(times, key=lambda name: times[name])
    return {best: sides[best]}


def _milliseconds(sides: dict[str, Side], rounds: int) -> dict[str, list[float]]:
    calls = {name: side.call for name, side in sides.items()}
    taken = in_turn(calls, rounds=rounds, warmup=3, clock=time.process_time)
    return {name: [1000 * one for one in seconds] for name, seconds in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer rounds, and no slow A")
    parser.add_argument("--minutes", type=float, help="begin no comparison after so many; the same command goes on")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name = "implicit_step_short" if arguments.short else "implicit_step"
    runs = FinishedRuns(RESULTS / f"{name}.rows.jsonl", arguments.minutes)
    try:
        rows = step_rows(30, runs, ("easy",)) if arguments.short else step_rows(200, runs)
    except OutOfTimeError:
        print("out of time; the same command goes on")
        return
    write_results(name, rows, step_targets(rows))


if __name__ == "__main__":
    main()
