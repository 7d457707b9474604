"""Predicted against measured memory: peaks of training steps for nets x optimizers, and resident sizes of processes.

    python -m benchmarks.planner_memory --short         # five nets, four optimizers, two processes
    python -m benchmarks.planner_memory --minutes 4.5   # goes on where it was stopped

The peak of two steps is predicted without running them, and then measured by torch's profiler. A process is a child that predicts
and then runs the steps; its largest resident size is the system's own count.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from benchmarks.common import RESULTS, FinishedRuns, OutOfTimeError, Row, target, write_results
from benchmarks.planner_nets import NETS, Problem, classes, images, of_classes
from featherlight.meter import allocation_peak, process_peak_bytes
from featherlight.nn.models import MobileNet, resnet18
from featherlight.objective import BatchObjective
from featherlight.optim import MeZO, Prodigy, ZerothOrderSGD, muon_with_adamw
from featherlight.planner.memory import StepMemory, predict_or_measure
from featherlight.planner.process import predict_process, resident_bytes

OPTIMIZERS: Mapping[str, Callable[[nn.Module], Optimizer]] = {
    "AdamW": lambda model: AdamW(model.parameters(), fused=True),
    "SGD": lambda model: SGD(model.parameters(), lr=1e-3, momentum=0.9),
    "zo": lambda model: ZerothOrderSGD(model, 1e-3),
    "MeZO": lambda model: MeZO(model, 1e-6),
    "Prodigy": lambda model: Prodigy(model.parameters()),
    "Muon": lambda model: muon_with_adamw(model, 1e-3),
}
SMALL = 10**6
SHORT_NETS = ("MLP", "LeNet-5", "LSTM of text", "vector quantizer", "BERT")
SHORT_OPTIMIZERS = ("AdamW", "SGD", "zo", "MeZO")
STEPS = 2


def wide() -> Problem:
    """A net of large products."""
    layers = [layer for _ in range(6) for layer in (nn.Linear(2048, 2048), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(2048, 10)), {"x": torch.rand(512, 2048), "y": classes(512)}, of_classes


def encoder() -> Problem:
    """Six blocks of the size of MiniLM."""
    layer = nn.TransformerEncoderLayer(384, 12, 1536, batch_first=True)
    body = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
    net = nn.Sequential(body, nn.Flatten(), nn.Linear(64 * 384, 10))
    return net, {"x": torch.rand(32, 64, 384), "y": classes(32)}, of_classes


PROCESSES: Mapping[str, Callable[[], Problem]] = {
    "wide": wide,
    "ResNet-18": lambda: images(resnet18(10), 16, 3, 96),
    "encoder": encoder,
    "LeNet-5": NETS["LeNet-5"],
    "MobileNet": lambda: images(MobileNet(10), 16, 3, 96),
}


def predicted(problem: Problem, optimizer: str) -> StepMemory:
    """The prediction of two steps."""
    model, batch, loss = problem
    return predict_or_measure(model, batch, lambda m, b: BatchObjective(m, b, loss), OPTIMIZERS[optimizer])


def steps(problem: Problem, optimizer: str) -> None:
    """The steps themselves."""
    model, batch, loss = problem
    model.train()
    chosen = OPTIMIZERS[optimizer](model)
    for _ in range(STEPS):
        chosen.step(BatchObjective(model, batch, loss))  # pyright: ignore[reportArgumentType, reportCallIssue]


def peak(net: str, optimizer: str) -> Row:
    """One net with one optimizer."""
    torch.manual_seed(0)
    problem = NETS[net]()
    began, processor = time.perf_counter(), time.process_time()
    found = predicted(problem, optimizer)
    seconds, busy = time.perf_counter() - began, time.process_time() - processor
    with allocation_peak() as measured:
        steps(problem, optimizer)
    return {
        "predicted": found.above_start,
        "measured": measured.bytes,
        "error": found.above_start / measured.bytes - 1,
        "seconds": seconds,
        "processor_seconds": busy,
        "by": "prediction" if found.measured is None else "dry steps",
        "reason": found.measured,
        "parameters": sum(p.numel() for p in problem[0].parameters()),
    }


def process(net: str, optimizer: str) -> Row:
    """The largest resident size of a child that predicts and then runs the steps."""
    words = [sys.executable, "-m", "benchmarks.planner_memory", "--child", net, optimizer]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def child(net: str, optimizer: str) -> None:
    """What the child does."""
    torch.manual_seed(0)
    problem = PROCESSES[net]()
    found = predicted(problem, optimizer)
    total = predict_process(found, loaded=True).total
    before = resident_bytes()
    steps(problem, optimizer)
    measured = process_peak_bytes()
    print(json.dumps({"predicted": total, "measured": measured, "before": before, "error": total / measured - 1}))


def large() -> Row:
    """Seconds of a prediction for 100 million parameters."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from benchmarks.planner_nets import of_next_tokens, transformer
    from featherlight.planner.fake_model import new_fake_mode

    with new_fake_mode():
        model = GPT2LMHeadModel(GPT2Config(vocab_size=20000))
    problem = transformer(model, of_next_tokens, 4, 128)
    began, processor = time.perf_counter(), time.process_time()
    found = predicted(problem, "AdamW")
    seconds, busy = time.perf_counter() - began, time.process_time() - processor
    count = sum(p.numel() for p in model.parameters())
    return {"parameters": count, "seconds": seconds, "processor_seconds": busy, "predicted": found.above_start}


