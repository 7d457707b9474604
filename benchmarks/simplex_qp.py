"""Simplex-constrained least squares at F = 32, K = 128, forward and backward, beside general differentiable QP layers.

    python -m benchmarks.simplex_qp --short     a minute or two
    python -m benchmarks.simplex_qp             several minutes, with 10,000 problems against Clarabel

All sides run on one thread, in one process, in turn. The peers come with `pip install -r benchmarks/peers.txt`; one that is
absent is named and its figures are left out. They are handed the K x K quadratic form, with the codebook shared by the batch, in
float64, at their own default tolerances; each solves as many problems a call as serves it best of those tried, and its time is
a problem's. Their gradients of rows and codebook are compared with ours, so that all do the same work.

Rows and codes are normal with unit variance; the prior of a row is its nearest code, and `strength` is 0.1 of the codes'
mean squared length.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import RESULTS, in_turn, spread, target, write_results
from featherlight.solvers import (
    ADMM,
    FISTA,
    ActiveSet,
    FrankWolfe,
    Relaxation,
    SimplexMethod,
    solve_simplex_least_squares,
)
from featherlight.solvers.simplex_qp import compiled
from tests.oracles.simplex_qp import by_clarabel, objective

DIM, NUM_CODES, PART = 32, 128, 0.1
ROWS = 4096
ASKED = {"ProxQP": 50.0, "qpth": 300.0, "cvxpylayers": 500.0}
MODULES = {"ProxQP": "proxsuite", "qpth": "qpth", "cvxpylayers": "cvxpylayers"}
BATCHES = {"ProxQP": (16, 64), "qpth": (16, 64), "cvxpylayers": (8, 32)}
Layer = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""From rows, codes, strength and one-hot priors to shares of all codes."""


