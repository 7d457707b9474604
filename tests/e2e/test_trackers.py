"""Trackers of a run: what they are told, and what becomes of one that fails."""

import pytest

from featherlight.report import read_run
from tests.e2e.digits_runs import DIGITS, STEPS

pytest.importorskip("sklearn")


def test_a_listener_that_fails_is_left_out_and_the_run_goes_on(run, tmp_path, monkeypatch):
    (tmp_path / "listening.py").write_text(
        "seen = []\ndef good(path):\n    return seen.append\ndef bad(path):\n    return lambda line: 1 / 0\n"
    )
    monkeypatch.chdir(tmp_path)
    done = run(*DIGITS, "--tracker", "listening:good", "--tracker", "listening:bad", "--out", tmp_path / "run")
    assert done.code == 0
    assert done.err.count("failed (ZeroDivisionError: division by zero) and is left out") == 1
    import listening  # pyright: ignore[reportMissingImports]

    assert [line["step"] for line in listening.seen if line["kind"] == "step"] == list(range(1, STEPS + 1))


def test_tensorboard_files_hold_the_metrics(run, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    assert run(*DIGITS, "--tracker", "tensorboard", "--out", out).code == 0
    events = accumulator.EventAccumulator(str(out / "tensorboard")).Reload()
    losses = [one.value for one in events.Scalars("train/loss")]
    assert losses == pytest.approx([point.loss for point in read_run(out).steps], rel=1e-6)
    assert len(events.Scalars("valid/accuracy")) == len(read_run(out).evals)


def test_a_tracker_that_cannot_start_is_left_out(run, tmp_path, monkeypatch):
    (tmp_path / "offline.py").write_text("def make(path):\n    raise OSError('no network')\n")
    monkeypatch.chdir(tmp_path)
    done = run(*DIGITS, "--tracker", "offline:make", "--out", tmp_path / "run")
    assert done.code == 0
    assert "the tracker offline:make failed to start (OSError: no network)" in done.err
