"""Forward-only fine-tuning of MiniLM-L6 on SST-2 with linear weights in 8 and 4 bits, beside floats.

    python -m benchmarks.quantized_base --short     one seed, the last two blocks, three bases, a sixth of the example-forwards
    python -m benchmarks.quantized_base             three seeds, three settings, hours; goes on where it stopped

Every run starts from a head fitted in closed form on 2,000 training rows, which `before` scores, and takes the same steps at
the same learning rate, that of the float base. `last:2` trains the last two blocks, `linear` all linear layers, `adapters`
LoRA of rank 8. The bases `int8, rank N` differ in how many directions are kept beside a weight before they are rounded into
it; what that alone does to a weight is the table `rounding`, of steps along the same directions on floats and on whole
numbers.
"""

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import RESULTS, FinishedRuns, Row, spread, target, write_results
from benchmarks.sst2 import data, training_file
from featherlight.functional import QuantizedTensor
from featherlight.meter import Meter
from featherlight.nn.models import load_pretrained, resolve_model
from featherlight.optim.zeroth_order import StepRecord, apply_update, apply_updates, targets_of
from featherlight.optim.zeroth_order.guards import to_float32
from featherlight.recipes.catalogue import find_recipe
from featherlight.recipes.finetune import FinetuneConfig, OptimizerConfig, use
from featherlight.recipes.runner import run_one
from featherlight.report import read_run
from featherlight.trainer import Display
from featherlight.transforms import quantize_base

SEEDS = (0, 1, 2)
TRAINING_ROWS = 2000
BATCH = 16
SETTINGS: dict[str, dict[str, Any]] = {
    "last:2": {"trainable": "last:2"},
    "linear": {"trainable": r"(dense|query|key|value|head)\.(weight|bias)$"},
    "adapters": {"lora": 8},
}
BASES: dict[str, dict[str, Any]] = {
    "float": {"base": "float"},
    "int8": {"base": "int8"},
    "int4": {"base": "int4"},
    "int8, rank 0": {"base": "int8", "merge_rank": 0},
    "int8, rank 1024": {"base": "int8", "merge_rank": 1024},
}
COMPARED = ("int8", "int4")
LR = 1e-3
RANKS = (0, 64, 128, 256, 512, 1024, 1_000_000)


def one_run(setting: str, base: str, seed: int, forwards: int, folder: Path) -> dict[str, Any]:
    """Trains once; accuracy on the development rows before and after, on the test rows after, and memory."""
    config = FinetuneConfig(
        model="minilm",
        train=str(training_file(TRAINING_ROWS, seed, folder)),
        valid=str(data("validation")),
        text=("sentence",),
        label="label",
        head_start=True,
        steps=forwards // (2 * BATCH),
        batch=BATCH,
        seed=seed,
        evaluations=1,
        optimizer=OptimizerConfig(lr=LR),
        **SETTINGS[setting],
        **BASES[base],
    )
    path = folder / f"run-{time.monotonic_ns()}"
    began = time.perf_counter()
    run_one(find_recipe("finetune/custom"), config, path, command="", display=Display())
    seconds = time.perf_counter() - began
    record = read_run(path)
    assert record.summary is not None
    memory = record.summary.memory
    assert memory is not None
    test = use.evaluate(
        use.load_trained(path), str(data("test_labelled_stsa")), text=(), label=None, allow_truncation=True
    )
    return {
        "setting": setting,
        "base": base,
        "seed": seed,
        "forwards": forwards,
        "before": record.events[0].values["accuracy"],
        "after": record.evals[-1].values["accuracy"],
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "weights_bytes": memory.weights,
        "inference_peak": memory.inference_peak,
        "training_peak": memory.training_peak,
        "seconds": seconds,
        "step_seconds": record.steps[-1].seconds,
    }


def _line(row: Row) -> str:
    return (
        f"{row['setting']:7} {row['base']:14} seed {row['seed']} dev {row['before']:.1%} -> {row['after']:.1%} "
        f"test {row['test_accuracy']:.1%} in {row['seconds']:.0f} s"
    )


def weight_bytes(base: str) -> dict[str, float]:
    """Bytes of MiniLM's linear weights as floats, held in few bits, and with as many steps beside them as are ever kept."""
    generator = torch.Generator().manual_seed(0)
    model = load_pretrained(resolve_model("minilm"), num_outputs=2, generator=generator).model
    found = quantize_base(model, bits={"int8": 8, "int4": 4}[base], skip={"head"})
    held = [p for p in model.parameters() if isinstance(p, QuantizedTensor)]
    targets = targets_of(model, [{"params": held}])
    most, step, ever_merged = found.num_bytes, 0, False
    while not ever_merged:
        record = StepRecord(
            step=step, seed=0, scale=1.0, rates=(1e-9,), decays=(1.0,), coefficients=torch.ones(BATCH, dtype=torch.int64)
        )  # fmt: skip
        apply_update(targets, record, meter=Meter())
        most = max(most, sum(p.num_bytes for p in held))
        step, ever_merged = step + 1, any(p.change is None for p in held)
    return {"float": found.float_bytes, "held": found.num_bytes, "with_steps": most}


