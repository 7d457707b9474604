"""MeZO-SVRG on MiniLM-L6: what its control variate removes of the estimate's noise, and what memory it takes.

    python -m benchmarks.mezo_svrg            about 15 minutes
    python -m benchmarks.mezo_svrg --short    about 2 minutes

The published code's behaviour is re-created here from its description, not run: its anchor is the live weights
themselves and its two minibatch slopes are along different directions, so nothing cancels.

Legend of shapes: N training rows, Z directions.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import RESULTS, read_rows, target, write_results
from benchmarks.sst2 import data, training_file
from benchmarks.zeroth_order import freeze_tables, minilm, objective
from featherlight.functional import SignStream
from featherlight.meter import allocation_peak
from featherlight.objective import Batch, BatchObjective
from featherlight.optim import MeZO, MeZOSVRG, SpreadNormalized
from featherlight.optim.zeroth_order.offset import Offset
from featherlight.optim.zeroth_order.perturbed_forward import PerturbedForward
from featherlight.optim.zeroth_order.targets import Directions
from featherlight.recipes.finetune import FinetuneConfig
from featherlight.recipes.finetune.head_start import fit_head
from featherlight.recipes.finetune.problem import Problem, build_problem

ROWS, BATCH, SIGMA, LR = 512, 64, 1e-3, 3e-4
AWAY = (1, 4, 16)
FAR_SEED = 1 << 40
"""Directions that the trained run does not use."""


def example_slopes(task: BatchObjective, optimizer: MeZOSVRG, step: int, offset: Offset | None) -> Tensor:
    """(N,): the slope of each example's loss along one direction."""
    directions = Directions(optimizer.targets, SignStream(seed=FAR_SEED, step=step), 1)
    by_id = {id(one.parameter): one for one in optimizer.targets}
    values = []
    for sigma in (SIGMA, -SIGMA):
        with torch.no_grad(), PerturbedForward(by_id, directions, sigma, offset=offset):
            values.append(task.values().double())
    return (values[0] - values[1]) / (2 * SIGMA)


def minibatch_noise(slopes_NZ: Tensor) -> float:
    """Mean over the directions of the variance of a minibatch's mean slope, drawn without replacement."""
    share_left_out = 1 - BATCH / len(slopes_NZ)
    return float((slopes_NZ.var(0) / BATCH * share_left_out).mean())


def noise_at(task: BatchObjective, optimizer: MeZOSVRG, num_directions: int) -> dict[str, float]:
    """Noise of three estimators where the optimizer is now, per dimension: all are to be multiplied by d.

    A direction of signs has squared length d, so the trace of an estimate's covariance is d times the variance of its
    slope; slopes along two different directions add.
    """
    here = torch.stack([example_slopes(task, optimizer, z, None) for z in range(num_directions)], 1)
    there = torch.stack([example_slopes(task, optimizer, z, optimizer.anchor) for z in range(num_directions)], 1)
    return {
        "mezo": minibatch_noise(here),
        "published": 2 * minibatch_noise(here),
        "mezo_svrg": minibatch_noise(here - there),
        "direction_noise": float(here.mean(0).square().mean()),
    }


def prepare(head_start: bool, folder: Path) -> Problem:
    """MiniLM with 512 rows of SST-2, all but the tables trained; as in the paper, or with a fitted head."""
    train = str(training_file(ROWS, 0, folder))
    config = FinetuneConfig(
        model="minilm", train=train, valid=str(data("validation")), text=("sentence",), label="label", seed=0
    )
    problem = build_problem(config, scratch=folder)
    if head_start:
        fit_head(problem, lambda items, what, total: items)
    return problem


def objective_of(problem: Problem, rows: list[int]) -> BatchObjective:
    return BatchObjective(
        problem.loaded.model, problem.batch(problem.train, rows), problem.loss, micro_batch=BATCH, dropout_seed=0
    )


