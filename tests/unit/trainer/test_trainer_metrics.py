"""The log of a run: whole lines, no numbers that JSON lacks, and a clean start after a kill."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from featherlight.trainer import MetricsLog


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, *steps: int) -> None:
    log = MetricsLog(path)
    for step in steps:
        log.write("train", step=step, loss=1.0 / (step + 1))
    log.close()
    log.close()


def test_lines_are_there_as_soon_as_they_are_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write("eval", step=1, accuracy=0.5, name="ä")
    assert read(tmp_path / "metrics.jsonl") == [{"kind": "eval", "step": 1, "accuracy": 0.5, "name": "ä"}]
    log.close()


def test_what_is_not_finite_becomes_null_however_nested(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write("eval", a=math.nan, b=[1.0, math.inf], c={"d": -math.inf, "e": (2, math.nan)})
    log.close()
    assert read(tmp_path / "metrics.jsonl") == [
        {"kind": "eval", "a": None, "b": [1.0, None], "c": {"d": None, "e": [2, None]}}
    ]


def test_a_torn_last_line_is_dropped_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        write(path, 7)
        kept = (length >= first) + (length == len(whole))
        assert [line["step"] for line in read(path)] == [*range(kept), 7]


def test_what_was_measured_after_the_resumed_step_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 1, 2, 3)
    log = MetricsLog(path)
    log.write("event", step=2, name="a stage")
    log.truncate_after(2)
    log.write("train", step=3, loss=0.0)
    log.close()
    assert [line.get("step") for line in read(path)] == [1, 2, 2, 3]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_kill_while_dropping_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 1, 2, 3)
    log = MetricsLog(path)

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            log.truncate_after(1)
    assert [line["step"] for line in read(path)] == [1, 2, 3]
