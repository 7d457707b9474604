"""`summary.json`: what a run came to, for the report and for scripts."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from featherlight.files import write_atomically
from featherlight.meter import process_peak_bytes
from featherlight.trainer.memory import MemoryUse
from featherlight.trainer.metrics import finite_or_null

if TYPE_CHECKING:
    from featherlight.trainer.run import Run

VERSION = 1
_PACKAGES = ("featherlight", "torch", "numpy", "transformers")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who a run is.

    Attributes:
        recipe: its name, "module:function" for a user's own.
        seed: of everything random.
        command: what the user typed.
    """

    recipe: str
    seed: int
    command: str


def write_summary(run: Run, memory: MemoryUse | None, stopped: str) -> None:
    """Writes `summary.json`; its keys are documented in docs/run-directory.md."""
    experiment, scores, journal = run.experiment, run.scores, run.directory.journal
    text = json.dumps(
        finite_or_null(
            {
                "version": VERSION,
                "recipe": run.identity.recipe,
                "title": experiment.title,
                "method": experiment.method,
                "command": run.identity.command,
                "resume_command": None if stopped == "finished" else run.directory.resume_command,
                "facts": dict(experiment.facts),
                "metric": {
                    "name": scores.metric,
                    "start": scores.values[0],
                    "best": scores.best,
                    "last": scores.values[-1],
                    "lower_is_better": scores.lower_is_better,
                },
                "loss": {"start": scores.losses[0], "last": scores.losses[-1]},
                "memory": None if memory is None else _memory(memory, experiment.method),
                "counters": run.meter.as_dict() | {"steps": run.steps, "seconds": run.seconds},
                "journal_bytes": journal.stat().st_size if journal.is_file() else None,
                "environment": environment(experiment.device),
                "seed": run.identity.seed,
                "stopped": stopped,
                "notes": run.notes,
            }
        ),
        indent=1,
        allow_nan=False,
    )
    write_atomically(run.directory.summary, lambda file: file.write(text.encode()))


def environment(device: torch.device) -> dict[str, str | int]:
    """Versions and machine, as far as results or speed depend on them."""
    found: dict[str, str | int] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found |= {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _memory(memory: MemoryUse, method: str | None) -> dict[str, Any]:
    return {
        "weights": memory.weights,
        "inference_peak": memory.inference_peak,
        "training_peak": memory.training_peak,
        "adamw_estimate": None if method in (None, "adamw") else memory.adamw_estimate,
        "process_peak": process_peak_bytes(),
        "measured_by": memory.measured_by,
    }
