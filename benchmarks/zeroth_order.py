"""The rank-one engine beside MeZO on MiniLM-L6: step time, memory, exactness of weights, replay.

python -m benchmarks.zeroth_order            about 15 minutes
python -m benchmarks.zeroth_order --short    about 2 minutes
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import RESULTS, in_turn, ratio, read_rows, spread, target, write_results
from featherlight.functional import SignStream
from featherlight.meter import Meter, allocation_peak
from featherlight.nn.models import SentenceClassifier, load_pretrained, resolve_model
from featherlight.objective import Batch, BatchObjective
from featherlight.optim import MeZO, RankOneSigns, ZerothOrderSGD
from featherlight.optim.zeroth_order import apply_updates
from featherlight.optim.zeroth_order.evaluation import SlopeEvaluator
from featherlight.trainer import JournalWriter, read_journal, weights_digest

SIZES = ((16, 32), (64, 32), (64, 128))
ASKED = {(16, 32): 3.0, (64, 32): 1.6, (64, 128): 1.0}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TINY_LR = 1e-9


def minilm(dtype: torch.dtype = torch.float32) -> SentenceClassifier:
    """MiniLM with a fresh two-class head, the same each time."""
    loaded = load_pretrained(resolve_model("minilm"), num_outputs=2, generator=torch.Generator().manual_seed(0))
    assert isinstance(loaded.model, SentenceClassifier)
    return loaded.model.to(dtype).eval()


def loss(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(batch["input_ids"], batch["attention_mask"]).logits
    return nn.functional.cross_entropy(logits.float(), batch["labels"], reduction="none")


def objective(model: nn.Module, size: tuple[int, int], seed: int = 0) -> BatchObjective:
    """Random tokens of a fixed length."""
    generator = torch.Generator().manual_seed(seed)
    batch = {
        "input_ids": torch.randint(1000, 20000, size, generator=generator),
        "attention_mask": torch.ones(size, dtype=torch.int64),
        "labels": torch.randint(0, 2, size[:1], generator=generator),
    }
    return BatchObjective(model, batch, loss)


def freeze_tables(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.requires_grad_(False)


def optimizers(model: nn.Module) -> dict[str, Any]:
    """The sides, with a learning rate that leaves the model as it is for all practical purposes."""
    return {
        "mezo": MeZO(model, TINY_LR),
        "zo, one shared direction": ZerothOrderSGD(model, TINY_LR, directions=RankOneSigns(1)),
        "zo, one direction per example": ZerothOrderSGD(model, TINY_LR, directions=RankOneSigns(None)),
    }


def step_times(rounds: int) -> list[dict[str, Any]]:
    """Seconds a step, with all weights trained and with embedding tables frozen (the default of a fine-tune)."""
    rows = []
    for trained in ("all", "without tables"):
        model = minilm()
        if trained != "all":
            freeze_tables(model)
        for size in SIZES:
            task = objective(model, size)
            sides: dict[str, Any] = {"two forward passes": lambda task=task: (task.value(), task.value())}
            sides |= {name: (lambda o=o, task=task: o.step(task)) for name, o in optimizers(model).items()}
            seconds = in_turn(sides, rounds=rounds)
            for name in sides:
                row = {"what": "step time", "size": list(size), "trained": trained, "side": name}
                row |= {"seconds": spread(seconds[name]), "mezo_over_this": ratio(seconds["mezo"], seconds[name])}
                rows.append(row)
                times = f"{row['seconds']['median']:.3f} s, MeZO / this {row['mezo_over_this']['median']:.2f}"
                print(f"{size} {trained:15} {name:30} {times}", flush=True)
    return rows


def memory() -> list[dict[str, Any]]:
    """Peak of tensor allocations of a step above that of one forward pass without gradients."""
    rows = []
    for size in SIZES:
        model = minilm()
        task = objective(model, size)
        with torch.inference_mode(), allocation_peak() as inference:
            task.value()
        for name, optimizer in optimizers(model).items():
            optimizer.step(task)
            with allocation_peak() as peak:
                optimizer.step(task)
            above = (peak.bytes - inference.bytes) / 1e6
            rows.append(
                {
                    "what": "memory above inference",
                    "size": list(size),
                    "side": name,
                    "megabytes": above,
                    "inference_megabytes": inference.bytes / 1e6,
                }
            )
            print(f"{size} {name:30} {above:8.2f} MB above inference ({inference.bytes / 1e6:.1f} MB)", flush=True)
    return rows


def drift(evaluations: int, mezo_evaluations: int) -> list[dict[str, Any]]:
    """Whether the weights are the same bits after many perturbed evaluations; and MeZO's relative drift."""
    rows = []
    for name, dtype in DTYPES.items():
        model = minilm(dtype)
        task = objective(model, (1, 2))
        optimizer = ZerothOrderSGD(model, TINY_LR)
        before = weights_digest(model.state_dict())
        evaluator = SlopeEvaluator(RankOneSigns(1), 1e-3)
        for step in range(evaluations // 2):
            evaluator.measure(task, optimizer.targets, SignStream(seed=1, step=step))
        same = weights_digest(model.state_dict()) == before
        rows.append(
            {
                "what": "weights after evaluations",
                "side": "zo",
                "dtype": name,
                "evaluations": evaluations,
                "same_bits": same,
            }
        )
        start = {n: p.detach().double().clone() for n, p in model.named_parameters()}
        mezo = MeZO(model, 0.0)
        for _ in range(mezo_evaluations // 2):
            mezo.step(task)
        moved = sum(float((p.detach().double() - start[n]).square().sum()) for n, p in model.named_parameters())
        relative = (moved / sum(float(p.square().sum()) for p in start.values())) ** 0.5
        rows.append(
            {
                "what": "weights after evaluations",
                "side": "mezo",
                "dtype": name,
                "evaluations": mezo_evaluations,
                "relative_drift": relative,
            }
        )
        print(f"{name}: same bits after {evaluations:,} evaluations: {same}", flush=True)
        print(f"{name}: MeZO at lr 0 drifts {relative:.2e} in {mezo_evaluations:,}", flush=True)
    return rows


def replay_journal(path: Path) -> tuple[str, float]:
    """Digest of the rebuilt weights and replayed steps a second."""
    model = minilm()
    freeze_tables(model)
    contents = read_journal(path)
    model.head.load_state_dict(contents.fitted)
    targets = contents.targets(model)
    began = time.perf_counter()
    apply_updates(targets, contents.records, meter=Meter())
    return weights_digest(model.state_dict()), len(contents.records) / (time.perf_counter() - began)


def replay(steps: int) -> list[dict[str, Any]]:
    """Replays in processes with other thread counts and instruction sets; compares digests."""
    rows = []
    for count in (1, 16, 64):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "journal"
            model = minilm()
            freeze_tables(model)
            journal = JournalWriter(path, header={}, fitted=model.head.state_dict(), meter=Meter())
            optimizer = ZerothOrderSGD(model, 1e-6, directions=RankOneSigns(count), seed=7, journal=journal)
            first = 0
            for step in range(steps):
                optimizer.step(objective(model, (max(2, count), 4), seed=step))
                first = first or path.stat().st_size
            journal.close()
            per_step = (path.stat().st_size - first) / (steps - 1)
            trained = weights_digest(model.state_dict())
            for threads in (1, 2):
                for capability in ("default", "avx2", "avx512"):
                    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "ATEN_CPU_CAPABILITY": capability}
                    command = [sys.executable, "-m", "benchmarks.zeroth_order", "--replay", str(path)]
                    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
                    answer = json.loads(done.stdout.splitlines()[-1])
                    row = {
                        "what": "replay",
                        "directions": count,
                        "threads": threads,
                        "capability": answer["capability"],
                    }
                    row |= {
                        "same_sha256": answer["digest"] == trained,
                        "steps_per_second": answer["speed"],
                        "bytes_per_step": per_step,
                    }
                    rows.append(row)
                    print(row, flush=True)
    return rows


def targets_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        if row["what"] == "step time" and row["trained"] == "all" and row["side"].startswith("zo"):
            size = tuple(row["size"])
            name = f"MeZO step / {row['side']}, batch {size[0]}x{size[1]}"
            found.append(target(name, row["mezo_over_this"]["median"], ">=", ASKED[size], "x"))
        if row["what"] == "memory above inference" and row["side"].startswith("zo"):
            found.append(
                target(f"memory above inference, {row['side']}, {row['size']}", row["megabytes"], "<=", 5.0, "MB")
            )
        if row["what"] == "weights after evaluations" and row["side"] == "zo":
            found.append(
                target(
                    f"same bits after {row['evaluations']} evaluations, {row['dtype']}",
                    float(row["same_bits"]),
                    ">=",
                    1.0,
                    "",
                )
            )
    replays = [row for row in rows if row["what"] == "replay"]
    if replays:
        found.append(
            target(
                "replays with the same SHA-256",
                sum(r["same_sha256"] for r in replays) / len(replays),
                ">=",
                1.0,
                "of all",
            )
        )
        single = max(r["steps_per_second"] for r in replays if r["directions"] == 1 and r["threads"] == 2)
        found.append(target("replayed steps per second at K = 1", single, ">=", 50.0, "steps/s"))
        for count in sorted({r["directions"] for r in replays}):
            size = next(r["bytes_per_step"] for r in replays if r["directions"] == count)
            found.append(target(f"journal bytes per step at K = {count}", size, "<=", 48.0 + 2 * count, "bytes"))
    return found


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of step times and of memory above inference."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, what, key in ((left, "step time", "seconds"), (right, "memory above inference", "megabytes")):
        some = [row for row in rows if row["what"] == what and row.get("trained", "all") == "all"]
        sides = list(dict.fromkeys(row["side"] for row in some))
        for offset, side in enumerate(sides):
            values = [row[key]["median"] if key == "seconds" else row[key] for row in some if row["side"] == side]
            axes.bar(
                [i + offset / (len(sides) + 1) for i in range(len(values))], values, 1 / (len(sides) + 1), label=side
            )
        axes.set_xticks(range(len(SIZES)), [f"{b}x{t}" for b, t in SIZES])
        axes.set_xlabel("batch x tokens")
        axes.set_ylabel(f"{what} ({'s' if key == 'seconds' else 'MB'})")
        axes.legend(fontsize=8)
    figure.savefig(path)


PARTS = {
    "step time": lambda short: step_times(3 if short else 7),
    "memory above inference": lambda short: memory(),
    "replay": lambda short: replay(8 if short else 64),
    "weights after evaluations": lambda short: drift(200 if short else 10_000, 100 if short else 1_000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a few minutes")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; the others' rows stay as they are")
    parser.add_argument("--replay", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.replay is not None:
        digest, speed = replay_journal(arguments.replay)
        print(json.dumps({"digest": digest, "speed": speed, "capability": torch.backends.cpu.get_cpu_capability()}))
        return
    name = "zeroth_order_short" if arguments.short else "zeroth_order"
    rows = read_rows(name)
    for part in arguments.part or PARTS:
        rows = [row for row in rows if row["what"] != part] + PARTS[part](arguments.short)
        print(f"wrote {write_results(name, rows, targets_of(rows))}")
    draw(rows, RESULTS / f"{name}.svg")


if __name__ == "__main__":
    main()
