"""Number formats beside each other, what loss scaling is for, and its step beside that of torch's GradScaler.

    python -m benchmarks.precision --short          # one seed of each run, and the times of a step
    python -m benchmarks.precision --minutes 4.5    # goes on where it was stopped; three seeds in all

The runs are those of `precision/digits` and `precision/loss_scaling` with ten passes over 8x8 digits. Both scalers step the
same network with AdamW on the same batches, in float32, one step of each in turn, and must come to the same bits. 16 bits
are slower than 32 on most CPUs, so formats are judged by accuracy.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import RESULTS, FinishedRuns, OutOfTimeError, Row, in_turn, ratio, spread, target, write_results
from featherlight.objective import BatchObjective
from featherlight.optim import WithLossScaling
from featherlight.recipes.catalogue import find
from featherlight.recipes.config import RunConfig, changed
from featherlight.recipes.runner import run_one
from featherlight.trainer import Display

FORMATS = ("fp32", "bf16", "fp16", "fp8", "mxfp8", "mxfp4", "nvfp4")
SCALINGS = {
    "fp32": {"precision": "fp32"},
    "fp16 with loss scaling": {"precision": "fp16"},
    "fp16 without": {"precision": "fp16", "scaling": False},
}
SEEDS = (0, 1, 2)
_SETTINGS = {"classify.epochs": 10, "classify.evaluations": 1, "device": "cpu"}


def run_recipe(name: str, changes: dict[str, Any]) -> Row:
    """Accuracy on the validation images, and seconds of the steps."""
    recipe, base = find(name)
    config: RunConfig = changed(base, _SETTINGS | changes, source="the benchmark")
    with tempfile.TemporaryDirectory() as folder:
        finished = run_one(recipe, config, Path(folder) / "run", command="", display=Display())
    return {"accuracy": 100 * finished.scores.values[-1], "seconds": finished.seconds}


def accuracies(runs: FinishedRuns, seeds: tuple[int, ...]) -> None:
    """All runs that are not there yet."""
    for seed in seeds:
        for name in FORMATS:
            key = {"part": "formats", "name": name, "seed": seed}
            _get(runs, key, "precision/digits", {"format": name, "seed": seed})
        for name, changes in SCALINGS.items():
            key = {"part": "loss scaling", "name": name, "seed": seed}
            _get(runs, key, "precision/loss_scaling", changes | {"seed": seed})


def _get(runs: FinishedRuns, key: Row, recipe: str, changes: dict[str, Any]) -> None:
    runs.get(
        key,
        lambda: run_recipe(recipe, changes),
        lambda row: (
            f"{row['part']:12}  {row['name']:22}  seed {row['seed']}  {row['accuracy']:.2f} %  {row['seconds']:.1f} s"
        ),
    )


def _network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def _batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(64, 256, generator=generator),
        "y": torch.randint(10, (64,), generator=generator),
    }


def _losses(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def _ours(model: nn.Module) -> Callable[[], object]:
    optimizer = WithLossScaling(torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True))
    batch = _batch()
    return lambda: optimizer.step(BatchObjective(model, batch, _losses))


def _grad_scaler(model: nn.Module) -> Callable[[], object]:
    """As torch's documentation has it; the loss is read, as the loop of the library reads it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    scaler = torch.amp.GradScaler("cpu")
    batch = _batch()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = _losses(model, batch).sum() / 64
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return float(loss.detach())

    return step


def step_times(rounds: int) -> Row:
    """Milliseconds of a step with each scaler, their ratio pair by pair, and whether they came to the same bits."""
    models = {"ours": _network(), "torch.amp.GradScaler": _network()}
    sides = {
        "ours": _ours(models["ours"]),
        "torch.amp.GradScaler": _grad_scaler(models["torch.amp.GradScaler"]),
    }
    seconds = in_turn(sides, rounds=rounds, warmup=5, clock=time.process_time)
    pairs = zip(*(model.parameters() for model in models.values()), strict=True)
    return {
        "part": "step",
        "parameters": sum(one.numel() for one in models["ours"].parameters()),
        **{f"{name}_ms": spread([1000 * one for one in taken]) for name, taken in seconds.items()},
        "ratio": ratio(seconds["ours"], seconds["torch.amp.GradScaler"]),
        "same_bits": all(torch.equal(one, other) for one, other in pairs),
    }


def targets(runs: FinishedRuns) -> list[dict[str, Any]]:
    """Figures that were asked for, as medians over the seeds."""

    def accuracy(part: str, name: str) -> float:
        return statistics.median(row["accuracy"] for row in runs.rows if (row["part"], row["name"]) == (part, name))

    scaled, plain = accuracy("loss scaling", "fp16 with loss scaling"), accuracy("loss scaling", "fp32")
    without = accuracy("loss scaling", "fp16 without")
    return [
        target("fp16 with loss scaling over fp32, gradients near 2^-27", scaled / plain, ">=", 0.99, "of its accuracy"),
        target("the same without loss scaling", without / plain, "<=", 0.5, "of its accuracy"),
    ]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one seed")
    parser.add_argument("--minutes", type=float, help="begin no run after so many")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name = "precision_short" if arguments.short else "precision"
    RESULTS.mkdir(exist_ok=True)
    runs = FinishedRuns(RESULTS / f"{name}.rows.jsonl", arguments.minutes)
    try:
        accuracies(runs, SEEDS[:1] if arguments.short else SEEDS)
    except OutOfTimeError:
        print("out of time; the same command goes on")
        return
    step = step_times(60 if arguments.short else 200)
    print(f"step: {step}")
    write_results(name, [*runs.rows, step], targets(runs))


if __name__ == "__main__":
    main()
