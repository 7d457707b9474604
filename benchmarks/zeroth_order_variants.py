"""Tasks, settings and variants of the comparison of forward-only methods, and one run of it."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import Row
from featherlight.data import IndexPermutation
from featherlight.recipes.catalogue import find_recipe
from featherlight.recipes.config import from_mapping
from featherlight.recipes.finetune import FinetuneConfig, use
from featherlight.recipes.runner import run_one
from featherlight.report import read_run
from featherlight.trainer import Display

SEEDS = (0, 1, 2)
TUNING_SEED = 100
BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set: which rows train, which choose the learning rate, and which are reported."""

    test: str
    text: tuple[str, ...]
    metric: str = "accuracy"
    held_out: str | None = None
    rows: int = 3000
    held_out_rows: int = 400
    forwards: int = 12_000


TASKS = {
    "trec": Task(test="test", text=("text",)),
    "sst2": Task(test="test_labelled_stsa", text=("sentence",), held_out="validation"),
    "cola": Task(test="validation", text=("sentence",), metric="mcc"),
    "rte": Task(test="validation", text=("premise", "hypothesis"), rows=1000, held_out_rows=250, forwards=4000),
}
SETTINGS: dict[str, dict[str, Any]] = {"last:2": {"trainable": "last:2"}, "lora:8": {"lora": 8}, "full": {}}
FULL_TASKS = ("trec", "sst2")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A method with settings of its own.

    Attributes:
        method: of the command line.
        rates: learning rates that are tried, by setting; "" is for those that are not named.
        forwards: example-forwards of a step, by its number.
        optimizer: keys of the config.
    """

    method: str
    rates: Mapping[str, tuple[float, ...]]
    forwards: Callable[[int], int] = lambda step: 2 * BATCH
    optimizer: Mapping[str, Any] = field(default_factory=dict)

    def rates_of(self, setting: str) -> tuple[float, ...]:
        return self.rates.get(setting, self.rates[""])

    def steps(self, forwards: int) -> int:
        """How many steps come to no more than so many example-forwards; at least one."""
        spent = 0
        for step in count():
            spent += self.forwards(step)
            if spent > forwards:
                return max(1, step)
        raise AssertionError


def _anchored(every: int, large: int) -> Callable[[int], int]:
    return lambda step: 4 * BATCH if step % every else 2 * large


_DISTANCES = {"": (3e-4, 1e-3, 3e-3)}
_PLAIN = {"": (1e-6, 1e-5, 1e-4), "full": (1e-7, 1e-6, 1e-5), "lora:8": (1e-5, 1e-4, 1e-3)}
START, CEILING = "head start alone", "adamw"
VARIANTS = {
    START: Variant(method="zo", rates={"": (1e-12,)}, forwards=lambda step: 1 << 40),
    "zo": Variant(method="zo", rates=_DISTANCES),
    "zo, 1 direction": Variant(method="zo", rates=_DISTANCES, optimizer={"directions": 1}),
    "zo, not normalized": Variant(method="zo", rates=_PLAIN, optimizer={"normalize": False}),
    "mezo": Variant(method="mezo", rates=_PLAIN),
    "svrg": Variant(method="svrg", rates=_DISTANCES, forwards=_anchored(2, 512)),
    "svrg, 128 rows every 8": Variant(
        method="svrg",
        rates=_DISTANCES,
        forwards=_anchored(8, 128),
        optimizer={"anchor_every": 8, "anchor_batch": 128},
    ),
    "fzoo, 8 directions": Variant(method="fzoo", rates=_DISTANCES, forwards=lambda step: 9 * BATCH),
    "lozo": Variant(method="lozo", rates=_DISTANCES),
    "lozo, 1 direction": Variant(method="lozo", rates=_DISTANCES, optimizer={"directions": 1}),
    "conmezo": Variant(method="conmezo", rates=_DISTANCES),
    "agzo": Variant(method="agzo", rates=_DISTANCES),
    CEILING: Variant(
        method="adamw", rates={"": (2e-5, 5e-5, 2e-4), "lora:8": (2e-4, 5e-4, 2e-3)}, forwards=lambda step: BATCH
    ),
}
GRID_RATES, GRID_SCALES = (3e-4, 1e-3, 3e-3), (3.0, 10.0, 30.0)
GRID_DEFAULT = (1e-3, 10.0)
GRID = {
    f"zo, head_scale {scale:g}": Variant(method="zo", rates={"": GRID_RATES}, optimizer={"head_scale": scale})
    for scale in GRID_SCALES
}


def parquet(task: str, name: str) -> Path:
    return Path(os.environ["FEATHERLIGHT_DATA"]) / task / f"{name}.parquet"


def files_of(name: str, rows: int, seed: int, folder: Path) -> tuple[Path, Path]:
    """Training and held-out rows of a seed, never the same rows."""
    task, paths = TASKS[name], (folder / f"{name}-{seed}-train.parquet", folder / f"{name}-{seed}-held.parquet")
    source = pq.read_table(parquet(name, "train"))
    order = IndexPermutation(source.num_rows, seed)
    pq.write_table(source.take(pa.array(order.indices(0, rows))), paths[0])
    start = rows
    if task.held_out is not None:
        source = pq.read_table(parquet(name, task.held_out))
        order, start = IndexPermutation(source.num_rows, seed), 0
    pq.write_table(source.take(pa.array(order.indices(start, task.held_out_rows))), paths[1])
    return paths


def one_run(key: Row, variant: Variant, folder: Path) -> Row:
    """Trains once: scores of the held-out rows against example-forwards, and of the test rows at the end."""
    task = TASKS[key["task"]]
    train, held_out = files_of(key["task"], key["rows"], key["seed"], folder)
    values = {
        "model": "minilm",
        "train": str(train),
        "valid": str(held_out),
        "text": task.text,
        "label": "label",
        "metric": task.metric,
        "method": variant.method,
        "steps": variant.steps(key["forwards"]),
        "batch": BATCH,
        "max_length": 128,
        "allow_truncation": True,
        "evaluations": 6,
        "seed": key["seed"],
        "optimizer": {"lr": key["lr"], **variant.optimizer},
        **SETTINGS[key["setting"]],
    }
    path, began = folder / f"run-{time.monotonic_ns()}", time.perf_counter()
    config = from_mapping(FinetuneConfig, values, source="benchmark")
    finished = run_one(find_recipe("finetune/custom"), config, path, command="", display=Display())
    record = read_run(path)
    assert record.summary is not None
    scored = use.evaluate(
        use.load_trained(path), str(parquet(key["task"], task.test)), text=(), label=None, allow_truncation=True
    )
    memory = record.summary.memory
    assert memory is not None
    fitted = [[0, event.loss, event.values[task.metric]] for event in record.events if event.name == "head start"]
    after = [[point.forwards, point.loss, point.values[task.metric]] for point in record.evals if point.step]
    return key | {
        "stopped": finished.stopped,
        "steps": finished.steps,
        "used_forwards": record.steps[-1].forwards if record.steps else 0,
        "held_out": fitted + after,
        "test": scored[task.metric],
        "test_loss": scored["loss"],
        "seconds": time.perf_counter() - began,
        "step_seconds": finished.seconds,
        "training_peak_megabytes": _megabytes(memory.training_peak),
        "megabytes_above_inference": _megabytes(memory.above_inference),
        "journal_bytes": record.summary.journal_bytes,
    }


def _megabytes(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else num_bytes / 1e6
