"""Forward-only training of a small CNN on MNIST and CIFAR-10, beside MeZO and AdamW.

    python -m benchmarks.vision_forward_only --short     pretrained with a head start alone, one seed, half the forwards
    python -m benchmarks.vision_forward_only             every start, three seeds; goes on where it stopped

5,000 training images, 2,000 to choose the learning rate by, all 10,000 test images. A network starts from random weights,
or from one that AdamW has trained on five of the ten classes; its head is random, or fitted in closed form on features of
the training images (a head start). Every method is tuned with the same number of learning rates on a seed that is
not reported, and sees as many examples in forward passes; an example counts as one for AdamW too, whose backward passes
come on top. A head start is 5,000 example-forwards more, the same for every method.
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, FinishedRuns, Row, spread, target, write_results
from featherlight.data import IndexPermutation, load_images
from featherlight.recipes.catalogue import find
from featherlight.recipes.classify.config import ClassifyConfig
from featherlight.recipes.optimizer_config import OptimizerConfig
from featherlight.recipes.runner import run_one
from featherlight.report import ConfusionTable, read_run, read_sections
from featherlight.trainer import Display, RunDirectory

SEEDS = (0, 1, 2)
TUNING_SEED = 100
TRAIN, VALID, BATCH = 5_000, 2_000, 32
FORWARDS_PER_STEP = {"zo": 2, "mezo": 2, "adamw": 1}
LEARNING_RATES = {
    ("zo", True): (3e-4, 1e-3, 3e-3),
    ("zo", False): (1e-3, 3e-3, 1e-2),
    ("mezo", True): (1e-6, 1e-5, 1e-4),
    ("mezo", False): (1e-5, 1e-4, 1e-3),
    ("adamw", True): (3e-4, 1e-3, 3e-3),
    ("adamw", False): (1e-3, 3e-3, 1e-2),
}
STARTS = (("pretrained", True), ("pretrained", False), ("random", True), ("random", False))
DATA = ("mnist", "cifar10")


def _line(row: Row) -> str:
    return (
        f"{row['data']:8} {row['start']:10} head start {row['head_start']!s:5} {row['method']:6} lr {row['lr']:<7g} seed "
        f"{row['seed']:<4} accuracy {row['accuracy']:.2%} in {row['seconds']:.0f} s"
    )


class Bench:
    """Images and pretrained networks in a folder, and finished runs, kept on disk as they come."""

    def __init__(self, folder: Path, rows: Path, forwards: int) -> None:
        self.folder = folder
        self.finished = FinishedRuns(rows)
        self.forwards = forwards

    def get(self, **key: Any) -> Row:
        """The run with these settings, made now unless it is there."""
        key |= {"forwards": self.forwards}
        return self.finished.get(key, lambda: self.run(**key), _line)

    def run(
        self, *, data: str, start: str, head_start: bool, method: str, lr: float, seed: int, forwards: int
    ) -> dict[str, Any]:
        """Trains once; scores of the test images, or of the validation images for the seed that tunes."""
        config = replace(
            self.config(data, "tuning" if seed == TUNING_SEED else "reported"),
            initial=str(self.base(data)) if start == "pretrained" else None,
            method=method,
            head_start=head_start,
            steps=forwards // (FORWARDS_PER_STEP[method] * BATCH),
            evaluations=1,
            seed=seed,
            optimizer=OptimizerConfig(lr=lr),
        )
        path = self.folder / f"run-{time.monotonic_ns()}"
        began = time.perf_counter()
        finished = run_one(find("classify/digits")[0], config, path, command="", display=Display())
        seconds = time.perf_counter() - began
        if finished.stopped == "interrupted":
            raise SystemExit("stopped; the same command goes on with the run that was under way")
        record, memory = read_run(path), None
        if record.summary is not None:
            memory = record.summary.memory
        assert memory is not None
        assert memory.training_peak is not None
        assert memory.inference_peak is not None
        return {
            "accuracy": accuracy(path) if finished.error is None else 0.0,
            "valid_accuracy": finished.scores.values[-1] if finished.error is None else 0.0,
            "valid_loss": finished.scores.losses[-1] if finished.error is None else None,
            "start_accuracy": finished.scores.values[1 if head_start else 0],
            "error": finished.error,
            "seconds": seconds,
            "step_seconds": finished.seconds,
            "training_peak_megabytes": memory.training_peak / 1e6,
            "inference_peak_megabytes": memory.inference_peak / 1e6,
            "journal_bytes": None if record.summary is None else record.summary.journal_bytes,
        }

    def config(self, data: str, part: str) -> ClassifyConfig:
        """The recipe of a set on part of its images, which are written once; for tuning there are no test images."""
        file = self.folder / f"{data}-{part}.npz"
        if not file.exists():
            self.write(data)
        _, config = find(f"classify/{data}")
        assert isinstance(config, ClassifyConfig)
        return replace(config, data=str(file), batch=BATCH, device="cpu")

    def write(self, data: str) -> None:
        """The images of a set, as files."""
        splits = load_images(data)
        assert splits.test is not None
        order = IndexPermutation(len(splits.train), 0).indices(0, TRAIN + VALID)
        images, labels = splits.train.images.permute(0, 2, 3, 1).numpy(), splits.train.labels.numpy()
        names = np.array(splits.train.classes)
        arrays: dict[str, Any] = {
            "images": images[order[:TRAIN]],
            "labels": names[labels[order[:TRAIN]]],
            "valid_images": images[order[TRAIN:]],
            "valid_labels": names[labels[order[TRAIN:]]],
        }
        np.savez(self.folder / f"{data}-tuning.npz", **arrays)
        arrays["test_images"] = splits.test.images.permute(0, 2, 3, 1).numpy()
        arrays["test_labels"] = names[splits.test.labels.numpy()]
        np.savez(self.folder / f"{data}-reported.npz", **arrays)

    def base(self, data: str) -> Path:
        """A network that AdamW has trained on five classes, as the recipe of that says; made once."""
        path = self.folder / f"{data}-base"
        if not RunDirectory(path=path).is_finished:
            one, config = find(f"classify/{data}_base")
            assert isinstance(config, ClassifyConfig)
            config = replace(config, data=str(self.config(data, "tuning").data), epochs=8, evaluations=1, device="cpu")
            finished = run_one(one, config, path, command="", display=Display())
            print(f"{data}: the base tells its five classes apart in {finished.scores.values[-1]:.1%}", flush=True)
        return path


def accuracy(path: Path) -> float:
    """That in the confusion table of a run: of the test images, where there were any."""
    tables = [b for one in read_sections(RunDirectory(path=path).sections) for b in one.blocks]
    counts = np.array(next(block.counts for block in tables if isinstance(block, ConfusionTable)))
    return float(counts.trace() / counts.sum())


def tuned(bench: Bench, data: str, start: str, head_start: bool, method: str, seeds: tuple[int, ...]) -> list[dict]:
    """The runs of a method with the learning rate that does best on the seed that is not reported."""
    key = {"data": data, "start": start, "head_start": head_start, "method": method}
    tried = {lr: bench.get(**key, lr=lr, seed=TUNING_SEED) for lr in LEARNING_RATES[method, head_start]}
    best = max(tried, key=lambda lr: tried[lr]["valid_accuracy"])
    return [bench.get(**key, lr=best, seed=seed) for seed in seeds]


def mean(rows: list[dict[str, Any]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def compare(cell: str, runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What is asked for where a network is fine-tuned with a head start; the gaps to AdamW are what the table shows."""
    zo, mezo, adamw = (runs[method] for method in ("zo", "mezo", "adamw"))
    memory = mean(zo, "training_peak_megabytes") / mean(zo, "inference_peak_megabytes")
    return [
        target(f"{cell}: test accuracy of zo minus MeZO's", mean(zo, "accuracy") - mean(mezo, "accuracy"), ">=", 0, ""),
        target(
            f"{cell}: test accuracy of zo minus AdamW's",
            mean(zo, "accuracy") - mean(adamw, "accuracy"),
            ">=",
            -0.01,
            "",
        ),
        target(f"{cell}: peak of a zo step / of a forward pass", memory, "<=", 1.05, "x"),
    ]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Test accuracy of every run, by start and method; a line at the validation accuracy of the start."""
    from matplotlib.figure import Figure

    colours = {"zo": "#0072b2", "mezo": "#d55e00", "adamw": "#009e73"}
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, data in zip(figure.subplots(1, len(DATA), squeeze=False)[0], DATA, strict=True):
        for place, (start, head_start) in enumerate(STARTS):
            mine = [r for r in rows if (r["data"], r["start"], r["head_start"]) == (data, start, head_start)]
            for offset, (method, colour) in enumerate(colours.items()):
                points = [row["accuracy"] for row in mine if row["method"] == method]
                label = method if place == 0 else None
                axes.scatter([place + (offset - 1) * 0.2] * len(points), points, color=colour, s=18, label=label)
            if mine:
                axes.hlines(mean(mine, "start_accuracy"), place - 0.4, place + 0.4, color="#999999", lw=1)
        names = [f"{start}\n{'head start' if head_start else 'random head'}" for start, head_start in STARTS]
        axes.set_xticks(range(len(STARTS)), names, fontsize=7)
        axes.set_title(data)
        axes.set_ylabel("test accuracy (line: validation, before the first step)", fontsize=8)
        axes.legend(fontsize=7)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one start, one seed, half the forwards")
    parser.add_argument("--forwards", type=int, default=16_000, help="example-forwards a run")
    arguments = parser.parse_args()
    if not os.environ.get("FEATHERLIGHT_DATA"):
        parser.error("set FEATHERLIGHT_DATA to the folder that holds mnist/ and cifar10-jpeg/")
    forwards, seeds = (arguments.forwards // 2, SEEDS[:1]) if arguments.short else (arguments.forwards, SEEDS)
    name = "vision_forward_only_short" if arguments.short else "vision_forward_only"
    RESULTS.mkdir(exist_ok=True)
    reported: list[dict[str, Any]] = []
    targets: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), RESULTS / f"{name}.rows.jsonl", forwards)
        for start, head_start in STARTS[:1] if arguments.short else STARTS:
            for data in DATA:
                cell = f"{data}, {start}, {'head start' if head_start else 'random head'}"
                runs = {method: tuned(bench, data, start, head_start, method, seeds) for method in FORWARDS_PER_STEP}
                for method, rows in runs.items():
                    reported += rows
                    print(f"-> {cell}, {method}: {spread([row['accuracy'] for row in rows])}", flush=True)
                if head_start and start == "pretrained":
                    targets += compare(cell, runs)
                write_results(name, reported, targets)
                draw(reported, RESULTS / f"{name}.svg")


if __name__ == "__main__":
    main()
