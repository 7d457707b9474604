"""Implicit models: sequential training beside torchdeq, torchidl, backpropagation and an MLP; the speed of a step.

    python -m benchmarks.implicit --short        MNIST with one seed, one table, two functions, and the steps
    python -m benchmarks.implicit --minutes 5    goes on for so long with what is not done yet
    python -m benchmarks.implicit --write        results and picture of the rows that are there

One thread, CPU-seconds of the process from rows to model. Each side chooses among four settings or more by validation rows
of a seed of its own: of those within 2% of the best score the quickest. The loops' schedules are lengthened fourfold for as
long as that takes more than 2% off the score and a run takes less than `MOST_SECONDS`. Peers come with `pip install -r
benchmarks/peers.txt`; one that is absent is named and left out. Rows are kept as they come, and a run that is stopped goes on.
"""

import argparse
import functools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import implicit_steps
from benchmarks.common import RESULTS, FinishedRuns, OutOfTimeError, Row, target, write_results
from benchmarks.implicit_sides import Predict, Problem, Settings, is_there, train
from featherlight.recipes.implicit import data as sets
from featherlight.recipes.implicit.data import Rows

SEEDS = (0, 1, 2, 3, 4)
TABLES = ("concrete", "energy", "kin8nm", "power", "wine_red", "yacht")
FUNCTIONS = ("sine", "ripple", "kink", "saw", "cone")
SIDES = ("sequential", "MLP", "triangular", "Jacobian-free", "implicit", "torchdeq", "torchidl")
MOST_SECONDS = 20.0
_NEAR = 1.02
_SEARCH_SEED = 1000


