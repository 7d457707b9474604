"""Run directories' contents, made by hand as a trainer would leave them."""

import math
import random
from typing import Any

Summary = dict[str, Any]

CONFIG = '[model]\nname = "minilm"\n\n[optimizer]\nlr = 3e-7\nsigma = 1e-3\n\n[data.columns]\ntext = "sentence"\n'


def make_summary(kind: str = "zo", **changes: object) -> Summary:
    """Return a complete summary of a finished run of a kind of method, with top-level `changes`."""
    training_peak = {"zo": 160_432_128, "mezo": 161_480_704, "adamw": 702_545_920}[kind]
    journal = {"zo": 62_480, "mezo": None, "adamw": None}[kind]
    last = {"zo": 0.8234, "mezo": 0.7812, "adamw": 0.8876}[kind]
    summary = {
        "method": kind,
        "title": "MiniLM on SST-2",
        "command": f"featherlight finetune --model minilm --train sst2.parquet --method {kind} --memory 256MiB",
        "resume_command": "featherlight resume runs/sst2",
        "model": "minilm-l6",
        "train": "sst2.parquet",
        "metric": {"name": "accuracy", "start": 0.5092, "head_start": 0.7521, "best": last + 0.0057, "last": last},
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
            "weight_passes": 4_003,
            "random_words": 51_118_080,
            "bytes_written": 91_234_567,
            "steps": 2_000,
            "seconds": 724.6,
        },
        "confusion": {"labels": ["negative", "positive"], "counts": [[367, 61], [93, 351]]},
        "journal_bytes": journal,
        "versions": {"featherlight": "0.1.0", "torch": "2.10.0", "python": "3.11.2"},
        "stopped": "finished",
        "notes": ["Embeddings were frozen."],
    }
    return summary | changes


def make_metrics(num_steps: int = 400, *, seed: int = 0, every: int = 40, rate: float = 1.0) -> list[dict[str, Any]]:
    """Return the lines of a metrics file: a head start, noisy falling losses, and an evaluation now and then."""
    rng = random.Random(seed)
    lines: list[dict[str, Any]] = [
        {"kind": "head_start", "seconds": 3.2, "loss": 0.5412, "metric": "accuracy", "value": 0.7521}
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
                "peak_memory": 160_432_128,
            }
        )
        if step % every == 0:
            value = 0.75 + 0.08 * (1 - math.exp(-4 * done)) + rng.gauss(0, 0.004)
            lines.append(
                {"kind": "eval", **at, "split": "valid", "loss": loss + 0.02, "metric": "accuracy", "value": value}
            )
    return lines
