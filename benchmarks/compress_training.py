"""Networks that are trained to be small: bytes of the real file against errors on the test images of MNIST.

Each seed trains a dense network once (`featherlight run classify/caffe_lenet_mnist` with the network asked for), from which every
setting starts (`featherlight run compress/...`). The file is read back from disk and its network is run on the test images;
"times smaller" is four bytes a parameter over the bytes of the file. Settings of LeNet-300-100 were chosen on seed 0, those of
LeNet-5 on none of these, by validation images. A run that was stopped goes on, and a finished one is a line of
results/compress_training.rows.jsonl and is not made again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.common import RESULTS, FinishedRuns, OutOfTimeError, Row, finish_run, spread, target
from featherlight.archive import Archive, load_into
from featherlight.data.image_sets import load_mnist
from featherlight.recipes.classify.network import read_network

SEEDS = range(5)
RUNS = Path("runs/compress")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to compress a network.

    Attributes:
        recipe: of the compression.
        network: its name among the classifiers.
        dense_epochs: of the network it starts from.
        options: of the recipe that are not its defaults.
        asked: times smaller, and the error in percent at which.
    """

    recipe: str
    network: str
    dense_epochs: int
    options: tuple[str, ...] = ()
    asked: tuple[tuple[float, float], ...]


SETTINGS = {
    "LeNet-300-100": Setting(
        recipe="compress/lenet300", network="lenet300", dense_epochs=40, asked=((95, 1.58), (110, 1.58))
    ),
    "LeNet-300-100, smaller": Setting(
        recipe="compress/lenet300",
        network="lenet300",
        dense_epochs=40,
        options=("prune.sparsity=0.965", "prune.epochs=24", "share.rate=0.01", "share.epochs=10"),
        asked=((150, 1.9), (220, 1.9)),
    ),
    "LeNet-5-Caffe": Setting(recipe="compress/lenet5", network="caffe-lenet", dense_epochs=10, asked=((180, 0.8),)),
    "LeNet-5-Caffe, smaller": Setting(
        recipe="compress/lenet5",
        network="caffe-lenet",
        dense_epochs=10,
        options=("prune.sparsity=0.99", "share.rate=0.01"),
        asked=((300, 1.0), (606, 1.0)),
    ),
}


def measure(done: FinishedRuns, seeds: Sequence[int] = SEEDS, folder: Path = RUNS) -> None:
    """All rows that are missing.

    Raises:
        OutOfTimeError: the minutes are used up.
    """
    for seed in seeds:
        for name in SETTINGS:
            done.get(_key(name, seed), lambda n=name, s=seed: one_run(SETTINGS[n], s, folder), str)


def _key(name: str, seed: int) -> Row:
    setting = SETTINGS[name]
    return {"net": name, "seed": seed, "options": list(setting.options), "dense_epochs": setting.dense_epochs}


def one_run(setting: Setting, seed: int, folder: Path) -> Row:
    """Trains the dense network unless that was done, compresses it, and reads the file back."""
    dense = folder / f"{setting.network}-{setting.dense_epochs}-{seed}"
    finish_run(
        "classify/caffe_lenet_mnist",
        dense,
        (f"seed={seed}", f"network={setting.network}", f"epochs={setting.dense_epochs}"),
    )
    options = (f"seed={seed}", f"classify.initial={dense}", *setting.options)
    mark = "-".join(one.replace("=", "-") for one in setting.options) or "default"
    out = folder / f"{setting.network}-{seed}-{mark}"
    finish_run(setting.recipe, out, options)
    network = read_network(out)
    before, dense_bytes = (
        wrong_percent(read_network(dense).model),
        4 * sum(p.numel() for p in network.model.parameters()),
    )
    path = out / "model" / "model.feather"
    load_into(Archive(path), network.model)
    size = path.stat().st_size
    return {
        "dense_error": before,
        "error": wrong_percent(network.model),
        "bytes": size,
        "times_smaller": dense_bytes / size,
    }


@torch.no_grad()
def wrong_percent(model: torch.nn.Module) -> float:
    """Percent of the 10,000 test images that are read wrong."""
    images = load_mnist().test
    assert images is not None
    rows = torch.arange(len(images)).split(500)
    right = sum(int((model(images.floats(part)).argmax(1) == images.labels[part]).sum()) for part in rows)
    return 100 * (1 - right / len(images))


def training(*, short: bool, minutes: float | None = None) -> tuple[list[Row], list[dict[str, object]]]:
    """The rows there are and what was asked for, by means over the seeds; the short form takes one seed."""
    done = FinishedRuns(RESULTS / "compress_training.rows.jsonl", minutes)
    seeds = SEEDS[:1] if short else SEEDS
    try:
        measure(done, seeds)
    except OutOfTimeError:
        print("out of time; the same command goes on")
    goals = []
    for name, setting in SETTINGS.items():
        rows = [row for seed in seeds if (row := done.find(_key(name, seed))) is not None]
        if not rows:
            continue
        error, smaller = (sum(row[key] for row in rows) / len(rows) for key in ("error", "times_smaller"))
        print(f"{name}: {len(rows)} seeds, {spread([row['times_smaller'] for row in rows])} at {error:.2f}%")
        for times, most in setting.asked:
            goals.append(target(f"{name}, times smaller, asked at {most}%", smaller, ">=", times, "x"))
            goals.append(target(f"{name}, test error, asked at {times} times", error, "<=", most, "%"))
    return done.rows, goals