def mnist_settings(side: str) -> list[Settings]:
    """Four of each side, all of two passes; of three or fewer for the sequential side."""
    if side == "sequential":
        return [
            {"directions": 50, "epochs": e, "batch": b, "lr": 1e-2, "read_out_steps": 2, "blocks": [84, 16]}
            for e in (2, 3)
            for b in (256, 512)
        ]
    own: list[dict[str, Any]] = (
        [{"solver": one} for one in ("anderson", "fixed_point_iter")] if side == "torchdeq" else [{}]
    )
    if side == "MLP on directions":
        return [{"directions": 50, "batch": 256, "steps": 234 * e, "lr": lr} for e in (2, 3) for lr in (5e-3, 1e-2)]
    batches = (128,) if side == "torchdeq" else (128, 256)
    return [{"batch": b, "steps": 2 * (60_000 // b), "lr": lr} | o for b in batches for lr in (5e-3, 1e-2) for o in own]


def table_settings(side: str, steps: int) -> list[Settings]:
    """Four of each side that is trained by a loop of `steps`, which then go up; ten of sequential, in all."""
    if side == "sequential":
        pairs = ((1e-4, 1e-3), (1e-3, 1e-2), (1e-1, 1e-1), (1e-1, 1.0), (1.0, 10.0))
        return [{"ridge": r, "decay": d, "steps": s, "blocks": [40, 10]} for r, d in pairs for s in (40, 120)]
    if side == "torchdeq":
        pairs = [(lr, solver) for lr in (3e-3, 1e-2) for solver in ("anderson", "fixed_point_iter")]
        return [{"batch": 128, "steps": steps, "lr": lr, "solver": solver} for lr, solver in pairs]
    return [{"batch": 128, "steps": steps, "lr": lr} for lr in (1e-3, 3e-3, 1e-2, 3e-2)]


def function_settings(side: str, steps: int) -> list[Settings]:
    """As `table_settings`, with next to no regularisation."""
    if side == "sequential":
        return [{"ridge": r, "decay": r, "steps": s, "blocks": [20] * 5} for r in (1e-9, 1e-11) for s in (10, 30)]
    return table_settings(side, steps)


@functools.cache
def mnist() -> tuple[Problem, Rows, Problem, Rows]:
    """The problem with all rows, test rows, the problem to choose by and its validation rows."""
    whole = sets.images("mnist", 1 / 12)
    assert whole.test is not None
    x, y = torch.cat((whole.train.inputs, whole.valid.inputs)), torch.cat((whole.train.targets, whole.valid.targets))
    of = Problem(x=x, y=y, outputs=10, states=100, activation="relu")
    less = Problem(x=whole.train.inputs, y=whole.train.targets, outputs=10, states=100, activation="relu")
    return of, whole.test, less, whole.valid


def table(name: str, split: int) -> tuple[Problem, Rows, Problem, Rows]:
    """As `mnist`; in units of the training rows."""
    data = sets.tabular(name, target=None, split=split, valid_fraction=0.2, seed=0)
    assert data.test is not None
    x, y = torch.cat((data.train.inputs, data.valid.inputs)), torch.cat((data.train.targets, data.valid.targets))
    (mean, spread), (center, size) = ((one.mean(0), one.std(0).clamp(min=1e-9)) for one in (x, y))

    def units(rows: Rows) -> Rows:
        return Rows(inputs=((rows.inputs - mean) / spread).float(), targets=(rows.targets - center) / size)

    parts = [units(one) for one in (Rows(inputs=x, targets=y), data.test, data.train, data.valid)]
    of, less = (Problem(x=p.inputs, y=p.targets, outputs=1, states=50, activation="tanh") for p in (parts[0], parts[2]))
    return of, parts[1], less, parts[3]


def function(name: str, seed: int) -> tuple[Problem, Rows, Problem, Rows]:
    """100 points, of which all are learned; settings are chosen by the error on them, which is what interpolation is about."""
    data = sets.interpolation(name, num_points=100, seed=seed)
    assert data.test is not None
    train_rows, test = (Rows(inputs=p.inputs.float(), targets=p.targets) for p in (data.train, data.test))
    phi = "tanh" if name in ("sine", "ripple") else "relu"
    of = Problem(x=train_rows.inputs, y=train_rows.targets, outputs=1, states=100, activation=phi)
    return of, test, of, train_rows


def score(problem: Problem, predict: Predict, rows: Rows) -> float:
    """Error in percent, or the root of the mean squared error in spreads of the target."""
    found = predict(rows.inputs)
    if problem.has_classes:
        return 100 * float((found.argmax(1) != rows.targets).double().mean())
    return float((found.double() - rows.targets).square().mean().sqrt())


class Comparison:
    """All rows of one kind of problem."""

    def __init__(self, done: FinishedRuns, seeds: Sequence[int]) -> None:
        self.done, self.seeds = done, seeds

    def side(self, kind: str, name: str, side: str) -> None:
        """Chooses the side's settings, and trains it with each seed."""
        if not is_there(side):
            print(f"{side} is absent: install benchmarks/peers.txt to have it measured")
            return
        settings = self._choose(kind, name, side)
        for seed in self.seeds:
            key = {"kind": kind, "name": name, "side": side, "seed": seed}
            self.done.get(key, lambda seed=seed: self._final(kind, name, side, settings, seed), _line)

    def _final(self, kind: str, name: str, side: str, settings: Settings, seed: int) -> Row:
        problem, test, _, _ = _load(kind, name, seed)
        predict, seconds = train(side, problem, settings, seed)
        own = Rows(inputs=problem.x[:5000], targets=problem.y[:5000])
        fit = score(problem, predict, own)
        return {"score": score(problem, predict, test), "fit": fit, "seconds": seconds, "settings": dict(settings)}

    def _choose(self, kind: str, name: str, side: str) -> Settings:
        if kind == "mnist" or side == "sequential":
            rows = self._tried(kind, name, side, _settings(kind, side, 1000))
        else:
            rows, steps, best = [], 1000, float("inf")
            while True:
                more = self._tried(kind, name, side, _settings(kind, side, steps))
                rows += more
                now = min(row["score"] for row in more)
                if not now < best / _NEAR or 4 * min(row["seconds"] for row in more) > MOST_SECONDS:
                    break
                steps, best = 4 * steps, now
        best = min(row["score"] for row in rows)
        near = [row for row in rows if row["score"] <= _NEAR * best]
        return min(near, key=lambda row: row["seconds"])["settings"]

    def _tried(self, kind: str, name: str, side: str, choices: Sequence[Settings]) -> list[Row]:
        found = []
        for settings in choices:
            key = {"kind": f"{kind} search", "name": name, "side": side, "settings": dict(settings)}

            def make(settings: Settings = settings) -> Row:
                _, _, problem, valid = _load(kind, name, 0)
                predict, seconds = train(side, problem, settings, _SEARCH_SEED)
                return {"score": score(problem, predict, valid), "seconds": seconds}

            found.append(self.done.get(key, make, _line))
        return found


def _load(kind: str, name: str, seed: int) -> tuple[Problem, Rows, Problem, Rows]:
    if kind == "mnist":
        return mnist()
    return table(name, seed) if kind == "table" else function(name, seed)


def _settings(kind: str, side: str, steps: int) -> list[Settings]:
    if kind == "mnist":
        return mnist_settings(side)
    return table_settings(side, steps) if kind == "table" else function_settings(side, steps)


def _line(row: Row) -> str:
    if "score" not in row:
        return " ".join(f"{name} {value}" for name, value in row.items())
    return f"{row['kind']:16} {row['name']:9} {row['side']:18} {row['score']:10.4g} {row['seconds']:8.2f} s {row.get('settings')}"


def everything(done: FinishedRuns, *, short: bool, part: str | None, side: str | None) -> None:
    """All that is not done yet, or a part or side of it; raises OutOfTimeError."""
    if part in (None, "steps") and side is None:
        implicit_steps.measure(done, _line)
    comparison = Comparison(done, SEEDS[:1] if short else SEEDS)
    for kind, name, own in _plan(short):
        if part in (None, kind) and side in (None, own):
            comparison.side(kind, name, own)
    if part in (None, "sparsity") and side is None:
        implicit_steps.measure_sparsity(done, _line)


def _plan(short: bool) -> Iterator[tuple[str, str, str]]:
    """Kind, name and side of every comparison."""
    yield from (("mnist", "mnist", side) for side in (*SIDES, "MLP on directions"))
    sides = ("sequential", "MLP", "torchdeq") if short else ("sequential", "MLP", "triangular", "torchdeq", "implicit")
    yield from (("table", name, side) for name in (TABLES[:1] if short else TABLES) for side in sides)
    names = FUNCTIONS[:3:2] if short else FUNCTIONS
    yield from (("function", name, side) for name in names for side in ("sequential", "MLP", "torchdeq"))


def medians(rows: Sequence[Row], kind: str, name: str, side: str) -> dict[str, float] | None:
    """Of score, fit and seconds over the seeds; None where the side was not run."""
    of = [row for row in rows if (row["kind"], row.get("name"), row.get("side")) == (kind, name, side)]
    if not of:
        return None
    return {what: statistics.median(row[what] for row in of) for what in ("score", "fit", "seconds")}


def targets(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Every figure that was asked for and can be had from the rows."""
    ours, tied = (medians(rows, "mnist", "mnist", side) for side in ("sequential", "triangular"))
    if ours is not None:
        yield target("MNIST, sequential, test error", ours["score"], "<=", 2.75, "%")
        yield target("MNIST, sequential, training", ours["seconds"], "<=", 2.0, "CPU-s")
    if ours is not None and tied is not None:
        yield target("MNIST, sequential over backprop, CPU time", ours["seconds"] / tied["seconds"], "<=", 1.0, "times")
    yield from _table_targets(rows)
    fits = [medians(rows, "function", name, "sequential") for name in FUNCTIONS]
    found = [one["fit"] ** 2 for one in fits if one is not None]
    if found:
        what = f"functions, sequential, worst mean squared training error of {len(found)}"
        yield target(what, max(found), "<=", 1e-8, "")
    yield from implicit_steps.targets(rows)


def _table_targets(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    for side in ("MLP", "torchdeq"):
        pairs = [(medians(rows, "table", name, "sequential"), medians(rows, "table", name, side)) for name in TABLES]
        both = [(a, b) for a, b in pairs if a is not None and b is not None]
        if not both:
            continue
        better = sum(a["score"] <= b["score"] for a, b in both) / len(both)
        yield target(f"tables where sequential is no worse than {side}, of {len(both)}", better, ">=", 0.8, "of them")
        slowest = max(a["seconds"] / b["seconds"] for a, b in both)
        yield target(f"tables, sequential's CPU time over {side}'s, worst", slowest, "<=", 0.2, "times")


def picture(rows: Sequence[Row], path: Path) -> None:
    """Score against CPU time of each side, a panel a problem."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    of = [("mnist", "mnist")] + [("table", n) for n in TABLES] + [("function", n) for n in FUNCTIONS]
    sides = (*SIDES, "MLP on directions")
    shown = [(k, n) for k, n in of if any(medians(rows, k, n, s) for s in sides)]
    if not shown:
        return
    columns = min(4, len(shown))
    height = -(-len(shown) // columns)
    figure, axes = pyplot.subplots(height, columns, figsize=(3.2 * columns, 2.6 * height), squeeze=False)
    for panel, (kind, name) in zip(axes.flat, shown, strict=False):
        for number, side in enumerate(sides):
            found = medians(rows, kind, name, side)
            if found is not None:
                value = found["fit" if kind == "function" else "score"]
                panel.loglog([found["seconds"]], [max(value, 1e-16)], "o", color=f"C{number}", label=side)
        panel.set_title(
            {"mnist": "MNIST, test error, %", "function": f"{name}, training RMSE"}.get(kind, f"{name}, test RMSE")
        )
        panel.set_xlabel("CPU-seconds")
    for panel in axes.flat[len(shown) :]:
        panel.set_axis_off()
    handles: Mapping[str, Any] = {}
    for panel in axes.flat:
        handles = {**handles, **dict(zip(*panel.get_legend_handles_labels()[::-1], strict=True))}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=4, fontsize=8)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one seed, MNIST, one table and two functions")
    parser.add_argument("--minutes", type=float, help="begins no run after so many")
    parser.add_argument("--part", choices=("steps", "mnist", "table", "function", "sparsity"), help="this alone")
    parser.add_argument("--side", choices=(*SIDES, "MLP on directions"), help="this alone")
    parser.add_argument("--write", action="store_true", help="only writes what the rows say")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    name = "implicit_short" if asked.short else "implicit"
    done = FinishedRuns(RESULTS / f"{name}.rows.jsonl", asked.minutes)
    if not asked.write:
        try:
            everything(done, short=asked.short, part=asked.part, side=asked.side)
        except OutOfTimeError:
            print("out of time; run again to go on")
    write_results(name, done.rows, list(targets(done.rows)))
    picture(done.rows, RESULTS / f"{name}.svg")


if __name__ == "__main__":
    main()
