"""Forward-only fine-tuning of MiniLM-L6 on SST-2: accuracy and loss against example-forwards, beside MeZO and AdamW.

    python -m benchmarks.sst2 --short     one seed, a few minutes
    python -m benchmarks.sst2             five seeds, hours; goes on where it stopped
    python -m benchmarks.sst2 --protocol published

Two protocols, each method tuned with the same number of learning rates on a seed that is not reported:
`published` is that of the MeZO paper (512 training rows, a fresh random head, no head start); `all rows` starts from a
head fitted in closed form on frozen features. The last two blocks are trained and the frozen ones run once for every
method. `zo` perturbs and moves the head further than the body (`head_scale`); what that does alone is shown by a row
without it. An example that goes through a forward pass counts as one example-forward, for AdamW too.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import RESULTS, FinishedRuns, Row, spread, target, write_results
from featherlight.data import IndexPermutation
from featherlight.recipes.catalogue import find_recipe
from featherlight.recipes.finetune import FinetuneConfig, OptimizerConfig, use
from featherlight.recipes.runner import run_one
from featherlight.report import read_run
from featherlight.trainer import Display

SEEDS = (0, 1, 2, 3, 4)
TUNING_SEED = 100
SMOOTHED_EXAMPLES = 1024
PROTOCOLS: dict[str, dict[str, Any]] = {
    "published": {"rows": 512, "head_start": False},
    "all rows": {"rows": None, "head_start": True},
}
FORWARDS_PER_STEP = {"zo": 2, "mezo": 2, "adamw": 1}
ONE_SCALE = "zo, head_scale 1"
LEARNING_RATES = {
    ("published", "zo"): (1e-3, 3e-3, 1e-2),
    ("published", ONE_SCALE): (1e-3, 3e-3, 1e-2),
    ("published", "mezo"): (1e-4, 3e-4, 1e-3),
    ("published", "adamw"): (5e-5, 2e-4, 5e-4),
    ("all rows", "zo"): (3e-4, 1e-3, 3e-3),
    ("all rows", "mezo"): (1e-6, 1e-5, 1e-4),
    ("all rows", "adamw"): (2e-5, 5e-5, 2e-4),
}
BATCH = 16


def data(name: str) -> Path:
    return Path(os.environ["FEATHERLIGHT_DATA"]) / "sst2" / f"{name}.parquet"


def training_file(rows: int | None, seed: int, folder: Path) -> Path:
    """All training rows, or some of them chosen by seed."""
    if rows is None:
        return data("train")
    path = folder / f"train-{rows}-{seed}.parquet"
    table = pq.read_table(data("train"))
    pq.write_table(table.take(pa.array(IndexPermutation(table.num_rows, seed).indices(0, rows))), path)
    return path


def one_run(protocol: str, method: str, lr: float, seed: int, forwards: int, folder: Path) -> dict[str, Any]:
    """Trains once; the smoothed training loss and dev scores against example-forwards, and the final test accuracy."""
    settings = PROTOCOLS[protocol]
    optimizer = OptimizerConfig(lr=lr, head_scale=1.0) if method == ONE_SCALE else OptimizerConfig(lr=lr)
    method_name = "zo" if method == ONE_SCALE else method
    config = FinetuneConfig(
        model="minilm",
        train=str(training_file(settings["rows"], seed, folder)),
        valid=str(data("validation")),
        text=("sentence",),
        label="label",
        method=method_name,  # pyright: ignore[reportArgumentType]
        trainable="last:2",
        head_start=settings["head_start"],
        steps=forwards // (FORWARDS_PER_STEP[method_name] * BATCH),
        batch=BATCH,
        seed=seed,
        evaluations=8,
        optimizer=optimizer,
    )
    path = folder / f"run-{time.monotonic_ns()}"
    began = time.perf_counter()
    run_one(find_recipe("finetune/custom"), config, path, command="", display=Display())
    seconds = time.perf_counter() - began
    record = read_run(path)
    assert record.summary is not None
    scored = use.evaluate(
        use.load_trained(path), str(data("test_labelled_stsa")), text=(), label=None, allow_truncation=True
    )
    decay = 1 - BATCH / SMOOTHED_EXAMPLES
    smoothed, curve = None, []
    for number, point in enumerate(record.steps, 1):
        smoothed = point.loss if smoothed is None else decay * smoothed + (1 - decay) * point.loss
        if number * BATCH >= SMOOTHED_EXAMPLES and number % 8 == 0:
            curve.append([point.forwards, smoothed])
    memory = record.summary.memory
    assert memory is not None
    assert memory.training_peak is not None
    assert memory.inference_peak is not None
    return {
        "protocol": protocol,
        "method": method,
        "lr": lr,
        "seed": seed,
        "forwards": forwards,
        "train_curve": curve,
        "dev": [[point.forwards, point.loss, point.values["accuracy"]] for point in record.evals],
        "test_accuracy": scored["accuracy"],
        "test_loss": scored["loss"],
        "seconds": seconds,
        "step_seconds": record.steps[-1].seconds,
        "megabytes_above_inference": (memory.training_peak - memory.inference_peak) / 1e6,
        "journal_bytes": record.summary.journal_bytes,
    }


def _run(finished: FinishedRuns, folder: Path, **key: Any) -> Row:
    """The run with these settings, made now unless it is there."""
    return finished.get(key, lambda: one_run(folder=folder, **key), _line)


def _line(row: Row) -> str:
    last = row["train_curve"][-1][1] if row["train_curve"] else float("nan")
    return (
        f"{row['protocol']:22} {row['method']:6} lr {row['lr']:<7g} seed {row['seed']:<4} "
        f"train {last:.4f} test {row['test_accuracy']:.1%} in {row['seconds']:.0f} s"
    )


def lowest(row: dict[str, Any]) -> float:
    """The lowest smoothed training loss."""
    return min((loss for _, loss in row["train_curve"]), default=float("inf"))


def reached(points: list[list[float]], good: Any) -> float:
    """Example-forwards at the first point that is good enough; infinity if none is."""
    return next((point[0] for point in points if good(point)), float("inf"))


def compare(protocol: str, zo: list[dict[str, Any]], mezo: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shares of MeZO's example-forwards at which zo is as good as MeZO ever was, and who ends better."""
    by_loss, by_score = [], []
    for ours, theirs in zip(zo, mezo, strict=True):
        bar = lowest(theirs)
        spent = reached(theirs["train_curve"], lambda point, bar=bar: point[1] <= bar)
        by_loss.append(reached(ours["train_curve"], lambda point, bar=bar: point[1] <= bar) / spent)
        best = max(point[2] for point in theirs["dev"])
        spent = max(reached(theirs["dev"], lambda point, best=best: point[2] >= best), 1.0)
        by_score.append(reached(ours["dev"], lambda point, best=best: point[2] >= best) / spent)
    ahead = sum(a["test_accuracy"] - b["test_accuracy"] for a, b in zip(zo, mezo, strict=True)) / len(zo)
    share = sorted(by_loss)[len(by_loss) // 2]
    score = sorted(by_score)[len(by_score) // 2]
    return [
        target(
            f"{protocol}: example-forwards of zo to MeZO's lowest smoothed training loss / MeZO's",
            share,
            "<=",
            1 / 3,
            "x",
        ),
        target(f"{protocol}: example-forwards of zo to MeZO's best dev accuracy / MeZO's", score, "<=", 1 / 3, "x"),
        target(f"{protocol}: test accuracy of zo minus MeZO's, mean", ahead, ">=", 0.0, ""),
    ]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Smoothed training loss against example-forwards, one line a run."""
    from matplotlib.figure import Figure

    colours = {"zo": "#0072b2", ONE_SCALE: "#56b4e9", "mezo": "#d55e00", "adamw": "#009e73"}
    protocols = list(dict.fromkeys(row["protocol"] for row in rows))
    figure = Figure(figsize=(4.5 * len(protocols), 3.8), layout="constrained")
    for axes, protocol in zip(figure.subplots(1, len(protocols), squeeze=False)[0], protocols, strict=True):
        labelled = set()
        for row in rows:
            if row["protocol"] == protocol and row["train_curve"]:
                label = None if row["method"] in labelled else row["method"]
                labelled.add(row["method"])
                axes.plot(*zip(*row["train_curve"], strict=True), color=colours[row["method"]], alpha=0.7, label=label)
        axes.set_title(protocol)
        axes.set_xlabel("example-forwards")
        axes.set_ylabel("smoothed training loss")
        axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one seed and a sixth of the example-forwards")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="only this one")
    parser.add_argument("--forwards", type=int, default=12_000, help="example-forwards a run")
    arguments = parser.parse_args()
    if not os.environ.get("FEATHERLIGHT_DATA"):
        parser.error("set FEATHERLIGHT_DATA to the folder that holds sst2/")
    forwards, seeds = (arguments.forwards // 6, SEEDS[:1]) if arguments.short else (arguments.forwards, SEEDS)
    name = "sst2_short" if arguments.short else "sst2"
    RESULTS.mkdir(exist_ok=True)
    finished = FinishedRuns(RESULTS / f"{name}.rows.jsonl")
    reported: list[dict[str, Any]] = []
    targets: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for protocol in [arguments.protocol] if arguments.protocol else PROTOCOLS:
            chosen: dict[str, list[dict[str, Any]]] = {}
            for (name_of, method), rates in LEARNING_RATES.items():
                if name_of != protocol:
                    continue
                key = {"protocol": protocol, "method": method, "forwards": forwards}
                tried = {lr: _run(finished, folder, lr=lr, seed=TUNING_SEED, **key) for lr in rates}
                best = min(tried, key=lambda lr, tried=tried: lowest(tried[lr]))
                chosen[method] = [_run(finished, folder, lr=best, seed=seed, **key) for seed in seeds]
                reported += chosen[method]
                print(
                    f"-> {protocol}, {method}: test accuracy {spread([r['test_accuracy'] for r in chosen[method]])}",
                    flush=True,
                )
            targets += compare(protocol, chosen["zo"], chosen["mezo"])
            write_results(name, reported, targets)
            draw(reported, RESULTS / f"{name}.svg")


if __name__ == "__main__":
    main()
