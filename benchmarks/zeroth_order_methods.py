"""Forward-only methods side by side on four tasks: MiniLM, the same example-forwards, the same number of tuning trials.

    python -m benchmarks.zeroth_order_methods --short                             a few minutes
    python -m benchmarks.zeroth_order_methods --task trec --setting last:2        one task and setting
    python -m benchmarks.zeroth_order_methods                                     many hours; goes on where it stopped
    python -m benchmarks.zeroth_order_methods --part grid --task trec             the default beside nine points

Every run starts from the head that is fitted in closed form, as on the command line. Rows are drawn by seed: at most 3,000
to train on (1,000 of RTE) and 400 held out (250 of RTE; SST-2 has rows of its own for that). The learning rate is chosen
among three by the held-out metric on a seed that is not reported; what is reported is the metric on the test rows, or on
the published validation rows where the test has no labels (RTE, CoLA). An example that goes through a forward pass is one
example-forward, for AdamW too, whose backward passes are not counted. Seconds depend on what else the machine does.

A finished run is a line of results/zeroth_order_methods.rows.jsonl and is not made again.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from benchmarks.common import RESULTS, FinishedRuns, OutOfTimeError, spread, target, write_results
from benchmarks.zeroth_order_variants import (
    CEILING,
    FULL_TASKS,
    GRID,
    GRID_DEFAULT,
    GRID_RATES,
    GRID_SCALES,
    SEEDS,
    SETTINGS,
    START,
    TASKS,
    TUNING_SEED,
    VARIANTS,
    Row,
    Variant,
    one_run,
)

NAME = "zeroth_order_methods"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a command runs."""

    tasks: Sequence[str]
    settings: Sequence[str]
    variants: Mapping[str, Variant]
    seeds: Sequence[int]
    folder: Path
    share: float = 1.0
    most_rows: int = 3000

    def places(self) -> Iterator[tuple[str, str]]:
        """Tasks and settings; all weights are trained on two tasks only."""
        for setting, task in product(self.settings, self.tasks):
            if setting != "full" or task in FULL_TASKS:
                yield task, setting

    def key(self, place: tuple[str, str], variant: str, lr: float, seed: int) -> Row:
        task = TASKS[place[0]]
        return {
            "task": place[0],
            "setting": place[1],
            "variant": variant,
            "lr": lr,
            "seed": seed,
            "rows": min(task.rows, self.most_rows),
            "forwards": int(task.forwards * self.share),
        }

    def run(self, rows: FinishedRuns, key: Row, variant: Variant) -> Row:
        """The run with these settings, made now unless it is there."""
        return rows.get(key, lambda: one_run(key, variant, self.folder), _line)

    def tuned(self, rows: FinishedRuns, place: tuple[str, str], name: str) -> float | None:
        """The learning rate with the best held-out metric, by the loss where that ties; None before all are tried."""
        rates = self.variants[name].rates_of(place[1])
        if len(rates) == 1:
            return rates[0]
        tried = {lr: rows.find(self.key(place, name, lr, TUNING_SEED)) for lr in rates}
        done = {lr: row for lr, row in tried.items() if row is not None}
        if len(done) < len(rates):
            return None
        return max(done, key=lambda lr: _goodness(done[lr]))

    def chosen(self, rows: FinishedRuns, place: tuple[str, str], name: str) -> list[Row]:
        """The reported runs of a variant that are there."""
        lr = self.tuned(rows, place, name)
        keys = [] if lr is None else [self.key(place, name, lr, seed) for seed in self.seeds]
        return [row for key in keys if (row := rows.find(key)) is not None]


def _line(row: Row) -> str:
    return (
        f"{row['task']} {row['setting']:7} {row['variant']:24} lr {row['lr']:<7g} seed {row['seed']:<3} held out "
        f"{row['held_out'][0][2]:.3f} -> {row['held_out'][-1][2]:.3f}, test {row['test']:.3f} in {row['seconds']:.0f} s"
    )


def _goodness(row: Row) -> tuple[float, float]:
    _, loss, metric = row["held_out"][-1]
    return (float("-inf"), 0.0) if loss is None else (metric, -loss)


def compare(plan: Plan, rows: FinishedRuns) -> None:
    """Trials of every variant, then seed by seed, one task and setting after the other."""
    for place in plan.places():
        for name, variant in plan.variants.items():
            rates = variant.rates_of(place[1])
            for lr in rates if len(rates) > 1 else ():
                plan.run(rows, plan.key(place, name, lr, TUNING_SEED), variant)
        for seed, (name, variant) in product(plan.seeds, plan.variants.items()):
            lr = plan.tuned(rows, place, name)
            assert lr is not None, "all were tried"
            plan.run(rows, plan.key(place, name, lr, seed), variant)


