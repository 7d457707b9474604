"""Vector quantizers in one autoencoder: error, rate, use of the codebook, and time, vector-quantize-pytorch beside.

    python -m benchmarks.vector_quantizers --short                       a few minutes
    python -m benchmarks.vector_quantizers                               hours; goes on where it stopped
    python -m benchmarks.vector_quantizers --part table --data cifar10   one part
    python -m benchmarks.vector_quantizers --part report                 tables and pictures of what is there

The CIFAR-10 that is used here is stored as JPEG (quality 75), so its figures are not those of CIFAR-10; the error on 1,000
lossless images, none of which is trained on, stands beside. All runs have the same autoencoder, images, batches and
learning rate. Of the settings of a method (as many for each that has any) the one with the least error on 1,000 images
and a seed that are not reported is taken, on CIFAR-10; GTSRB takes the same. A finished run is a line of
results/vector_quantizers.rows.jsonl and is not made again. Milliseconds of the table depend on what else the machine does;
those of the part `speed` are taken side by side.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.common import RESULTS, FinishedRuns, OutOfTimeError, spread, target, write_results
from benchmarks.quantizer_methods import METHODS, RATES, Method, Setting, scq, vq
from benchmarks.quantizer_runs import Row, one_run
from benchmarks.quantizer_speed import largest_allocation, rows_of_speed
from featherlight.nn.vector_quantizers import Sparse

NAME = "vector_quantizers"
TUNING_SEED = 100
SIZES = (128, 512, 1024, 4096)
BOOKS: Mapping[str, Callable[[int], Method]] = {
    "VQ": lambda size: Method(settings={"": Setting(vq(size))}, num_codes=size),
    "SCQ, k = 2": lambda size: Method(settings={"": Setting(scq(Sparse(2), 0.01, size), 10.0)}, num_codes=size),
    "SCQ, k = 4": lambda size: Method(settings={"": Setting(scq(Sparse(4), 0.01, size), 10.0)}, num_codes=size),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a command runs."""

    data: Sequence[str] = ("cifar10", "gtsrb")
    seeds: Sequence[int] = (0, 1, 2)
    epochs: int = 20
    train: int = 1000
    sizes: Sequence[int] = SIZES
    tune: bool = True
    rounds: int = 30

    def key(self, part: str, data: str, method: str, setting: str, seed: int) -> Row:
        names = {"part": part, "data": data, "method": method, "setting": setting, "seed": seed}
        return names | {"epochs": self.epochs, "train": self.train}

    def setting(self, rows: FinishedRuns, name: str) -> str | None:
        """The setting with the least held-out error on the tuning seed; None before all are tried."""
        settings = METHODS[name].settings
        if len(settings) == 1 or not self.tune:
            return next(iter(settings))
        tried = {one: rows.find(self.key("table", "cifar10", name, one, TUNING_SEED)) for one in settings}
        done = {one: row["held_out_mse"] for one, row in tried.items() if row is not None}
        return min(done, key=lambda one: done[one]) if len(done) == len(settings) else None

    def chosen(self, rows: FinishedRuns, data: str, name: str) -> list[Row]:
        """The reported runs of a method that are there."""
        setting = self.setting(rows, name)
        found = [rows.find(self.key("table", data, name, setting, seed)) for seed in self.seeds if setting is not None]
        return [row for row in found if row is not None]


def _run(rows: FinishedRuns, key: Row, method: Method) -> None:
    rows.get(key, lambda: one_run(key, method), _line)


def _line(row: Row) -> str:
    return (
        f"{row['part']:8} {row['data']:7} {row['method']:34} {row['setting']:30} seed {row['seed']:<3} "
        f"MSE {row['mse']:.6f} at {row['bits']:.1f} bits in {row['seconds']:.0f} s"
    )


def table(plan: Plan, rows: FinishedRuns) -> None:
    """All methods on all data, trials first, then seed by seed."""
    for name, method in METHODS.items() if plan.tune else ():
        for setting in method.settings if len(method.settings) > 1 else ():
            _run(rows, plan.key("table", "cifar10", name, setting, TUNING_SEED), method)
    for data in plan.data:
        for seed in plan.seeds:
            for name, method in METHODS.items():
                setting = plan.setting(rows, name)
                assert setting is not None, "all were tried"
                _run(rows, plan.key("table", data, name, setting, seed), method)


def codebook(plan: Plan, rows: FinishedRuns) -> None:
    """How much of codebooks of several sizes is used."""
    for seed in plan.seeds:
        for size in plan.sizes:
            for name, make in BOOKS.items():
                _run(rows, plan.key("codebook", plan.data[0], name, f"K = {size}", seed), _renamed(make(size), size))


def _renamed(method: Method, size: int) -> Method:
    (setting,) = method.settings.values()
    return Method(settings={f"K = {size}": setting}, num_codes=size, num_stages=method.num_stages)


