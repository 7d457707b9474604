"""Prodigy's default beside the best of a grid of learning rates of AdamW: accuracy on three tasks, and memory of the state.

    python -m benchmarks.classics --short          # one seed, a third of the steps
    python -m benchmarks.classics --minutes 4.5    # goes on where it was stopped; three seeds in all
    python -m benchmarks.classics --speed          # time of a step alone, beside prodigyopt and AdamW

Both sides see the same batches from the same initial weights and a cosine to zero. The best rate of AdamW is chosen by the
very score that is compared, which favours AdamW; Prodigy is not tuned.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.common import RESULTS, FinishedRuns, OutOfTimeError, Row, in_turn, spread, target, write_results
from featherlight.data import IndexPermutation, load_images
from featherlight.nn.models import BlockShape, Gpt, LeNet300, RecurrentClassifier, RecurrentShape, resnet20
from featherlight.objective import BatchObjective, seeded_random
from featherlight.optim import DistanceEstimate, Prodigy
from featherlight.trainer import SCHEDULES

RATES = (1e-4, 2.5e-4, 6e-4, 1.5e-3, 4e-3, 1e-2, 2.5e-2, 6e-2)
SEEDS = (0, 1, 2)
TEXT_LENGTH = 64

METHODS: Mapping[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    **{f"AdamW {rate:g}": lambda params, rate=rate: AdamW(params, lr=rate, weight_decay=0.0) for rate in RATES},
    "Prodigy": lambda params: Prodigy(params),
    "Prodigy, sampled": lambda params: Prodigy(params, estimate=DistanceEstimate(stride=11)),
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learned.

    Attributes:
        steps: of a run.
        model: a fresh one, of the present random state.
        batch: of a step, by its number and a seed.
        losses: of a batch, one for each row.
        score: accuracy on held-out data, in percent.
    """

    steps: int
    model: Callable[[], nn.Module]
    batch: Callable[[int, int], Mapping[str, Tensor]]
    losses: Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
    score: Callable[[nn.Module], float]