def grid(plan: Plan, rows: FinishedRuns) -> None:
    """Every point of the grid, seed by seed."""
    for place in plan.places():
        for seed, (name, variant) in product(plan.seeds, GRID.items()):
            for lr in GRID_RATES:
                plan.run(rows, plan.key(place, name, lr, seed), variant)


def forwards_to(row: Row, bar: float) -> float:
    """Example-forwards at the first look at the held-out rows that is as good as the bar; infinity if none is."""
    return next((point[0] for point in row["held_out"] if point[2] >= bar), float("inf"))


def table(plan: Plan, rows: FinishedRuns, place: tuple[str, str]) -> list[Row]:
    """A line for each variant. The bar is 95% of the largest gain in the held-out metric by forward passes alone."""
    runs = {name: found for name in plan.variants if (found := plan.chosen(rows, place, name))}
    bars = {}
    for seed in plan.seeds:
        forward_only = [found for name, found in runs.items() if name not in (START, CEILING)]
        of_seed = [row for found in forward_only for row in found if row["seed"] == seed]
        if of_seed:
            start = of_seed[0]["held_out"][0][2]
            bars[seed] = start + 0.95 * (max(point[2] for row in of_seed for point in row["held_out"]) - start)
    lines = []
    for name, found in runs.items():
        rates = plan.variants[name].rates_of(place[1])
        reached = [forwards_to(row, bars[row["seed"]]) for row in found if row["seed"] in bars]
        lines.append(
            {
                "task": place[0],
                "setting": place[1],
                "metric": TASKS[place[0]].metric,
                "variant": name,
                "lr": found[0]["lr"],
                "lr_at_edge": len(rates) > 1 and found[0]["lr"] in (rates[0], rates[-1]),
                "seeds": len(found),
                "test": spread([row["test"] for row in found]),
                "tests": [row["test"] for row in found],
                "reached_bar": sum(one < float("inf") for one in reached),
                "forwards_to_bar": _or_none(statistics.median(reached)) if reached else None,
                "step_seconds": spread([row["step_seconds"] for row in found]),
                "training_peak_megabytes": _median(found, "training_peak_megabytes"),
                "megabytes_above_inference": _median(found, "megabytes_above_inference"),
            }
        )
    return lines


def _median(found: Sequence[Row], name: str) -> float | None:
    """Of what was measured; a run of a single large step has no peak of small ones."""
    values = [row[name] for row in found if row[name] is not None]
    return statistics.median(values) if values else None


def _or_none(value: float) -> float | None:
    return value if value < float("inf") else None


def grid_line(plan: Plan, rows: FinishedRuns, place: tuple[str, str]) -> Row | None:
    """The default beside the best of the nine points, by means over the seeds that all points have."""
    points: dict[tuple[float, float], dict[int, float]] = {}
    for (name, variant), lr, seed in product(GRID.items(), GRID_RATES, plan.seeds):
        row = rows.find(plan.key(place, name, lr, seed))
        if row is not None:
            points.setdefault((lr, variant.optimizer["head_scale"]), {})[seed] = row["test"]
    if len(points) < len(GRID_RATES) * len(GRID_SCALES):
        return None
    seeds = set.intersection(*(set(found) for found in points.values()))
    means = {point: statistics.mean(found[seed] for seed in seeds) for point, found in points.items()}
    best = max(means, key=lambda point: means[point])
    return {
        "task": place[0],
        "setting": place[1],
        "metric": TASKS[place[0]].metric,
        "seeds": len(seeds),
        "default": means[GRID_DEFAULT],
        "best": means[best],
        "best_lr": best[0],
        "best_head_scale": best[1],
        "points": [[*point, mean] for point, mean in means.items()],
    }


def show(lines: Sequence[Row]) -> None:
    """The lines of one task and setting as a Markdown table."""
    first = lines[0]
    print(f"\n{first['task']}, {first['setting']}: {first['metric']} on the test rows, median and range over seeds\n")
    print("| variant | lr | test | forwards to 95% of the best gain | seconds | MB above inference |")
    print("|---|---|---|---|---|---|")
    for line in lines:
        test, edge = line["test"], " (edge)" if line["lr_at_edge"] else ""
        above = "-" if line["megabytes_above_inference"] is None else f"{line['megabytes_above_inference']:.1f}"
        to_bar = f"{line['forwards_to_bar']:,.0f}" if line["forwards_to_bar"] is not None else "not reached"
        print(
            f"| {line['variant']} | {line['lr']:g}{edge} | {test['median']:.3f} ({test['min']:.3f} to {test['max']:.3f}) | "
            f"{to_bar} ({line['reached_bar']} of {line['seeds']}) | {line['step_seconds']['median']:.0f} | "
            f"{above} |"
        )


