"""Box-constrained quadratics in batches, forward and backward, beside general differentiable solvers; unrolled updates.

    python -m benchmarks.convex --short     a few minutes
    python -m benchmarks.convex             ten minutes; goes on where it stopped

A finished shape is a line of results/convex.rows.jsonl and is not measured again. All sides run on one thread, in one process,
in turn, on the same programs in float64: a positive definite matrix an element, and gradients of linear term, matrix and both
bounds. The peers come with `pip install -r benchmarks/peers.txt`; one that is absent is named and its figures are left out.
Agreement is the largest difference from our steps and gradients, relative to the largest number of each. Peers are set to
agree to 1e-8 where their settings reach that; the defaults of cvxpylayers are measured too.
cvxpylayers without moreau cannot take a matrix as a parameter of a quadratic form: it is handed the Cholesky factor, and its
gradient is compared with that which ours has for the factor. As it solves the elements one after another, it is given the
first few of the batch; times are an element's.
"""

import argparse
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import RESULTS, FinishedRuns, OutOfTimeError, Row, in_turn, ratio, spread, target, write_results
from featherlight.solvers.convex import Box, DiagonalMetric, FullMetric, solve_convex_step
from featherlight.solvers.simplex_qp import compiled

SHAPES = ((10, 128), (50, 128), (100, 32))
ASKED = {"cvxpylayers": 30.0, "cvxpylayers + moreau": 5.0, "moreau": 2.0}
STEPS, UNROLLED = 5, (10, 128)
FEW = 4
Sample = tuple[Tensor, Tensor, Tensor, Tensor]
"""Matrix (or its factor), linear term and bounds."""
Solver = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def sample(n: int, batch: int, *, by_factor: bool = False) -> Sample:
    """Programs in which about half of the coordinates are at a bound."""
    generator = torch.Generator().manual_seed(n)
    kind: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    square = torch.randn(batch, n, n, **kind)
    matrix = square @ square.mT / n + 0.1 * torch.eye(n, dtype=torch.float64)
    if by_factor:
        matrix = torch.linalg.cholesky(matrix).mT.contiguous()
    half = 0.3 * torch.rand(batch, n, **kind) + 0.1
    tensors = (matrix, torch.randn(batch, n, **kind), -half, half.clone())
    return tuple(tensor.requires_grad_() for tensor in tensors)  # type: ignore[return-value]


