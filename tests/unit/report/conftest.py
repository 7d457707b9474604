"""A run directory on disk."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from featherlight.report import Section, write_sections
from tests.unit.report.samples import CONFIG, make_config, make_metrics, make_summary

WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Return a function that writes a run directory and returns its path."""

    def write(
        name: str = "run",
        *,
        summary: Mapping[str, Any] | None = None,
        metrics: list[dict[str, Any]] | None = None,
        tail: str = "",
        config: str | None = CONFIG,
        sections: Sequence[Section] = (),
    ) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        if config is not None:
            (directory / "config.toml").write_text(config, encoding="utf-8")
        lines = make_metrics() if metrics is None else metrics
        text = "".join(json.dumps(line) + "\n" for line in lines) + tail
        (directory / "metrics.jsonl").write_text(text, encoding="utf-8")
        if summary is not None:
            (directory / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        if sections:
            write_sections(directory, sections)
        return directory

    return write


def three_runs(write_run: WriteRun) -> list[Path]:
    """Write a run of each method."""
    return [
        write_run(
            method,
            summary=make_summary(method),
            metrics=make_metrics(200, seed=seed, rate=rate),
            config=make_config(method=method),
        )
        for seed, (method, rate) in enumerate({"zo": 1.0, "mezo": 1.3, "adamw": 0.1}.items())
    ]