def draw(lines: Sequence[Row], path: Path) -> None:
    """A panel for each task and setting: the test metric of each seed and the median, a line where the head start is."""
    from matplotlib.figure import Figure

    places = list(dict.fromkeys((line["task"], line["setting"]) for line in lines))
    columns = min(4, len(places))
    deep = -(-len(places) // columns)
    figure = Figure(figsize=(1.5 + 3.4 * columns, 0.6 + 2.9 * deep), layout="constrained")
    grid_of_axes = figure.subplots(deep, columns, squeeze=False)
    names = [name for name in VARIANTS if any(line["variant"] == name for line in lines)]
    for axes, place in zip(grid_of_axes.flat, places, strict=False):
        for line in (line for line in lines if (line["task"], line["setting"]) == place):
            height = len(names) - names.index(line["variant"])
            colour = {CEILING: "#009e73", START: "#777777"}.get(line["variant"], "#0072b2")
            axes.plot(line["tests"], [height] * len(line["tests"]), "o", color=colour, alpha=0.5, markersize=4)
            axes.plot(line["test"]["median"], height, "|", color=colour, markersize=16, markeredgewidth=2)
            if line["variant"] == START:
                axes.axvline(line["test"]["median"], color=colour, linewidth=0.8, linestyle=":")
        axes.set_title(f"{place[0]}, {place[1]}", fontsize=10)
        axes.set_xlabel(f"test {TASKS[place[0]].metric}")
        axes.set_yticks([len(names) - number for number in range(len(names))], names, fontsize=8)
        axes.label_outer()
    for axes in list(grid_of_axes.flat)[len(places) :]:
        axes.remove()
    figure.savefig(path)


def report(plan: Plan, rows: FinishedRuns, name: str) -> None:
    """Tables, picture and results of all runs that are there."""
    lines = [line for place in plan.places() for line in table(plan, rows, place)]
    for place in plan.places():
        if own := [line for line in lines if (line["task"], line["setting"]) == place]:
            show(own)
    grids = [line for place in plan.places() if (line := grid_line(plan, rows, place)) is not None]
    targets = [
        target(
            f"{line['task']}, {line['setting']}: best of nine points minus the default, test {line['metric']}",
            line["best"] - line["default"],
            "<=",
            0.01,
            "",
        )
        for line in grids
    ]
    results = [{"part": "compare", **line} for line in lines] + [{"part": "grid", **line} for line in grids]
    print(f"\nwrote {write_results(name, results, targets)}")
    if lines:
        draw(lines, RESULTS / f"{name}.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--short", action="store_true", help="TREC, last:2, one seed, 400 rows, a tenth of the example-forwards"
    )
    parser.add_argument("--part", choices=("compare", "grid", "report"), default="compare")
    parser.add_argument("--task", choices=TASKS, action="append", help="only this; may be given several times")
    parser.add_argument("--setting", choices=SETTINGS, action="append", help="only this; grid has last:2 alone")
    parser.add_argument("--variant", choices=VARIANTS, action="append", help="only this")
    parser.add_argument("--budget-minutes", type=float, help="begin no run after so many")
    arguments = parser.parse_args()
    if not os.environ.get("FEATHERLIGHT_DATA"):
        parser.error("set FEATHERLIGHT_DATA to the folder that holds trec/, sst2/, cola/ and rte/")
    short = arguments.short
    name = f"{NAME}_short" if short else NAME
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        whole = Plan(tasks=list(TASKS), settings=list(SETTINGS), variants=VARIANTS, seeds=SEEDS, folder=Path(scratch))
        if short:
            whole = replace(whole, tasks=["trec"], settings=["last:2"], seeds=SEEDS[:1], share=0.1, most_rows=400)
        asked = replace(
            whole,
            tasks=arguments.task or whole.tasks,
            settings=arguments.setting or (["last:2"] if arguments.part == "grid" else whole.settings),
            variants={name: VARIANTS[name] for name in arguments.variant or VARIANTS},
        )
        rows = FinishedRuns(RESULTS / f"{name}.rows.jsonl", arguments.budget_minutes)
        try:
            {"compare": compare, "grid": grid, "report": lambda plan, rows: None}[arguments.part](asked, rows)
        except OutOfTimeError:
            print("the minutes are used up; the same command goes on")
        finally:
            report(whole, rows, name)


if __name__ == "__main__":
    main()
