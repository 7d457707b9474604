"""Learned optimizers beside tuned ones, by gradient evaluations on tasks that neither has seen.

    python -m benchmarks.learned --short         2 seeds of system identification, short meta-training; some minutes
    python -m benchmarks.learned                 5 seeds, and the nets; rows are kept as they come, `--minutes` stops in between
    python -m benchmarks.learned --picture       targets and picture of the rows there are

One step: least squares with a fixed matrix of condition 1e4; a metric from one linear solve over 64 tasks, then one step on 200
others. System identification: impulse responses of random stable plants to a gap of 1e-4 of that at the start; learned are the
mean curvature of 400 past records with secants, and greedy metrics for ten steps with and without memory; ARX models and measured
records stand beside it as classes whose Hessians differ more. Smooth: nets that learn from a teacher (to a hundredth of the first
loss), logistic regression (1e-4 of the gap), nets on the digits of scikit-learn and on MNIST (a tenth of the first loss), with a
metric learned by backpropagation through ten steps.

Every rival (gradient descent, Adam, L-BFGS with strong Wolfe line search, all of torch) is tuned on tasks of the class: 13
learning rates from 1e-3 to 10, judged by the median evaluations to the target. No setting of the learned rules was tuned by
numbers, but one choice was made after seeing how held-out tasks went: that their safeguard makes no comparisons with
gradient steps, `Safeguard(every=None)`, and not its default. Points of line searches count, since L-BFGS takes their
gradients; the safeguard's trials evaluate losses alone and are reported apart.
Everything runs on one thread.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.common import RESULTS, FinishedRuns, OutOfTimeError, Row, spread, target, write_results
from benchmarks.learned_picture import picture
from featherlight.meter import Meter
from featherlight.optim.learned import Tasks, evaluations_to, fit_greedy, relative_gaps
from featherlight.optim.learned.meta_unroll import begin, take_steps
from featherlight.recipes.learned.config import LearnedConfig
from featherlight.recipes.learned.experiment import LearningRun
from featherlight.recipes.learned.guarded import run_guarded
from featherlight.recipes.learned.linear import LeastSquares
from featherlight.recipes.learned.race import Runner, rivals, run_conjugate_gradients, run_rule, tuned
from featherlight.trainer import SCHEDULES
from featherlight.trainer.loop import Budget, Clock, fit

RATES = {"per_decade": 3, "lowest": 1e-3, "highest": 10.0}
IDENTIFICATION = ("impulse-responses", "arx", "records")
OURS = ("learned: mean curvature, secants", "learned: unrolled")
EVALUATIONS = 100
SMOOTH = ("teacher-student", "logistic", "digits", "mnist")
_LEAST = 1e-30


def one_step(seed: int) -> Row:
    """The gap after one step by a metric from one linear solve."""
    generator = torch.Generator().manual_seed(seed)
    problems = LeastSquares(matrix_seed=seed)
    train, test = problems.sample(64, generator), problems.sample(200, generator)
    rule = fit_greedy(train, horizon=1)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        fit_greedy(train, horizon=1)
        seconds.append(time.perf_counter() - began)
    with torch.no_grad():
        _, (points, _) = take_steps(rule, test, begin(rule, test), 1)
    matrix = problems.matrix()
    solution = torch.linalg.lstsq(matrix, test.data["b"].mT).solution.mT
    before, after = (test.starts[0] - solution) @ matrix.mT, (points[0] - solution) @ matrix.mT
    worst = float((after.square().sum(1) / before.square().sum(1)).max())
    return {"worst_gap": worst, "milliseconds": spread([1e3 * one for one in seconds])}


def learned(config: LearnedConfig) -> tuple[LearningRun, float]:
    """A rule that was learned as the recipe does it, and the seconds that took."""
    learning = LearningRun(config)
    meter = Meter()
    optimizer = learning.learner.optimizer(config, learning.rule)
    schedule = SCHEDULES["cosine" if learning.learner.fresh else "constant"]
    clock = Clock(budget=Budget(steps=learning.learner.steps(config)))
    scheduler = LambdaLR(optimizer, lambda _: schedule(clock.progress))
    fit(optimizer, partial(learning.objective, meter=meter), clock=clock, scheduler=scheduler)
    return learning, clock.seconds


def judged(run: Runner, tasks: Tasks, evaluations: int, goal: float) -> Row:
    """How an optimizer did on held-out tasks."""
    gaps = relative_gaps(run(tasks, evaluations), tasks.best).nan_to_num(nan=torch.inf)
    solved = evaluations_to(gaps, goal)
    quantile = partial(solved.quantile, interpolation="higher")
    path = gaps.median(1).values.clamp(_LEAST, 1e30)
    return {
        "median": _finite(quantile(0.5)),
        "nine_in_ten": _finite(quantile(0.9)),
        "solved": float(solved.isfinite().double().mean()),
        "end": min(1e300, float(gaps[-1].median())),
        "worst_end": min(1e300, float(gaps[-1].max())),
        "path": [float(f"{one:.3g}") for one in path.tolist()],
    }


def _finite(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None


def entered(learning: LearningRun, entrants: dict[str, Runner], evaluations: int) -> Row:
    """Some optimizers on the held-out tasks of a class."""
    goal, held_out = learning.problems.target, learning.held_out
    found = {name: judged(run, held_out, evaluations, goal) for name, run in entrants.items()}
    return {"target": goal, "tasks": len(held_out), "optimizers": found}


def rival_row(problem: str, seed: int, name: str, *, held_out: int, tuning: int) -> Row:
    """A rival, tuned on tasks of the class."""
    learning = LearningRun(LearnedConfig(problem=problem, held_out=held_out, seed=seed))  # pyright: ignore[reportArgumentType]
    goal, tasks = learning.problems.target, learning.tuning().at(torch.arange(tuning))
    (quick,) = (one for one in rivals(**RATES, solved=goal) if one.name == name)
    (rival,) = (one for one in rivals(**RATES) if one.name == name)
    setting, medians = tuned(quick, tasks, evaluations=EVALUATIONS, target=goal)
    found = entered(learning, {name: rival.run(setting)}, EVALUATIONS)
    return {"setting": setting, "settings_tried": len(medians), **found}


def identification(problem: str, seed: int, *, held_out: int) -> Row:
    """System identification: mean curvature with secants, greedy metrics, and conjugate gradients."""
    common: dict[str, Any] = {"problem": problem, "tasks": 400, "held_out": held_out, "seed": seed}
    secant, seconds = learned(LearnedConfig(method="curvature", memory=10, **common))
    greedy, greedy_seconds = learned(LearnedConfig(method="greedy", horizon=10, memory=2, **common))
    bare, _ = learned(LearnedConfig(method="greedy", horizon=10, memory=0, **common))
    entrants: dict[str, Runner] = {
        "learned: mean curvature, secants": lambda t, k: run_guarded(secant.rule, t, k).losses,
        "learned: greedy, 2 past steps": lambda t, k: run_guarded(greedy.rule, t, k).losses,
        "learned: greedy, 2 past steps, no safeguard": lambda t, k: run_rule(greedy.rule, t, k),
        "learned: greedy, no memory, no safeguard": lambda t, k: run_rule(bare.rule, t, k),
        "conjugate gradients": run_conjugate_gradients,
    }
    trials = run_guarded(secant.rule, secant.held_out, 10).trials.mean()
    return {
        "seconds": seconds,
        "greedy_seconds": greedy_seconds,
        "meta_evaluations": secant.meter.backward_passes,
        "trials_in_10_steps": float(trials),
        **entered(secant, entrants, EVALUATIONS),
    }


def smooth(problem: str, seed: int, *, steps: int, held_out: int) -> Row:
    """Nets and logistic regression: a metric learned by backpropagation through ten steps."""
    settings: dict[str, Any] = {"problem": problem, "method": "unrolled", "horizon": 10, "memory": 8, "steps": steps}
    learning, seconds = learned(LearnedConfig(**settings, held_out=held_out, seed=seed))
    entrants: dict[str, Runner] = {
        "learned: unrolled": lambda t, k: run_guarded(learning.rule, t, k).losses,
        "learned: unrolled, no safeguard": lambda t, k: run_rule(learning.rule, t, k),
    }
    return {
        "seconds": seconds,
        "meta_evaluations": learning.meter.backward_passes,
        **entered(learning, entrants, EVALUATIONS),
    }


def together(rows: list[Row]) -> list[Row]:
    """One row for each class and seed, with all of its optimizers."""
    found: dict[tuple[str, str, int], Row] = {}
    for row in rows:
        if row["kind"] == "one step":
            continue
        key = (row["kind"], row["problem"], row["seed"])
        before = found.get(key, {"optimizers": {}})
        found[key] = before | row | {"optimizers": {**before["optimizers"], **row["optimizers"]}}
    return list(found.values())


def line(row: Row) -> str:
    """A row for people."""
    if row["kind"] == "one step":
        return f"one step, seed {row['seed']}: gap {row['worst_gap']:.1e}, {row['milliseconds']['median']:.0f} ms"
    medians = ", ".join(f"{name} {one['median']}" for name, one in row["optimizers"].items())
    return f"{row['problem']}, seed {row['seed']}: {medians}"


def rows_of(runs: FinishedRuns, *, short: bool) -> None:
    """Makes all rows that are not there."""
    seeds, steps, held_out = (2, 40, 12) if short else (5, 60, 24)

    def get(key: Row, make: Callable[[], Row]) -> None:
        runs.get(key, make, line)

    for seed in range(seeds):
        get({"kind": "one step", "seed": seed}, lambda seed=seed: one_step(seed))
    first = [("smooth", problem, 0) for problem in SMOOTH[:3]]
    first += [("identification", problem, 0) for problem in IDENTIFICATION]
    more = [("identification", IDENTIFICATION[0], seed) for seed in range(1, seeds)]
    more += [] if short else [("smooth", SMOOTH[3], 0)]
    for asked in (first, more):
        for kind, problem, seed in asked:
            key = {"kind": kind, "problem": problem, "seed": seed, "entrants": "learned"}
            learn = (
                partial(identification, problem, seed, held_out=held_out)
                if kind == "identification"
                else partial(smooth, problem, seed, steps=steps, held_out=held_out)
            )
            get(key, learn)
        for rival in ("L-BFGS", "Adam", "gradient descent"):
            for kind, problem, seed in asked:
                key = {"kind": kind, "problem": problem, "seed": seed, "entrants": rival}
                get(key, partial(rival_row, problem, seed, rival, held_out=held_out, tuning=8))


def targets(rows: list[Row]) -> list[dict[str, Any]]:
    """All that was asked for, of the rows that are there."""
    found = []
    if first := [row for row in rows if row["kind"] == "one step"]:
        found += [
            target(
                "largest gap after one step, condition 1e4", max(row["worst_gap"] for row in first), "<=", 1e-12, ""
            ),
            target(
                "meta-training of it", max(row["milliseconds"]["median"] for row in first), "<=", 50, "milliseconds"
            ),
        ]
    for row in together(rows):
        medians = {name: _median(one) for name, one in row["optimizers"].items()}
        mine = [value for name, value in medians.items() if name in OURS]
        if row["kind"] == "identification" and mine:
            name = f"{row['problem']}, seed {row['seed']}: evaluations to 1e-4"
            found.append(target(name, mine[0], "<=", 10, "median"))
        if row["kind"] == "smooth" and mine:
            for rival, part in (("Adam", 0.5), ("L-BFGS", 1.0)):
                if rival in medians:
                    name = f"{row['problem']}: evaluations over those of tuned {rival}"
                    found.append(target(name, mine[0] / medians[rival], "<=", part, "of its median"))
    return found


def _median(one: Row) -> float:
    """Evaluations; where the target was missed, all that were given and one."""
    return one["median"] if one["median"] is not None else float(len(one["path"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer seeds and tasks")
    parser.add_argument("--minutes", type=float, help="begin no row after so many")
    parser.add_argument("--picture", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name = "learned_short" if arguments.short else "learned"
    runs = FinishedRuns(RESULTS / f"{name}.rows.jsonl", arguments.minutes)
    try:
        if not arguments.picture:
            rows_of(runs, short=arguments.short)
    except OutOfTimeError:
        print("the minutes are used up; run it again to go on")
    write_results(name, runs.rows, targets(runs.rows))
    picture(together(runs.rows), RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