class Rows(nn.Module):
    """An LSTM that reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = RecurrentClassifier(10, num_features=28, shape=RecurrentShape(width=64))

    def forward(self, images: Tensor) -> Tensor:
        return self.reader(images.squeeze(1))


@cache
def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """MNIST: images to learn from with labels, and held-out ones, to mean 0 and variance 1."""
    splits = load_images("mnist")
    assert splits.test is not None
    mean, std = splits.train.channel_statistics()
    train, test = ((part.images.float() / 255 - mean[0]) / std[0] for part in (splits.train, splits.test))
    return train, splits.train.labels, test, splits.test.labels


def image_task(model: Callable[[], nn.Module], *, steps: int, batch: int) -> Task:
    """Digits of MNIST."""

    def rows(step: int, seed: int) -> Mapping[str, Tensor]:
        train, labels, _, _ = images()
        chosen = torch.tensor(IndexPermutation(len(train), seed).indices(step * batch, batch))
        return {"x": train[chosen], "y": labels[chosen]}

    def losses(model: nn.Module, part: Mapping[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(part["x"]), part["y"], reduction="none")

    def score(model: nn.Module) -> float:
        _, _, test, labels = images()
        predicted = torch.cat([model(part).argmax(1) for part in test.split(1000)])
        return 100 * float((predicted == labels).double().mean())

    return Task(steps=steps, model=model, batch=rows, losses=losses, score=score)


@cache
def text() -> tuple[Tensor, Tensor, int]:
    """Characters of Shakespeare as numbers, to learn from and held out, and how many different ones there are."""
    import os

    folder = Path(os.environ["FEATHERLIGHT_DATA"]) / "tiny-shakespeare"
    parts = [
        "\n".join(pq.read_table(folder / f"{name}.parquet")["text"].to_pylist()) for name in ("train", "validation")
    ]
    known = {letter: number for number, letter in enumerate(sorted(set("".join(parts))))}
    train, valid = (torch.tensor([known[letter] for letter in part]) for part in parts)
    return train, valid, len(known)


def text_task(*, steps: int, batch: int) -> Task:
    """The next character of Shakespeare, by a Transformer of two blocks."""

    def model() -> nn.Module:
        return Gpt(text()[2], context=TEXT_LENGTH, shape=BlockShape(width=64, num_heads=4, dropout=0.0), num_blocks=2)

    def windows(starts: Tensor, letters: Tensor) -> Tensor:
        return letters[starts[:, None] + torch.arange(TEXT_LENGTH + 1)]

    def rows(step: int, seed: int) -> Mapping[str, Tensor]:
        letters = text()[0]
        starts = IndexPermutation(len(letters) - TEXT_LENGTH, seed).indices(step * batch, batch)
        return {"t": windows(torch.tensor(starts), letters)}

    def losses(model: nn.Module, part: Mapping[str, Tensor]) -> Tensor:
        logits = model(part["t"][:, :-1])
        return nn.functional.cross_entropy(logits.mT, part["t"][:, 1:], reduction="none").mean(1)

    def score(model: nn.Module) -> float:
        held = text()[1]
        starts = torch.arange(0, min(len(held) - TEXT_LENGTH - 1, 800 * TEXT_LENGTH), TEXT_LENGTH)
        right = [
            (model(part[:, :-1]).argmax(-1) == part[:, 1:]).double().mean(1)
            for part in windows(starts, held).split(100)
        ]
        return 100 * float(torch.cat(right).mean())

    return Task(steps=steps, model=model, batch=rows, losses=losses, score=score)


def tasks(short: bool) -> Mapping[str, Task]:
    """By name; the short form takes a third of the steps."""
    share = 3 if short else 1
    return {
        "LeNet-300-100 on MNIST": image_task(LeNet300, steps=2400 // share, batch=125),
        "LSTM on rows of MNIST": image_task(Rows, steps=1200 // share, batch=100),
        "Transformer on Shakespeare": text_task(steps=900 // share, batch=32),
    }


def train(task: Task, method: str, seed: int) -> Row:
    """One run: score, bytes of state for each parameter, seconds."""
    with seeded_random(seed, torch.device("cpu")):
        model = task.model()
    optimizer = METHODS[method](list(model.parameters()))
    schedule = SCHEDULES["cosine"]
    scheduler = LambdaLR(optimizer, lambda step: schedule(step / task.steps))
    began, loss = time.perf_counter(), torch.zeros(())
    for step in range(task.steps):
        loss = optimizer.step(BatchObjective(model, task.batch(step, seed), task.losses))  # pyright: ignore
        scheduler.step()
    seconds = time.perf_counter() - began
    model.eval()
    with torch.no_grad():
        score = task.score(model)
    return {
        "score": score,
        "loss": float(loss),
        "state over weights": state_bytes(optimizer) / sum(p.numel() * p.element_size() for p in model.parameters()),
        "seconds": seconds,
        **({"d": optimizer.param_groups[0]["d"]} if isinstance(optimizer, Prodigy) else {}),
    }


def state_bytes(optimizer: Optimizer) -> int:
    """Of all tensors with more than one entry, as they lie in memory."""
    tensors = [
        t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor) and t.numel() > 1
    ]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def step_times(rounds: int = 30) -> list[Row]:
    """Milliseconds of an optimizer's step on half the square of the weights, each side in turn."""
    import prodigyopt

    models = {
        "LeNet-300-100, 6 tensors": LeNet300,
        "ResNet-20, 65 tensors": lambda: resnet20(10),
        "4 matrices of 1024 x 1024": lambda: nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(4))),
    }
    sides: dict[str, Callable[[Any], Optimizer]] = {
        "Prodigy": Prodigy,
        "Prodigy, sampled": METHODS["Prodigy, sampled"],
        "prodigyopt": prodigyopt.Prodigy,
        "prodigyopt, slice_p=11": lambda params: prodigyopt.Prodigy(params, slice_p=11),
        "AdamW, fused": lambda params: AdamW(params, fused=True),
    }
    rows = []
    for name, make in models.items():
        calls = {}
        for side, optimizer_of in sides.items():
            with seeded_random(0, torch.device("cpu")):
                model = make()
            calls[side] = _step_on_squares(list(model.parameters()), optimizer_of)
        seconds = in_turn(calls, rounds=rounds, warmup=3)
        for side, values in seconds.items():
            milliseconds = spread([1000 * value for value in values])
            rows.append({"model": name, "method": side, "milliseconds": milliseconds})
            print(f"{name}, {side}: {milliseconds['median']:.2f} ms")
    return rows