def run(runs: FinishedRuns, nets: list[str], optimizers: list[str], processes: list[tuple[str, str]]) -> None:
    """All rows that are not there yet."""
    for net in nets:
        for optimizer in optimizers:
            runs.get(
                {"kind": "peak", "net": net, "optimizer": optimizer},
                lambda net=net, optimizer=optimizer: peak(net, optimizer),
                lambda row: (
                    f"{row['net']:20} {row['optimizer']:8} {row['error']:+8.2%} {row['seconds']:6.2f} s {row['by']}"
                ),
            )
    runs.get({"kind": "large"}, large, lambda row: f"{row['parameters']:,} parameters: {row['seconds']:.2f} s")
    for net, optimizer in processes:
        runs.get(
            {"kind": "process", "net": net, "optimizer": optimizer},
            lambda net=net, optimizer=optimizer: process(net, optimizer),
            lambda row: (
                f"process {row['net']:12} {row['optimizer']:8} {row['error']:+8.2%} of {row['measured'] / 1e6:.0f} MB"
            ),
        )


def report(name: str, rows: list[Row]) -> None:
    """Results and targets; names the worst."""
    peaks = [row for row in rows if row["kind"] == "peak"]
    followed = [row for row in peaks if row["by"] == "prediction"]
    sizes = [row for row in rows if row["kind"] == "process"]
    worst = max(followed, key=lambda row: abs(row["error"]))
    print(f"worst: {worst['net']} with {worst['optimizer']}, {worst['error']:+.2%}")
    targets = [
        target("nets", len({row["net"] for row in peaks}), ">=", 20, "nets"),
        target("nets that are followed", len({row["net"] for row in followed}), ">=", 20, "nets"),
        target("worst error of a predicted peak", abs(worst["error"]), "<=", 0.02, "of the measured one"),
        target(
            "slowest prediction of a small net",
            max(row["processor_seconds"] for row in followed if row["parameters"] < SMALL),
            "<=",
            0.5,
            "s of a core",
        ),
        target(
            "slowest prediction of a larger net",
            max((row["processor_seconds"] for row in followed if row["parameters"] >= SMALL), default=0.0),
            "<=",
            3.0,
            "s of a core",
        ),
        *(
            target("prediction for 100 million parameters", row["processor_seconds"], "<=", 3.0, "s of a core")
            for row in rows
            if row["kind"] == "large"
        ),
    ]
    if sizes:
        targets += [
            target("a process above its prediction", -min(row["error"] for row in sizes), "<=", 0.05, "of its size"),
            target("a process below its prediction", max(row["error"] for row in sizes), "<=", 0.10, "of its size"),
        ]
    write_results(name, rows, targets)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--child", nargs=2)
    asked = parser.parse_args()
    if asked.child:
        child(*asked.child)
        return
    name = "planner_memory_short" if asked.short else "planner_memory"
    runs = FinishedRuns(RESULTS / f"{name}.rows.jsonl", asked.minutes)
    nets, optimizers = (SHORT_NETS, SHORT_OPTIMIZERS) if asked.short else (NETS, OPTIMIZERS)
    processes = [(net, optimizer) for net in PROCESSES for optimizer in ("AdamW", "SGD", "MeZO")]
    chosen = processes[:2] if asked.short else processes
    predicted(NETS["MLP"](), "AdamW")  # imports, and what torch does once
    try:
        run(runs, list(nets), list(optimizers), chosen)
    except OutOfTimeError:
        print("out of time; the same command goes on")
        return
    report(name, runs.rows)


if __name__ == "__main__":
    main()
