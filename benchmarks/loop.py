"""What the loop costs: beside a bare loop, beside Hugging Face Trainer and Lightning, and how soon the command line answers.

    python -m benchmarks.loop            about half an hour on 2 cores; goes on where it stopped
    python -m benchmarks.loop --short    about 5 minutes

`step overhead`: a ResNet-20 at batch 32. A whole run of ours goes on, and after each of its steps a bare loop makes one of
its own on a twin of the model, so that both meet the same machine. `fine-tune`: MiniLM-L6 with AdamW through each
trainer, in processes of their own and in turn (see `benchmarks.loop_sides`). `command line`: from typing to the prompt.
The first round of processes is not reported: it warms the file cache.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.common import RESULTS, commit, spread, target, write_results
from benchmarks.loop_sides import SIDES
from featherlight.meter import Meter
from featherlight.objective import BatchObjective, finite
from featherlight.trainer import Budget, Display, Evaluation, Experiment, Identity, Run, RunDirectory, Stage

BATCH = 32
WARMUP = 5
NUM_BATCHES = 8
COMMANDS = {"featherlight --help": 0.5, "featherlight recipes": 1.0}
PEERS = {"transformers": "Hugging Face Trainer", "lightning": "Lightning"}
MEASURES = {
    "import_seconds": ("import time", False),
    "first_step_seconds": ("time to first step", False),
    "steps_per_second": ("steps/s", True),
    "peak_megabytes": ("peak memory", False),
}
"""Name of each, and whether more is better."""


class Block(nn.Module):
    """Two convolutions and a way past them that costs no parameters."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        past = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        inner = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(inner)) + past).relu()


def resnet20() -> nn.Sequential:
    """He et al. 2016, for CIFAR: 20 layers, 0.27 million parameters."""
    shapes = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    top = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*stem, *(Block(*shape) for shape in shapes), *top)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)


def cross_entropy(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch["images"]), batch["labels"], reduction="none")


class Bare:
    """A loop written by hand, one step at a time."""

    def __init__(self, model: nn.Module, batches: list[dict[str, Tensor]]) -> None:
        self.model, self.batches, self.optimizer = model.train(), batches, sgd(model)
        self.losses: list[float] = []

    def step(self, number: int) -> float:
        """Seconds of the step."""
        began = time.perf_counter()
        batch = self.batches[number % NUM_BATCHES]
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(batch["images"]), batch["labels"])
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())
        return time.perf_counter() - began


class InTurn:
    """A listener that makes a step of the bare loop after each step of the run; measures from its end to the next call."""

    def __init__(self, bare: Bare) -> None:
        self.bare = bare
        self.left: float | None = None
        self.seconds: list[tuple[float, float]] = []
        self.losses: list[float] = []

    def __call__(self, line: Mapping[str, Any]) -> None:
        now = time.perf_counter()
        if line["kind"] != "step":
            return
        ours = None if self.left is None else now - self.left
        theirs = self.bare.step(line["step"] - 1)
        if ours is not None and line["step"] > WARMUP:
            self.seconds.append((ours, theirs))
        self.losses.append(line["loss"])
        self.left = time.perf_counter()


def step_overhead(steps: int) -> dict[str, Any]:
    """Seconds of a step of a run, with everything a run does in it, and of a bare one."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(NUM_BATCHES, BATCH, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (NUM_BATCHES, BATCH), generator=generator)
    batches = [{"images": x, "labels": y} for x, y in zip(images, labels, strict=True)]
    model = resnet20()
    listener = InTurn(Bare(copy.deepcopy(model), batches))

    def objective(step: int, meter: Meter) -> BatchObjective:
        loss = finite(cross_entropy, step, range(step * BATCH, (step + 1) * BATCH))
        return BatchObjective(model, batches[step % NUM_BATCHES], loss, dropout_seed=step, meter=meter)

    experiment = Experiment(
        model=model,
        stages=[
            Stage(optimizer=lambda journal, meter: sgd(model), objective=objective, budget=Budget(steps=steps + WARMUP))
        ],
        evaluate=lambda: [Evaluation(values={"none": 0.0})],
        title="resnet-20",
        evaluations=1,
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        RunDirectory.open(Path(folder) / "run", "") as directory,
    ):
        directory.keep("", "")
        identity = Identity(recipe="benchmark", seed=0, command="")
        display = Display(Console(file=nowhere))
        Run(experiment=experiment, directory=directory, identity=identity, display=display, listeners=[listener]).run()
    ours, theirs = zip(*listener.seconds, strict=True)
    apart = max(abs(a - b) / abs(b) for a, b in zip(listener.losses, listener.bare.losses, strict=True))
    return {
        "seconds": spread(ours),
        "bare_seconds": spread(theirs),
        "overhead_percent": 100 * (statistics.median(a / b for a, b in listener.seconds) - 1),
        "overhead_milliseconds": 1000 * statistics.median(a - b for a, b in listener.seconds),
        "losses_apart": apart,
    }


def fine_tune(side: str, steps: int) -> dict[str, Any]:
    """One fine-tune in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.loop_sides", side, str(steps), folder, str(time.monotonic())]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{side} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
        return json.loads((Path(folder) / "row.json").read_text())