def sample(
    num_rows: int, dtype: torch.dtype, *, num_codes: int = NUM_CODES, dim: int = DIM, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, codes and strength, which all need gradients."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(num_rows, dim, generator=generator, dtype=dtype)
    codebook = torch.randn(num_codes, dim, generator=generator, dtype=dtype)
    strength = PART * codebook.square().sum(1).mean()
    return z.requires_grad_(), codebook.requires_grad_(), strength.requires_grad_()


def quadratic(z: Tensor, codebook: Tensor, strength: Tensor, prior: Tensor) -> tuple[Tensor, ...]:
    """Q, q, G, h, A, b of a general QP layer."""
    num_codes = len(codebook)
    identity = torch.eye(num_codes, dtype=z.dtype)
    form = 2 * (codebook @ codebook.T + strength * identity)
    linear = -2 * (z @ codebook.T + strength * prior)
    ones = torch.ones(1, dtype=z.dtype)
    return form, linear, -identity, torch.zeros(num_codes, dtype=z.dtype), ones.expand(1, num_codes), ones


def qpth_layer() -> Layer:
    from qpth.qp import QPFunction  # pyright: ignore[reportMissingImports]

    def solve(z: Tensor, codebook: Tensor, strength: Tensor, prior: Tensor) -> Tensor:
        return QPFunction(verbose=-1, check_Q_spd=False)(*quadratic(z, codebook, strength, prior))

    return solve


def proxqp_layer() -> Layer:
    from proxsuite.torch.qplayer import QPFunction  # pyright: ignore[reportMissingImports]

    def solve(z: Tensor, codebook: Tensor, strength: Tensor, prior: Tensor) -> Tensor:
        form, linear, inequalities, high, equalities, value = quadratic(z, codebook, strength, prior)
        low = torch.full_like(high, -1e20)
        return QPFunction()(form, linear, equalities, value, inequalities, low, high)[0]

    return solve


def cvxpylayers_layer() -> Layer:
    import cvxpy  # pyright: ignore[reportMissingImports]
    from cvxpylayers.torch.cvxpylayer import CvxpyLayer  # pyright: ignore[reportMissingImports]

    p, z_, e_ = cvxpy.Variable(NUM_CODES), cvxpy.Parameter(DIM), cvxpy.Parameter(NUM_CODES)
    columns, root = cvxpy.Parameter((DIM, NUM_CODES)), cvxpy.Parameter(nonneg=True)
    cost = cvxpy.sum_squares(z_ - columns @ p) + cvxpy.sum_squares(root * p - e_)
    problem = cvxpy.Problem(cvxpy.Minimize(cost), [p >= 0, cvxpy.sum(p) == 1])  # pyright: ignore[reportArgumentType]
    layer = CvxpyLayer(problem, parameters=[z_, e_, columns, root], variables=[p])

    def solve(z: Tensor, codebook: Tensor, strength: Tensor, prior: Tensor) -> Tensor:
        return layer(z, strength.sqrt() * prior, codebook.T, strength.sqrt())[0]

    return solve


LAYERS = {"ProxQP": proxqp_layer, "qpth": qpth_layer, "cvxpylayers": cvxpylayers_layer}


def peer_call(layer: Layer, num_rows: int) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward of a batch."""
    z, codebook, strength = sample(num_rows, torch.float64)
    prior = torch.nn.functional.one_hot(torch.cdist(z, codebook).argmin(1), NUM_CODES).double()

    def call() -> tuple[Tensor, ...]:
        shares = layer(z, codebook, strength, prior)
        values = shares @ codebook
        return values.detach(), *torch.autograd.grad((values - z.detach()).square().sum(), (z, codebook))

    return call


def our_call(
    method: SimplexMethod, num_rows: int, dtype: torch.dtype, *, backward: bool = True, **shape: int
) -> Callable[[], tuple[Tensor, ...]]:
    """Forward, and backward if asked for, of a batch."""
    z, codebook, strength = sample(num_rows, dtype, **shape)

    def call() -> tuple[Tensor, ...]:
        if not backward:
            with torch.no_grad():
                return (solve_simplex_least_squares(z, codebook, strength, method=method).values_NF,)
        values = solve_simplex_least_squares(z, codebook, strength, method=method).values_NF
        return values.detach(), *torch.autograd.grad((values - z.detach()).square().sum(), (z, codebook))

    return call


def best_batch(name: str, layer: Layer) -> int:
    """The number of problems a call at which a peer is fastest a problem."""
    times = {}
    for size in BATCHES[name]:
        call = peer_call(layer, size)
        call()
        began = time.perf_counter()
        call()
        times[size] = (time.perf_counter() - began) / size
    return min(times, key=lambda size: times[size])


def peers(rounds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and targets of all layers that are installed, one call of each in turn with ours."""
    sizes, sides = {}, {"exact, float32": our_call(ActiveSet(), ROWS, torch.float32)}
    sides["exact, float64"] = our_call(ActiveSet(), ROWS, torch.float64)
    for name, make in LAYERS.items():
        if importlib.util.find_spec(MODULES[name]) is None:
            print(f"{name} is absent: install benchmarks/peers.txt to have it measured")
            continue
        layer = make()
        sizes[name] = best_batch(name, layer)
        sides[name] = peer_call(layer, sizes[name])
        theirs, ours = sides[name](), our_call(ActiveSet(), sizes[name], torch.float64)()
        off = [float((a - b).norm() / b.norm()) for a, b in zip(theirs, ours, strict=True)]
        print(
            f"{name}: values, gradient of rows, of codes differ from ours by {off[0]:.1e}, {off[1]:.1e}, {off[2]:.1e}"
        )
    seconds = in_turn(sides, rounds=rounds)
    rows, targets = [], []
    for name, values in seconds.items():
        size = sizes.get(name, ROWS)
        each = [1e6 * s / size for s in values]
        rows.append({"kind": "forward and backward", "side": name, "batch": size, "microseconds": spread(each)})
        print(f"{name:16} {statistics.median(each):10.1f} us a problem, forward and backward")
        if name in ASKED:
            ours = [1e6 * s / ROWS for s in seconds["exact, float32"]]
            times = statistics.median([a / b for a, b in zip(each, ours, strict=True)])
            targets.append(target(f"faster than {name}, forward + backward", times, ">=", ASKED[name], "times"))
    fastest = statistics.median([1e6 * s / ROWS for s in seconds["exact, float32"]])
    targets.append(target("exact, float32, forward + backward", fastest, "<=", 10, "us a problem and core"))
    return rows, targets


def methods(rounds: int) -> list[dict[str, Any]]:
    """All methods at the same shape; two codebook sizes more for those meant for use."""
    shapes = [(NUM_CODES, DIM, ROWS), (1024, DIM, ROWS // 2), (4096, 64, ROWS // 8)]
    found = []
    for num_codes, dim, num_rows in shapes:
        used: dict[str, SimplexMethod] = {"exact": ActiveSet()}
        used |= {f"{k} codes": FrankWolfe(max_codes=k) for k in (2, 4, 8)}
        if num_codes == NUM_CODES:
            used |= {"relaxed": Relaxation(), "FISTA": FISTA(), "ADMM": ADMM()}
        for part, backward in (("forward", False), ("forward and backward", True)):
            sides = {
                name: our_call(one, num_rows, torch.float32, backward=backward, num_codes=num_codes, dim=dim)
                for name, one in used.items()
            }
            for name, values in in_turn(sides, rounds=rounds).items():
                each = spread([1e6 * s / num_rows for s in values])
                found.append(
                    {
                        "kind": part,
                        "side": name,
                        "codes": num_codes,
                        "dim": dim,
                        "batch": num_rows,
                        "microseconds": each,
                    }
                )
                print(f"K {num_codes:5} F {dim:3} {name:8} {part:21} {each['median']:9.2f} us")
    return found


def batched_path(rounds: int) -> dict[str, Any]:
    """The exact method without the compiled kernels."""
    installed = compiled.kernels_installed
    compiled.kernels_installed = lambda: False  # type: ignore[assignment]
    try:
        call = our_call(ActiveSet(), ROWS // 4, torch.float32)
        each = spread([4e6 * s / ROWS for s in in_turn({"torch": call}, rounds=rounds)["torch"]])
    finally:
        compiled.kernels_installed = installed
    print(f"exact without kernels {each['median']:.1f} us")
    return {"kind": "forward and backward", "side": "exact, torch alone", "batch": ROWS // 4, "microseconds": each}


def gaps(num_problems: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The largest gap to Clarabel's objective, in parts of ||z||^2, over problems at three strengths."""
    found, targets = [], []
    for dtype, goal in ((torch.float32, 1e-5), (torch.float64, 1e-9)):
        worst, worst_certified = -1.0, 0.0
        for seed, part in enumerate((1e-3, PART, 10.0)):
            z, codebook, _ = (x.detach() for x in sample(num_problems // 6, dtype, seed=seed))
            strength = part * float(codebook.square().sum(1).mean())
            solution = solve_simplex_least_squares(z, codebook, strength)
            prior = torch.cdist(z, codebook).argmin(1).tolist()
            shares = torch.zeros(len(z), NUM_CODES, dtype=torch.float64)
            shares.scatter_add_(1, solution.indices_Nk.clamp(min=0), solution.weights_Nk.double())
            for n, p in enumerate(shares / shares.sum(1, keepdim=True)):
                theirs = by_clarabel(z[n], codebook, strength, prior[n])
                values = [objective(x, z[n], codebook, strength, prior[n]) for x in (p, theirs)]
                worst = max(worst, (values[0] - values[1]) / float(z[n].double().square().sum()))
            worst_certified = max(worst_certified, float((solution.gap_N / z.square().sum(1)).max()))
        name = str(dtype).removeprefix("torch.")
        found.append({"kind": "gap to Clarabel", "side": name, "problems": 3 * (num_problems // 6), "worst": worst,
                      "worst_certified": worst_certified})  # fmt: skip
        targets.append(target(f"gap to Clarabel over ||z||^2, {name}", worst, "<=", goal, ""))
    return found, targets


def picture(rows: list[dict[str, Any]]) -> None:
    """Microseconds a problem of all sides at F = 32, K = 128."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row["kind"] == "forward and backward" and row.get("codes", NUM_CODES) == NUM_CODES]
    shown.sort(key=lambda row: row["microseconds"]["median"])
    figure, axes = pyplot.subplots(figsize=(7, 0.4 * len(shown) + 1.2))
    medians = [row["microseconds"]["median"] for row in shown]
    bars = axes.barh(
        [row["side"] for row in shown], medians, color=["C1" if r["side"] in ASKED else "C0" for r in shown]
    )
    axes.bar_label(bars, labels=[f" {value:,.3g}" for value in medians])
    axes.set_xscale("log")
    axes.set_xlim(right=4 * max(medians))
    axes.set_xlabel(f"microseconds a problem and core, forward and backward (F = {DIM}, K = {NUM_CODES})")
    axes.invert_yaxis()
    figure.tight_layout()
    figure.savefig(RESULTS / "simplex_qp.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer rounds, and 600 problems against Clarabel")
    short = parser.parse_args().short
    torch.set_num_threads(1)
    rounds = 3 if short else 9
    rows, targets = peers(rounds)
    rows += methods(rounds)
    rows.append(batched_path(rounds))
    by_gap, more = gaps(600 if short else 20_004)
    write_results("simplex_qp", rows + by_gap, targets + more)
    picture(rows)


if __name__ == "__main__":
    main()