def _step_on_squares(params: list[nn.Parameter], optimizer_of: Callable[[Any], Optimizer]) -> Callable[[], object]:
    optimizer = optimizer_of(params)

    def step() -> None:
        for parameter in params:
            parameter.grad = parameter.detach().clone()
        optimizer.step()

    return step


def summary(rows: list[Row], names: list[str]) -> list[dict[str, Any]]:
    """Points behind the best of AdamW, task by task, by the mean over the seeds that all methods have run."""
    found = []
    for name in names:
        own = [row for row in rows if row["task"] == name]
        whole = [seed for seed in SEEDS if sum(row["seed"] == seed for row in own) == len(METHODS)]
        if not whole:
            continue
        scores = {m: [r["score"] for r in own if r["method"] == m and r["seed"] in whole] for m in METHODS}
        means = {method: statistics.mean(values) for method, values in scores.items()}
        best = max((mean, method) for method, mean in means.items() if method.startswith("AdamW"))
        for method in ("Prodigy", "Prodigy, sampled"):
            print(f"{name}: {method} {means[method]:.2f}, {best[1]} {best[0]:.2f}")
            found.append(target(f"{method} behind {best[1]}: {name}", best[0] - means[method], "<=", 0.2, "points"))
    sizes = [row["state over weights"] for row in rows if row["method"] == "Prodigy, sampled"]
    if sizes:
        found.append(target("state of Prodigy, sampled", max(sizes), "<=", 2.2, "times the weights"))
    return found


def picture(rows: list[Row], names: list[str], path: Path) -> None:
    """Score against the rate of AdamW, and Prodigy as levels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        own = [row for row in rows if row["task"] == name]
        means = {m: [row["score"] for row in own if row["method"] == m] for m in METHODS}
        line = [(rate, statistics.mean(means[f"AdamW {rate:g}"])) for rate in RATES if means[f"AdamW {rate:g}"]]
        axis.semilogx([rate for rate, _ in line], [mean for _, mean in line], "o-", label="AdamW")
        for method, style in (("Prodigy", "-"), ("Prodigy, sampled", ":")):
            if means[method]:
                axis.axhline(statistics.mean(means[method]), linestyle=style, color="tab:orange", label=method)
        best = max([mean for _, mean in line], default=100.0)
        lowest = min([0.85 * best, *(0.97 * statistics.mean(means[m]) for m in METHODS if "Prodigy" in m and means[m])])
        axis.set(title=name, xlabel="learning rate of AdamW", ylabel="accuracy, %", ylim=(lowest, 1.01 * best))
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs what is missing and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="one seed, a third of the steps")
    parser.add_argument("--minutes", type=float, default=None, help="begin no run after so many")
    parser.add_argument("--speed", action="store_true", help="time of a step alone")
    options = parser.parse_args()
    if options.speed:
        write_results("classics_speed", step_times(), [])
        return
    name = "classics_short" if options.short else "classics"
    RESULTS.mkdir(exist_ok=True)
    runs = FinishedRuns(RESULTS / f"{name}.rows.jsonl", options.minutes)
    found = tasks(options.short)
    try:
        for seed in SEEDS[:1] if options.short else SEEDS:
            for task, made in found.items():
                for method in METHODS:
                    runs.get(
                        {"task": task, "method": method, "seed": seed},
                        lambda made=made, method=method, seed=seed: train(made, method, seed),
                        lambda row: f"{row['task']}, {row['method']}: {row['score']:.2f} in {row['seconds']:.1f} s",
                    )
    except OutOfTimeError:
        print("out of time; the same command goes on")
    write_results(name, runs.rows, summary(runs.rows, list(found)))
    picture(runs.rows, list(found), RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
