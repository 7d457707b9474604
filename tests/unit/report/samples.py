"""Run directories' contents, made by hand as a trainer would leave them."""

import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from featherlight.report import (
    BarChart,
    ConfusionTable,
    Heatmap,
    Images,
    LineChart,
    Section,
    Table,
)

Summary = dict[str, Any]

CONFIG = """recipe = "finetune"
version = "0.1.0"
seed = 0

[model]
name = "minilm"

[optimizer]
lr = 3e-7
sigma = 1e-3

[data.columns]
text = "sentence"
"""


def make_config(seed: int = 0, lr: float = 3e-7, method: str | None = None) -> str:
    """Return a configuration with a seed, a learning rate and perhaps a method of its own."""
    config = CONFIG.replace("seed = 0", f"seed = {seed}").replace("lr = 3e-7", f"lr = {lr}")
    return config if method is None else f'method = "{method}"\n{config}'


def make_summary(kind: str = "zo", **changes: object) -> Summary:
    """Return a complete summary of a finished run of a kind of method, with top-level `changes`."""
    training_peak = {"zo": 160_432_128, "mezo": 161_480_704, "adamw": 702_545_920}[kind]
    last = {"zo": 0.8234, "mezo": 0.7812, "adamw": 0.8876}[kind]
    summary = {
        "version": 1,
        "recipe": "finetune",
        "title": "MiniLM on SST-2",
        "method": kind,
        "command": f"featherlight finetune --model minilm --train sst2.parquet --method {kind} --memory 256MiB",
        "resume_command": "featherlight resume runs/sst2",
        "facts": {"model": "minilm-l6", "training data": "sst2.parquet"},
        "metric": {
            "name": "accuracy",
            "start": 0.5092,
            "best": last + 0.0057,
            "last": last,
            "lower_is_better": False,
        },
        "loss": {"start": 0.6931, "last": 0.4127},
        "memory": {
            "weights": 90_866_688,
            "inference_peak": 158_334_976,
            "training_peak": training_peak,
            "adamw_estimate": 689_963_008,
            "process_peak": 611_319_808,
            "measured_by": "torch.cuda.max_memory_allocated",
        },
        "counters": {
            "example_forwards": 2_048_017,
            "backward_passes": 1_213 if kind == "adamw" else 0,
            "tokens": 41_000_321,
            "weight_passes": 4_003,
            "random_words": 51_118_080,
            "bytes_written": 91_234_567,
            "steps": 2_000,
            "seconds": 724.6,
        },
        "journal_bytes": 62_480 if kind == "zo" else None,
        "environment": {"featherlight": "0.1.0", "torch": "2.10.0", "python": "3.11.2", "device": "cpu", "threads": 2},
        "seed": 0,
        "stopped": "finished",
        "notes": ["Embeddings were frozen."],
    }
    return summary | changes


def bare_summary(**changes: object) -> Summary:
    """Return the summary of a run that has neither method, metric, loss nor memory."""
    return make_summary(
        method=None, metric=None, loss=None, memory=None, journal_bytes=None, resume_command=None, **changes
    )


def make_metrics(num_steps: int = 400, *, seed: int = 0, every: int = 40, rate: float = 1.0) -> list[dict[str, Any]]:
    """Return the lines of a metrics file: a head start, noisy falling losses, and an evaluation now and then."""
    rng = random.Random(seed)
    lines: list[dict[str, Any]] = [
        {
            "kind": "event",
            "step": 0,
            "name": "head start",
            "seconds": 3.2,
            "loss": 0.5412,
            "values": {"accuracy": 0.7521},
        }
    ]
    for step in range(1, num_steps + 1):
        done = step / num_steps
        at = {"step": step, "forwards": int(1024 * step * rate), "seconds": 0.36 * step / rate}
        loss = 0.4 + 0.3 * math.exp(-4 * done) + rng.gauss(0, 0.06)
        lines.append(
            {
                "kind": "step",
                **at,
                "loss": loss,
                "lr": 1e-6,
                "tokens_per_second": 9_000.0 + step,
            }
        )
        if step % every == 0:
            value = 0.75 + 0.08 * (1 - math.exp(-4 * done)) + rng.gauss(0, 0.004)
            evaluated = {"loss": loss + 0.02, "values": {"accuracy": value}}
            lines.append({"kind": "eval", **at, "split": "valid", **evaluated})
    return lines


def make_sections(seed: int = 0) -> tuple[Section, ...]:
    """Return sections with a block of every kind, and some of them beyond what is drawn in full."""
    rng = np.random.default_rng(seed)
    grey = np.clip(rng.normal(120, 60, (12, 8, 8)), 0, 255).astype(np.uint8)
    ramp = np.linspace(0, 255, 32 * 32).reshape(32, 32)
    colour = np.stack([np.stack([np.roll(ramp, 3 * i, 0), ramp.T, 255 - ramp], -1) for i in range(6)]).astype(np.uint8)
    xs = [float(x) for x in range(1, 200)]
    lines = {
        "Anderson": (xs, [2.0 * math.exp(-x / 12) + 1e-6 for x in xs]),
        "fixed point": (xs, [2.0 * math.exp(-x / 40) if x != 90 else math.nan for x in xs]),
    }
    usage = tuple(float(value) for value in rng.zipf(1.6, 512).clip(max=300))
    counts = ((367, 61), (93, 351))
    return (
        Section(
            title="Which label for which",
            blocks=(ConfusionTable(labels=("negative", "positive"), counts=counts),),
        ),
        Section(
            title="Solver",
            text="The residual of the fixed point against iterations.\n\nBoth start from zero.",
            blocks=(
                LineChart(
                    x_label="Iterations", y_label="Residual", lines=lines, log_y=True, caption="Lower is nearer."
                ),
                Table(
                    columns=("solver", "iterations", "residual", "reached"),
                    rows=(
                        ("Anderson", 41, 9.7e-7, True),
                        ("fixed point", 200, math.nan, False),
                        ("Newton", None, None, None),
                    ),
                    caption="At the end.",
                ),
            ),
        ),
        Section(
            title="Codebook",
            blocks=(
                BarChart(labels=("used", "idle", "drift"), values=(489.0, 23.0, -12.5), unit="codes", caption="Codes."),
                BarChart(labels=tuple(map(str, range(512))), values=usage, caption="Use of each code."),
                Heatmap(
                    values=rng.normal(size=(5, 6)).tolist(),
                    row_labels=tuple(f"layer {i}" for i in range(5)),
                    column_labels=tuple("abcdef"),
                    caption="Change of the weights.",
                ),
                Heatmap(
                    values=np.abs(rng.normal(size=(64, 96)) * np.linspace(0, 1, 96)).tolist(),
                    row_labels=tuple(f"code {i}" for i in range(64)),
                    column_labels=tuple(f"dim {i}" for i in range(96)),
                    caption="The codebook.",
                ),
            ),
        ),
        Section(
            title="Images",
            blocks=(
                Images(images=grey, columns=6, scale=8, caption="Filters of the first layer."),
                Images(images=colour, columns=3, scale=2, labels=("in", "out", "in", "out", "in", "out")),
            ),
        ),
    )


def figures_of(summary: Mapping[str, Any]) -> list[float]:
    """Return every number of a summary that the page shows to the last digit."""
    found: list[float] = []
    for key, value in summary.items():
        if isinstance(value, dict) and key != "environment":
            found.extend(figures_of(value))
        elif isinstance(value, int | float) and not isinstance(value, bool) and key not in ("version", "seed"):
            found.append(value)
    return found