def variance(short: bool) -> list[dict[str, Any]]:
    """Noise near and far from an anchor, on a run that takes minibatch steps away from it."""
    found = []
    for head_start in (False, True):
        with tempfile.TemporaryDirectory() as scratch:
            problem = prepare(head_start, Path(scratch))
            optimizer = MeZOSVRG(
                problem.loaded.model, LR, LR, max(AWAY) + 1, sigma=SIGMA, normalize=SpreadNormalized(), seed=0
            )
            start = {id(p): p.detach().clone() for p in problem.loaded.model.parameters()}
            task = objective_of(problem, list(range(ROWS)))
            for step in range(AWAY[1] if short else AWAY[-1]):
                rows = problem.sampler.indices(step * BATCH, BATCH)
                optimizer.step(task if step == 0 else objective_of(problem, rows))
                if optimizer.steps_done not in AWAY:
                    continue
                moved = sum(
                    float((t.parameter.detach() - start[id(t.parameter)]).square().sum()) for t in optimizer.targets
                )
                norm = sum(float(start[id(t.parameter)].square().sum()) for t in optimizer.targets)
                row = {"what": "estimator variance", "head_start": head_start, "steps_away": optimizer.steps_done}
                row |= {"relative_distance": (moved / norm) ** 0.5, "batch": BATCH, "rows": ROWS}
                found.append(row | noise_at(task, optimizer, 2 if short else 4))
                print(found[-1], flush=True)
    return found


def gpt2() -> nn.Module:
    """A decoder of GPT-2's shape and 124 million parameters, with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(use_cache=False)).eval()


def token_loss(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(batch["ids"]).logits[:, :-1]
    return nn.functional.cross_entropy(logits.transpose(1, 2), batch["ids"][:, 1:], reduction="none").mean(1)


def memory(short: bool) -> list[dict[str, Any]]:
    """Weights and the peak of allocations of a step; for MeZO-SVRG the largest of an anchor and four steps behind it."""
    ids = torch.randint(50_000, (4, 64), generator=torch.Generator().manual_seed(0))
    found = []
    for name in ("minilm", "gpt2, 124M"):
        sides = {"mezo": 0, "mezo_svrg": 0}
        for side in sides:
            model = minilm() if name == "minilm" else gpt2()
            freeze_tables(model) if name == "minilm" else None
            task = objective(model, (16, 32)) if name == "minilm" else BatchObjective(model, {"ids": ids}, token_loss)
            optimizer = MeZO(model, 1e-7) if side == "mezo" else MeZOSVRG(model, 1e-7, 1e-7, 5)
            weights = sum(p.numel() * p.element_size() for p in model.parameters())
            for _ in range(1 if side == "mezo" else 5):
                with allocation_peak() as peak:
                    optimizer.step(task)
                sides[side] = max(sides[side], weights + peak.bytes)
        row = {"what": "memory", "model": name} | {f"{side}_bytes": size for side, size in sides.items()}
        found.append(row | {"ratio": sides["mezo_svrg"] / sides["mezo"]})
        print(found[-1], flush=True)
    return found


def targets_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    made = []
    for row in rows:
        if row["what"] == "estimator variance" and row["steps_away"] == AWAY[0]:
            start = "fitted head" if row["head_start"] else "fresh head"
            name = f"minibatch noise as published / MeZO-SVRG's, one step from the anchor, {start}"
            made.append(target(name, row["published"] / row["mezo_svrg"], ">=", 10.0, "x"))
        if row["what"] == "memory":
            made.append(target(f"memory of a step, {row['model']}, MeZO-SVRG / MeZO", row["ratio"], "<=", 1.05, "x"))
    return made


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Noise against the steps since the anchor."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, head_start in zip(figure.subplots(1, 2, sharey=True), (False, True), strict=True):
        some = [r for r in rows if r["what"] == "estimator variance" and r["head_start"] == head_start]
        for side, colour in (("published", "#d55e00"), ("mezo", "#999999"), ("mezo_svrg", "#0072b2")):
            axes.plot([r["steps_away"] for r in some], [r[side] for r in some], "o-", color=colour, label=side)
        axes.plot([r["steps_away"] for r in some], [r["direction_noise"] for r in some], "k:", label="direction noise")
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="steps since the anchor",
            title="fitted head" if head_start else "fresh head",
        )
    figure.axes[0].set_ylabel("variance of the slope")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path)


PARTS = {"estimator variance": variance, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a few minutes")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; the others' rows stay as they are")
    arguments = parser.parse_args()
    if not os.environ.get("FEATHERLIGHT_DATA"):
        parser.error("set FEATHERLIGHT_DATA to the folder that holds sst2/")
    name = "mezo_svrg_short" if arguments.short else "mezo_svrg"
    rows = read_rows(name)
    for part in arguments.part or PARTS:
        rows = [row for row in rows if row["what"] != part] + PARTS[part](arguments.short)
        print(f"wrote {write_results(name, rows, targets_of(rows))}")
    draw(rows, RESULTS / f"{name}.svg")


if __name__ == "__main__":
    main()