def ours(matrix: Tensor, linear: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return solve_convex_step(linear, FullMetric(matrix), constraint=Box(low, high)).unwrap()


def by_torch(matrix: Tensor, linear: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Ours without the compiled kernels."""
    installed = compiled.kernels_installed
    compiled.kernels_installed = lambda: False  # type: ignore[assignment]
    try:
        return ours(matrix, linear, low, high)
    finally:
        compiled.kernels_installed = installed


def qpth(n: int, batch: int) -> Solver:
    from qpth.qp import QPFunction  # pyright: ignore[reportMissingImports]

    solver = QPFunction(verbose=-1, check_Q_spd=False, eps=1e-13, maxIter=40)
    eye, none = torch.eye(n, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    sides = torch.cat((eye, -eye)).expand(batch, 2 * n, n)
    return lambda matrix, linear, low, high: solver(matrix, linear, sides, torch.cat((high, -low), -1), none, none)


def moreau(n: int, batch: int) -> Solver:
    import moreau as peer  # pyright: ignore[reportMissingImports]
    from moreau import torch as module  # pyright: ignore[reportMissingImports]

    make: Any = module.Solver
    settings = peer.Settings(device="cpu", batch_size=batch, enable_grad=True)
    every = torch.arange(n)
    solver = make(
        n, 2 * n, torch.arange(n + 1) * n, every.repeat(n), torch.arange(2 * n + 1), every.repeat(2),
        cones=peer.Cones(num_nonneg_cones=2 * n), settings=settings,
    )  # fmt: skip
    signs = torch.cat((torch.ones(n, dtype=torch.float64), -torch.ones(n, dtype=torch.float64)))
    signs = signs.repeat(batch, 1)
    return lambda matrix, linear, low, high: (
        solver.solve(matrix.flatten(1), signs, linear, torch.cat((high, -low), 1)).x
    )


def cvxpylayer(n: int, *, form: str, bounded: bool = True, **settings: Any) -> Solver:
    import cvxpy
    from cvxpylayers.torch.cvxpylayer import CvxpyLayer

    d, linear, low, high = cvxpy.Variable(n), cvxpy.Parameter(n), cvxpy.Parameter(n), cvxpy.Parameter(n)
    matrix = cvxpy.Parameter((n, n), PSD=True) if form == "matrix" else cvxpy.Parameter((n, n))
    curved = cvxpy.quad_form(d, matrix) if form == "matrix" else cvxpy.sum_squares(matrix @ d)
    goal = cvxpy.Minimize(linear @ d + 0.5 * curved)  # pyright: ignore[reportArgumentType]
    problem = cvxpy.Problem(goal, [d >= low, d <= high] if bounded else [])
    given = [matrix, linear, low, high] if bounded else [matrix, linear]
    layer = CvxpyLayer(problem, given, [d], solver="MOREAU" if form == "matrix" else None)
    return lambda *tensors: layer(*tensors[: len(given)], solver_args=settings)[0]


SERIAL = {"n_jobs_forward": 1, "n_jobs_backward": 1}
TIGHT: dict[str, Any] = {"eps": 1e-12, "mode": "dense", **SERIAL}
PEERS: dict[str, tuple[str, bool, Callable[[int, int], Solver]]] = {
    "moreau": ("moreau", False, moreau),
    "cvxpylayers + moreau": ("moreau", False, lambda n, _: cvxpylayer(n, form="matrix")),
    "qpth": ("qpth", False, qpth),
    "cvxpylayers": ("cvxpylayers", True, lambda n, _: cvxpylayer(n, form="factor", **TIGHT)),
    "cvxpylayers, its tolerances": (
        "cvxpylayers",
        True,
        lambda n, _: cvxpylayer(n, form="factor", n_jobs_forward=1, n_jobs_backward=1),
    ),
}
"""Package, whether it takes the factor, and its solver for a shape."""


def call(solver: Solver, tensors: Sample) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward of a batch."""
    weights = torch.linspace(-1, 1, tensors[1].shape[1], dtype=torch.float64)

    def run() -> tuple[Tensor, ...]:
        step = solver(*tensors)
        return step.detach(), *torch.autograd.grad((step * weights).sum(), tensors)

    return run


def difference(theirs: tuple[Tensor, ...], mine: tuple[Tensor, ...], factor: Tensor | None) -> tuple[float, float]:
    """Of the steps, and the largest of all gradients, relative."""
    if factor is None:
        of_matrix, theirs = mine[1], (theirs[0], 0.5 * (theirs[1] + theirs[1].mT), *theirs[2:])
    else:
        of_matrix = factor.detach() @ (mine[1] + mine[1].mT)
    off = [
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(theirs, (mine[0], of_matrix, *mine[2:]), strict=True)
    ]
    return off[0], max(off[1:])


def installed(module: str) -> bool:
    if importlib.util.find_spec(module) is None:
        print(f"{module} is absent: install benchmarks/peers.txt to have it measured")
        return False
    return True


def box(n: int, batch: int, rounds: int) -> Row:
    """All sides at one shape: microseconds an element, ratios to ours, and agreement."""
    sides = {
        "featherlight": call(ours, sample(n, batch)),
        "featherlight, torch alone": call(by_torch, sample(n, batch)),
    }
    counts, agreement = dict.fromkeys(sides, batch), {}
    mine = sides["featherlight"]()
    for name, (module, by_factor, make) in PEERS.items():
        if not installed(module):
            continue
        counts[name] = FEW if by_factor else batch
        tensors = first(sample(n, batch, by_factor=by_factor), counts[name])
        sides[name] = call(make(n, batch), tensors)
        agreement[name] = difference(sides[name](), first(mine, counts[name]), tensors[0] if by_factor else None)
    seconds = in_turn(sides, rounds=rounds)
    each = {name: [1e6 * s / counts[name] for s in values] for name, values in seconds.items()}
    return {
        "microseconds": {name: spread(values) for name, values in each.items()},
        "times": {name: ratio(values, each["featherlight"]) for name, values in each.items()},
        "elements": counts,
        "agreement": agreement,
    }


def first(tensors: tuple[Tensor, ...], count: int) -> Any:
    """The first elements of all tensors; leaves stay leaves."""
    return tuple(x.detach()[:count].clone().requires_grad_(x.requires_grad) for x in tensors)


def targets_of(row: Row) -> list[dict[str, Any]]:
    """What was asked of a shape, for the peers that were there."""
    name = f"n {row['n']}, batch {row['batch']}: "
    asked = {peer: times for peer, times in ASKED.items() if peer in row["times"]}
    found = [
        target(f"{name}faster than {peer}", row["times"][peer]["median"], ">=", times, "times")
        for peer, times in asked.items()
    ]
    for peer in asked:
        found.append(target(f"{name}agreement with {peer}", max(row["agreement"][peer]), "<=", 1e-8, ""))
    return found


def unrolled(step: Callable[[Tensor, Tensor], Tensor], metric: Tensor, batch: int) -> Callable[[], tuple[Tensor, ...]]:
    """So many updates of a least-squares problem, and the gradient of the last loss with respect to the metric."""
    n = UNROLLED[0]
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(UNROLLED[1], n, n, generator=generator, dtype=torch.float64) / n**0.5
    start = torch.randn(UNROLLED[1], n, generator=generator, dtype=torch.float64)
    a, start = a[:batch], start[:batch]

    def run() -> tuple[Tensor, ...]:
        x = start
        for _ in range(STEPS):
            x = x + step(metric, (a.mT @ (a @ x[..., None]))[..., 0])
        return x.detach(), *torch.autograd.grad((a @ x[..., None]).square().sum(), metric)

    return run


def updates(rounds: int) -> Row:
    """Unrolled updates with a full metric beside cvxpylayers, and with a diagonal one."""
    n, batch = UNROLLED
    matrix = sample(n, batch)[0].detach() + 3 * torch.eye(n, dtype=torch.float64)
    factor = torch.linalg.cholesky(matrix[:FEW]).mT.contiguous().requires_grad_()
    matrix.requires_grad_()
    diagonal = matrix.detach().diagonal(dim1=1, dim2=2).clone().requires_grad_()
    sides = {
        "featherlight": unrolled(lambda h, m: solve_convex_step(m, FullMetric(h)).step_BN, matrix, batch),
        "featherlight, diagonal": unrolled(
            lambda h, m: solve_convex_step(m, DiagonalMetric(h)).step_BN, diagonal, batch
        ),
    }
    counts, agreement = dict.fromkeys(sides, batch * STEPS), {}
    if installed("cvxpylayers"):
        layer = cvxpylayer(n, form="factor", bounded=False, eps=1e-9, **SERIAL)
        counts["cvxpylayers"] = FEW * STEPS
        sides["cvxpylayers"] = unrolled(lambda *tensors: layer(*tensors), factor, FEW)
        mine, theirs = first(sides["featherlight"](), FEW), sides["cvxpylayers"]()
        of_factor = factor.detach() @ (mine[1] + mine[1].mT)
        pairs = zip(theirs, (mine[0], of_factor), strict=True)
        agreement["cvxpylayers"] = [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]
    seconds = in_turn(sides, rounds=rounds)
    each = {name: [1e6 * s / counts[name] for s in values] for name, values in seconds.items()}
    return {
        "microseconds": {name: spread(values) for name, values in each.items()},
        "times": {name: ratio(values, each["featherlight"]) for name, values in each.items()},
        "times_diagonal": {name: ratio(values, each["featherlight, diagonal"]) for name, values in each.items()},
        "agreement": agreement,
    }


def line(row: Row) -> str:
    """A finished row."""
    head = f"{row['kind']}, n {row['n']}, batch {row['batch']}: microseconds an element (and how far from ours)"
    lines = [head]
    for name, value in row["microseconds"].items():
        off = ", ".join(f"{x:.1e}" for x in row["agreement"].get(name, ()))
        lines.append(f"  {name:28} {value['median']:10.1f}  {off}")
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]]) -> None:
    """Microseconds an element of all sides, a panel a shape."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(SHAPES), figsize=(12, 3), sharey=True)
    for axes, (n, batch) in zip(panels, SHAPES, strict=True):
        row = next(row for row in rows if row["kind"] == "box" and (row["n"], row["batch"]) == (n, batch))
        medians = [value["median"] for value in row["microseconds"].values()]
        colors = ["C0" if side.startswith("featherlight") else "C1" for side in row["microseconds"]]
        bars = axes.barh(list(row["microseconds"]), medians, color=colors)
        axes.bar_label(bars, labels=[f" {value:,.3g}" for value in medians])
        axes.set_xscale("log")
        axes.set_xlim(right=8 * max(medians))
        axes.set_title(f"n = {n}, batch {batch}")
        axes.set_xlabel("microseconds an element")
    panels[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(RESULTS / "convex.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer rounds, in a file of its own")
    parser.add_argument("--minutes", type=float, help="begins no further shape after so many")
    arguments = parser.parse_args()
    name, rounds = ("convex_short", 3) if arguments.short else ("convex", 9)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    finished = FinishedRuns(RESULTS / f"{name}.rows.jsonl", arguments.minutes)
    rows = []
    try:
        for n, batch in SHAPES:
            key = {"kind": "box", "n": n, "batch": batch, "rounds": rounds}
            rows.append(finished.get(key, lambda n=n, batch=batch: box(n, batch, rounds), line))
        key = {"kind": "unrolled", "n": UNROLLED[0], "batch": UNROLLED[1], "rounds": rounds}
        rows.append(finished.get(key, lambda: updates(rounds), line))
    except OutOfTimeError:
        print("the minutes are used up; the same command goes on")
        return
    targets = [one for row in rows[:-1] for one in targets_of(row)]
    last = rows[-1]
    if "cvxpylayers" in last["times"]:
        times = last["times"]["cvxpylayers"]["median"], last["times_diagonal"]["cvxpylayers"]["median"]
        targets.append(target("unrolled updates, full metric: faster than cvxpylayers", times[0], ">=", 500, "times"))
        targets.append(
            target("unrolled updates, diagonal metric: faster than cvxpylayers", times[1], ">=", 500, "times")
        )
        off = max(last["agreement"]["cvxpylayers"])
        targets.append(target("unrolled updates: agreement with cvxpylayers", off, "<=", 1e-8, ""))
    write_results(name, rows, targets)
    if not arguments.short:
        picture(rows)


if __name__ == "__main__":
    main()
