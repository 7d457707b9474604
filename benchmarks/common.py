"""What every benchmark shares: the machine, timing side by side, and where results go."""

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from featherlight.trainer import RunDirectory

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def commit() -> str:
    """The commit of the working tree, with a mark if it was changed since."""
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def finish_run(recipe: str, out: Path, options: Sequence[str]) -> None:
    """A run of a recipe by the command line, unless it is finished; one that was stopped goes on.

    Raises:
        CalledProcessError: the run was stopped again.
    """
    if not RunDirectory(path=out).is_finished:
        words = [word for one in options for word in ("--set", one)]
        command = [sys.executable, "-m", "featherlight.cli", "run", recipe, *words, "--out", str(out)]
        subprocess.run(command, check=True)


def in_turn(
    sides: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each side, one call of each in turn, so that a drift of the machine meets all alike."""
    for call in sides.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            began = clock()
            call()
            seconds[name].append(clock() - began)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """Median and range of the ratio, pair by pair."""
    return spread([a / b for a, b in zip(slow, fast, strict=True)])


def target(name: str, value: float, comparison: str, goal: float, unit: str) -> dict[str, Any]:
    """A figure that was asked for, reached or not."""
    return {"name": name, "value": value, "comparison": comparison, "target": goal, "unit": unit}


class OutOfTimeError(Exception):
    """The minutes of this command are used up."""


class FinishedRuns:
    """Rows of finished runs, kept on disk as they come, a line each.

    Args:
        path: of the file; what is in it counts as done.
        minutes: begins no run after so many.

    Attributes:
        rows: all of them, in the order in which they were made.
    """

    def __init__(self, path: Path, minutes: float | None = None) -> None:
        self.path = path
        self.rows: list[Row] = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        self._until = float("inf") if minutes is None else time.monotonic() + 60 * minutes

    def find(self, key: Row) -> Row | None:
        """The run with these settings, if it is there."""
        return next((row for row in self.rows if key.items() <= row.items()), None)

    def get(self, key: Row, make: Callable[[], Row], line: Callable[[Row], str]) -> Row:
        """The run with these settings, made now unless it is there.

        Args:
            key: its settings.
            make: runs it; the key is put in front of what it returns.
            line: what is printed of a row that was made.

        Raises:
            OutOfTimeError: the minutes are used up.
        """
        if (found := self.find(key)) is not None:
            return found
        if time.monotonic() > self._until:
            raise OutOfTimeError
        self.add(key | make())
        print(line(self.rows[-1]), flush=True)
        return self.rows[-1]

    def add(self, row: Row) -> None:
        """Keeps a row."""
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read_rows(name: str) -> list[dict[str, Any]]:
    """The rows of an earlier run; none if there was no such run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.is_file() else []


def write_results(name: str, rows: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Any]]) -> Path:
    """Writes `results/<name>.json` and prints the targets."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    command = "python " + shlex.join([os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    content = {
        "machine": machine(),
        "command": command,
        "commit": commit(),
        "rows": list(rows),
        "targets": list(targets),
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    for one in targets:
        met = one["value"] <= one["target"] if one["comparison"] == "<=" else one["value"] >= one["target"]
        asked = f"asked: {one['comparison']} {one['target']:.4g}"
        print(f"{'reached' if met else 'MISSED '}  {one['name']}: {one['value']:.4g} {one['unit']} ({asked})")
    return path