def rate(plan: Plan, rows: FinishedRuns) -> None:
    """Error at equal bits."""
    for seed in plan.seeds:
        for name, one in RATES.items():
            _run(rows, plan.key("rate", plan.data[0], name, "", seed), one.method)


def speed(plan: Plan, rows: FinishedRuns) -> None:
    """Times of all pairs, anew each time."""
    rows.rows = [row for row in rows.rows if row["part"] not in ("speed", "memory")]
    rows.path.write_text("".join(json.dumps(row) + "\n" for row in rows.rows))
    for row in [*rows_of_speed(plan.rounds), largest_allocation()]:
        rows.add(row)


def table_lines(plan: Plan, rows: FinishedRuns, data: str) -> list[Row]:
    """A line for each method: medians over seeds."""
    lines = []
    for name in METHODS:
        found = plan.chosen(rows, data, name)
        if not found:
            continue
        figures = {
            one: statistics.median(row[one] for row in found)
            for one in ("psnr", "hard_perplexity", "mass_perplexity", "share_in_use", "support_size", "relative_error")
        }
        line: Row = {"part": "table", "data": data, "method": name, "setting": found[0]["setting"]}
        line |= {"seeds": len(found), "bits": found[0]["bits"], "mse": spread([row["mse"] for row in found])}
        if data == "cifar10":
            line["lossless_mse"] = spread([row["lossless_mse"] for row in found])
        lines.append(line | figures | {"quantizer_ms": statistics.median(row["quantizer_ms"] for row in found)})
    return lines