def answer(command: str) -> dict[str, Any]:
    """Seconds until a command is done."""
    program, *arguments = command.split()
    began = time.perf_counter()
    subprocess.run([str(Path(sys.executable).with_name(program)), *arguments], capture_output=True, check=True)
    return {"seconds": time.perf_counter() - began}


def plan(short: bool) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]:
    """What names each row, and what makes it; sides in turn. Round 0 of processes is not reported."""
    for number in range(1 + (3 if short else 15)):
        for command in COMMANDS:
            yield {"what": "command line", "side": command, "round": number}, lambda command=command: answer(command)
    for number in range(1, 1 + (1 if short else 5)):
        steps = 40 if short else 100
        key = {"what": "step overhead", "side": "featherlight", "round": number}
        yield key | {"steps": steps}, lambda steps=steps: step_overhead(steps)
    for number in range(1 + (2 if short else 7)):
        for side in SIDES:
            steps = 12 if number == 0 else 20 if short else 60
            key = {"what": "fine-tune", "side": side, "round": number, "steps": steps}
            yield key, lambda side=side, steps=steps: fine_tune(side, steps)


class Rows:
    """Rows of this commit, kept on disk as they come."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self.path, self.commit = path, commit()
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() and not fresh else []
        self.rows = [row for row in found if row["commit"] == self.commit]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def get(self, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> None:
        """Makes the row unless it is there."""
        if any(all(row.get(name) == value for name, value in key.items()) for row in self.rows):
            return
        row = key | make() | {"commit": self.commit, "load": os.getloadavg()[0]}
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    def of(self, what: str, side: str) -> list[dict[str, Any]]:
        """Reported rows."""
        return [row for row in self.rows if (row["what"], row["side"]) == (what, side) and row["round"] > 0]


def targets_of(rows: Rows) -> list[dict[str, Any]]:
    """The figures that were asked for."""
    found = []
    overheads = [row["overhead_percent"] for row in rows.of("step overhead", "featherlight")]
    if overheads:
        name = "overhead of a ResNet-20 step at batch 32 over a bare loop"
        found.append(target(name, statistics.median(overheads), "<=", 2.0, "%"))
    ours = rows.of("fine-tune", "featherlight")
    for side, peer in PEERS.items():
        theirs = rows.of("fine-tune", side)
        for measure, (name, more) in MEASURES.items() if ours and theirs else ():
            a, b = ([row[measure] for row in some] for some in (ours, theirs))
            ratios = [x / y if more else y / x for x, y in zip(a, b, strict=False)]
            found.append(
                target(f"MiniLM fine-tune, ahead of {peer}: {name}", statistics.median(ratios), ">=", 1.0, "x")
            )
    for command, seconds in COMMANDS.items():
        some = [row["seconds"] for row in rows.of("command line", command)]
        if some:
            found.append(target(command, statistics.median(some), "<=", seconds, "s"))
    return found


def summary(rows: Rows) -> list[dict[str, Any]]:
    """Medians and ranges of the fine-tune, side by side, and whether all came to the same weights."""
    told = []
    for side in SIDES:
        some = rows.of("fine-tune", side)
        if some:
            measures = (*MEASURES, "step_megabytes", "seconds", "moved")
            told.append({"what": "fine-tune, all rounds", "side": side, "rounds": len(some)})
            told[-1] |= {measure: spread([row[measure] for row in some]) for measure in measures}
    moved = [row["moved"]["median"] for row in told]
    if moved and max(moved) > 1.001 * min(moved):
        print(f"warning: the sides did not come to the same weights; they moved them by {moved}")
    return told


def draw(told: list[dict[str, Any]], path: Path) -> None:
    """Bars of each measure, one a side, with the range over the rounds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    sides = [row["side"] for row in told]
    for axes, (measure, (name, more)) in zip(figure.subplots(1, len(MEASURES)), MEASURES.items(), strict=True):
        middle = [row[measure]["median"] for row in told]
        ends = [[row[measure]["median"] - row[measure]["min"] for row in told]]
        ends.append([row[measure]["max"] - row[measure]["median"] for row in told])
        axes.bar(sides, middle, yerr=ends, color=["#0072b2", "#d55e00", "#009e73", "#999999"][: len(sides)])
        axes.set_title(f"{name} ({'more' if more else 'less'} is better)", fontsize=10)
        axes.set_ylabel(measure.split("_")[-1] if not more else "steps/s")
        axes.tick_params(axis="x", rotation=30)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer rounds and steps, a few minutes")
    parser.add_argument("--fresh", action="store_true", help="measure anew what this commit has rows of")
    parser.add_argument("--part", action="append", help="only this: command line, step overhead or fine-tune")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    name = "loop_short" if arguments.short else "loop"
    rows = Rows(RESULTS / f"{name}.rows.jsonl", fresh=arguments.fresh)
    for key, make in plan(arguments.short):
        if arguments.part is None or key["what"] in arguments.part:
            rows.get(key, make)
    told = summary(rows)
    print(f"wrote {write_results(name, [*told, *rows.rows], targets_of(rows))}")
    if told:
        draw(told, RESULTS / f"{name}.svg")


if __name__ == "__main__":
    main()