def rounding(steps: int) -> list[dict[str, Any]]:
    """How far a weight held in few bits is from one of floats that took the same steps, as a share of the weights."""
    generator = torch.Generator().manual_seed(0)
    model = load_pretrained(resolve_model("minilm"), num_outputs=2, generator=generator).model
    weight = model.get_parameter("encoder.encoder.layer.3.attention.self.value.weight").detach()
    records = [
        StepRecord(
            step=step, seed=1, scale=1.0, rates=(to_float32(LR * (1 - step / steps) / (1000 * BATCH)),), decays=(1.0,),
            coefficients=(1000 * torch.randn(BATCH, generator=generator)).round().clamp(-4095, 4095).long(),
        )
        for step in range(steps)
    ]  # fmt: skip

    def taken(one: torch.Tensor) -> torch.Tensor:
        held = nn.ParameterList([nn.Parameter(one)])
        apply_updates(targets_of(held, [{"params": list(held.parameters())}]), records, meter=Meter())
        return held[0].detach()

    moved, size, rows = taken(weight.clone()), weight.square().mean().sqrt(), []
    for bits, group in ((8, None), (4, 32)):
        for rank in RANKS:
            start = QuantizedTensor.rounded(weight, bits=bits, group=group, merge_rank=rank)
            shares = {
                "error_before": start - weight, "error_after": taken(start) - moved, "movement": moved - weight
            }  # fmt: skip
            rms = {name: float(one.square().mean().sqrt() / size) for name, one in shares.items()}
            rows.append({"rounding": f"int{bits}", "merge_rank": rank, "steps": steps, **rms})
    return rows


def lost(rows: list[dict[str, Any]], setting: str, base: str) -> list[float]:
    """Test accuracy of the float base minus that of another, seed by seed."""
    of = {(row["base"], row["seed"]): row["test_accuracy"] for row in rows if row["setting"] == setting}
    return [of["float", seed] - of[base, seed] for _, seed in of if ("float", seed) in of and (base, seed) in of]


def report(
    rows: list[dict[str, Any]], sizes: dict[str, dict[str, float]], noise: list[dict[str, Any]], name: str
) -> None:
    """Writes what there is so far."""
    targets = [
        target(f"{base}: bytes of float linear weights / bytes held, steps beside them included",
               sizes[base]["float"] / sizes[base]["with_steps"], ">=", 3.5, "x")
        for base in COMPARED
    ]  # fmt: skip
    for setting in SETTINGS:
        for base in COMPARED:
            if found := lost(rows, setting, base):
                mean = sum(found) / len(found)
                targets.append(
                    target(f"{setting}, {base}: test accuracy lost against float, mean", mean, "<=", 0.01, "")
                )
    write_results(name, [*({"weight_bytes": base, **size} for base, size in sizes.items()), *noise, *rows], targets)
    draw(rows, RESULTS / f"{name}.svg")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Test accuracy of each base, one dot a seed."""
    from matplotlib.figure import Figure

    settings = list(dict.fromkeys(row["setting"] for row in rows))
    figure = Figure(figsize=(4.5 * len(settings), 3.6), layout="constrained")
    for axes, setting in zip(figure.subplots(1, len(settings), squeeze=False)[0], settings, strict=True):
        of = [row for row in rows if row["setting"] == setting]
        bases = [base for base in BASES if any(row["base"] == base for row in of)]
        for row in of:
            axes.plot(bases.index(row["base"]), row["test_accuracy"], "o", color="#0072b2", alpha=0.7)
        axes.set_xticks(range(len(bases)), [base.replace(", ", "\n") for base in bases])
        axes.set_title(setting)
        axes.set_ylabel("test accuracy")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one seed, one setting and a sixth of the forwards")
    parser.add_argument("--forwards", type=int, default=12_000, help="example-forwards a run")
    arguments = parser.parse_args()
    if not os.environ.get("FEATHERLIGHT_DATA"):
        parser.error("set FEATHERLIGHT_DATA to the folder that holds sst2/")
    short = arguments.short
    name = "quantized_base_short" if short else "quantized_base"
    RESULTS.mkdir(exist_ok=True)
    sizes = {base: weight_bytes(base) for base in COMPARED}
    noise = [row for steps in (375, 2000)[: 1 if short else None] for row in rounding(steps)]
    finished, rows = FinishedRuns(RESULTS / f"{name}.rows.jsonl"), []
    bases = ("float", *COMPARED) if short else tuple(BASES)
    with tempfile.TemporaryDirectory() as scratch:
        for setting in list(SETTINGS)[: 1 if short else None]:
            for seed in SEEDS[: 1 if short else None]:
                for base in bases:
                    if setting == "adapters" and base not in ("float", *COMPARED):
                        continue
                    key = {
                        "setting": setting,
                        "base": base,
                        "seed": seed,
                        "forwards": arguments.forwards // (6 if short else 1),
                    }
                    rows.append(finished.get(key, partial(one_run, folder=Path(scratch), **key), _line))
                    report(rows, sizes, noise, name)
            for base in dict.fromkeys(row["base"] for row in rows if row["setting"] == setting):
                found = [row["test_accuracy"] for row in rows if (row["setting"], row["base"]) == (setting, base)]
                print(f"-> {setting}, {base}: test accuracy {spread(found)}", flush=True)


if __name__ == "__main__":
    main()