def show(lines: Sequence[Row]) -> None:
    """The lines of one data set as a Markdown table."""
    name = {"cifar10": "CIFAR-10 (JPEG)", "gtsrb": "GTSRB"}[lines[0]["data"]]
    print(f"\n{name}, medians of {lines[0]['seeds']} seeds\n")
    print(
        "| quantizer | setting | test MSE x 1000 | PSNR | bits a position | hard / mass perplexity | error / variance | ms |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for line in lines:
        print(
            f"| {line['method']} | {line['setting']} | {1000 * line['mse']['median']:.3f} | {line['psnr']:.2f} | "
            f"{line['bits']:.1f} | {line['hard_perplexity']:.0f} / {line['mass_perplexity']:.0f} | "
            f"{line['relative_error']:.4f} | {line['quantizer_ms']:.1f} |"
        )


def targets_of(plan: Plan, rows: FinishedRuns) -> Iterator[dict]:
    """Every figure that was asked for and that the runs tell."""
    for data in plan.data:
        errors = {line["method"]: line["mse"]["median"] for line in table_lines(plan, rows, data)}
        one_code = [errors[name] for name in ("VQ", "VectorQuantize (peer)", "SimVQ") if name in errors]
        for name in ("SCQ, k = 2", "SCQ, k = 4"):
            if name in errors and one_code:
                name_of = f"{data}: test MSE of {name} over that of the best one-code VQ"
                yield target(name_of, errors[name] / min(one_code), "<=", 0.75, "")
    for line in book_lines(plan, rows):
        if line["method"] == "SCQ, k = 2":
            size = line["num_codes"]
            yield target(f"K = {size}: share of codes in use", line["share_in_use"], ">=", 0.99, "")
            yield target(f"K = {size}: mass perplexity over K", line["mass_perplexity"] / size, ">=", 0.7, "")
            yield target(f"K = {size}: hard perplexity over K", line["hard_perplexity"] / size, ">=", 0.5, "")
    best = best_at(rate_lines(plan, rows))
    for bits in sorted({bits for bits, _ in best}):
        if (bits, "SCQ") in best and (bits, "ResidualVQ (peer)") in best:
            residual = min(best[bits, side] for side in ("RVQ", "ResidualVQ (peer)") if (bits, side) in best)
            yield target(
                f"{bits} bits: MSE of SCQ over the best residual VQ", best[bits, "SCQ"] / residual, "<=", 0.95, ""
            )
    goals = {"VQ against VectorQuantize": 3.0, "SCQ": 1.0}
    for row in (row for row in rows.rows if row["part"] == "speed"):
        goal = next((goal for start, goal in goals.items() if row["pair"].startswith(start)), None)
        if goal is not None and (goal > 1 or row["mode"] == "training step"):
            yield target(f"{row['pair']}, {row['mode']}: time over ours", row["ratio"]["median"], ">=", goal, "times")
    for row in (row for row in rows.rows if row["part"] == "memory"):
        share = max(row["largest_megabytes"].values()) / row["vectors_by_codes_megabytes"]
        yield target("K = 16,384: largest allocation over a matrix of vectors by codes", share, "<=", 0.25, "")


def book_lines(plan: Plan, rows: FinishedRuns) -> list[Row]:
    """Use of codebooks: medians over seeds."""
    lines = []
    for name in BOOKS:
        for size in plan.sizes:
            keys = [plan.key("codebook", plan.data[0], name, f"K = {size}", seed) for seed in plan.seeds]
            if found := [row for key in keys if (row := rows.find(key)) is not None]:
                figures = ("mse", "hard_perplexity", "mass_perplexity", "share_in_use")
                line: Row = {"part": "codebook", "method": name, "num_codes": size, "seeds": len(found)}
                lines.append(line | {one: statistics.median(row[one] for row in found) for one in figures})
    return lines


def rate_lines(plan: Plan, rows: FinishedRuns) -> list[Row]:
    """Errors at equal bits: medians over seeds."""
    lines = []
    for name, one in RATES.items():
        keys = [plan.key("rate", plan.data[0], name, "", seed) for seed in plan.seeds]
        if found := [row for key in keys if (row := rows.find(key)) is not None]:
            line: Row = {"part": "rate", "method": name, "side": one.side, "at_most": one.bits, "seeds": len(found)}
            line |= {"bits": found[0]["bits"], "mse": statistics.median(row["mse"] for row in found)}
            lines.append(line)
    return lines


def best_at(lines: Sequence[Row]) -> dict[tuple[int, str], float]:
    """The least error of each side at each rate."""
    best: dict[tuple[int, str], float] = {}
    for line in lines:
        key = (line["at_most"], line["side"])
        best[key] = min(best.get(key, float("inf")), line["mse"])
    return best


def draw(plan: Plan, rows: FinishedRuns, path: Path) -> None:
    """Error against bits, of the table and at equal rates; use of codebooks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for line in table_lines(plan, rows, plan.data[0]):
        if line["method"] != "unquantized":
            left.plot(line["bits"], line["mse"]["median"], "o")
            left.annotate(line["method"], (line["bits"], line["mse"]["median"]), fontsize=7)
    left.set(xscale="log", xlabel="bits a position, 32 a share off a grid", ylabel="test MSE", title="CIFAR-10 (JPEG)")
    for side in ("RVQ", "ResidualVQ (peer)", "SCQ"):
        best = {bits: mse for (bits, one), mse in sorted(best_at(rate_lines(plan, rows)).items()) if one == side}
        middle.plot(list(best), list(best.values()), "o-", label=side)
    middle.set(xlabel="bits a position", ylabel="test MSE", title="at equal bits", yscale="log")
    middle.legend()
    for name in BOOKS:
        found = [line for line in book_lines(plan, rows) if line["method"] == name]
        sizes = [line["num_codes"] for line in found]
        right.plot(sizes, [line["hard_perplexity"] / line["num_codes"] for line in found], "o-", label=f"{name}, hard")
        right.plot(sizes, [line["mass_perplexity"] / line["num_codes"] for line in found], "s--", label=f"{name}, mass")
    right.set(xscale="log", xlabel="codes", ylabel="perplexity over codes", title="use of the codebook", ylim=(0, 1))
    right.legend(fontsize=7)
    figure.savefig(path)


def report(plan: Plan, rows: FinishedRuns, name: str) -> None:
    """Tables, picture and results of all runs that are there."""
    lines = [table_lines(plan, rows, data) for data in plan.data]
    for one in filter(None, lines):
        show(one)
    told = [line for one in lines for line in one] + book_lines(plan, rows) + rate_lines(plan, rows)
    measured = [row for row in rows.rows if row["part"] in ("speed", "memory")]
    print(f"\nwrote {write_results(name, told + measured, list(targets_of(plan, rows)))}")
    draw(plan, rows, RESULTS / f"{name}.svg")


PARTS = {"speed": speed, "table": table, "rate": rate, "codebook": codebook, "report": lambda plan, rows: None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one seed, 256 images, one epoch, nothing tuned")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; may be given several times")
    parser.add_argument("--data", choices=("cifar10", "gtsrb"), action="append", help="only this, for the table")
    parser.add_argument("--budget-minutes", type=float, help="begin no run after so many")
    arguments = parser.parse_args()
    if not os.environ.get("FEATHERLIGHT_DATA"):
        parser.error("set FEATHERLIGHT_DATA to the folder that holds cifar10-jpeg/, cifar10-lossless-4k/ and gtsrb32/")
    torch.set_num_threads(1)
    whole = Plan()
    if arguments.short:
        whole = Plan(data=["gtsrb"], seeds=[0], epochs=1, train=256, sizes=(128,), tune=False, rounds=5)
    name = f"{NAME}_short" if arguments.short else NAME
    RESULTS.mkdir(exist_ok=True)
    rows = FinishedRuns(RESULTS / f"{name}.rows.jsonl", arguments.budget_minutes)
    asked = whole if arguments.data is None else Plan(**(vars(whole) | {"data": arguments.data}))
    try:
        for part in arguments.part or PARTS:
            PARTS[part](asked, rows)
    except OutOfTimeError:
        print("the minutes are used up; the same command goes on")
    finally:
        report(whole, rows, name)


if __name__ == "__main__":
    main()
