"""`featherlight run` in two processes: the same as one at the same batch, up to rounding, for DDP and FSDP2 on gloo.

Tolerances are of the largest weight of a tensor, after 18 steps of AdamW with batches of 10 and 7 rows (so slices of 5
and 5, and of 3 and 4): 1e-6 in float32, 1e-14 in float64. Measured: 1.9e-7 and 3.9e-16.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from featherlight.report import read_run
from featherlight.trainer.save import read_progress

RECIPE = "tests.e2e.shared_regression:make"
SWEEP = ("--set", "dtype=float32,float64", "--set", "micro_batch=none,3", "--set", "clip=none,0.05")
TOLERANCES = {"float32": 1e-6, "float64": 1e-14}
ROOT = Path(__file__).parents[2]


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"} | more


def torchrun(*arguments: object) -> Ended:
    """As people start it."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*launcher, "-m", "featherlight.cli", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def two_processes(*arguments: object) -> tuple[Ended, Ended]:
    """With the environment of torchrun but without it, so that each can be looked at by itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    started = []
    for rank in ("0", "1"):
        own = environment(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        command = [sys.executable, "-m", "featherlight.cli", *map(str, arguments)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, cwd=ROOT, env=own, stdout=pipe, stderr=pipe, text=True))
    try:
        outputs = [one.communicate(timeout=300) for one in started]
    finally:
        for one in started:
            one.kill()
    first, second = (Ended(one.returncode, *texts) for one, texts in zip(started, outputs, strict=True))
    assert "Traceback" not in first.err + second.err, first.err + second.err
    return first, second


def steps_of(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "step"]


def assert_same_run(one: Path, other: Path, tolerance: float) -> None:
    """Weights, losses, counters and rates of two runs are the same up to rounding."""
    a, b = (load_file(path / "model" / "model.safetensors") for path in (one, other))
    assert a.keys() == b.keys()
    for name, expected in a.items():
        allowed = tolerance * float(expected.abs().max())
        torch.testing.assert_close(
            b[name], expected, rtol=0, atol=allowed, msg=lambda text, name=name: f"{name}: {text}"
        )
    lines, others = (steps_of(path) for path in (one, other))
    for line, its in zip(lines, others, strict=True):
        assert its["loss"] == pytest.approx(line["loss"], rel=tolerance)
        for key in ("step", "lr", "forwards"):
            assert its[key] == line[key]
        for key in ("example_forwards", "backward_passes"):
            assert its["counters"][key] == line["counters"][key]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of one process."""
    out = tmp_path_factory.mktemp("single") / "runs"
    command = [sys.executable, "-m", "featherlight.cli", "run", RECIPE, *SWEEP, "--out", str(out)]
    subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, check=True, timeout=300)
    return out


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_equal_one_at_the_same_batch(single, tmp_path, parallel):
    out = tmp_path / "runs"
    done = torchrun("run", RECIPE, *SWEEP, "--parallel", parallel, "--out", out)
    assert done.code == 0, done.err
    assert "Warning" not in done.err
    assert done.err.count("run 8 of 8") == done.out.count("report:") == 1
    names = {path.name for path in single.iterdir()}
    assert {path.name for path in out.iterdir()} == names
    runs = [name for name in names if (single / name).is_dir()]
    assert len(runs) == 8
    for name in runs:
        assert_same_run(single / name, out / name, TOLERANCES[name.partition(",")[0].removeprefix("dtype=")])
        assert {path.name for path in (out / name).iterdir()} == {path.name for path in (single / name).iterdir()}


def test_an_interrupt_of_one_process_stops_all_and_one_process_goes_on(single, run, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "run"
    arguments = ("run", RECIPE, "--set", "dtype=float64", "--set", "happen=signal", "--out", out)
    first, second = two_processes(*arguments, "--parallel", "fsdp")
    assert (first.code, second.code) == (130, 0), first.err + second.err
    assert "stopped after step 8" in first.err
    assert second.err == second.out == ""
    (save,) = out.glob("saves/*/state.safetensors")
    assert read_progress(save)["step"] == 8
    resumed = run(*arguments)
    assert resumed.code == 0, resumed.err
    assert "resumed at step 8" in resumed.err
    assert_same_run(single / "dtype=float64,micro_batch=None,clip=None", out, TOLERANCES["float64"])


def test_two_processes_go_on_with_what_one_left(single, run, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "run"
    arguments = ("run", RECIPE, "--set", "dtype=float64", "--set", "happen=signal", "--out", out)
    assert run(*arguments).code == 130
    first, second = two_processes(*arguments, "--parallel", "fsdp")
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "resumed at step 8" in first.err
    assert_same_run(single / "dtype=float64,micro_batch=None,clip=None", out, TOLERANCES["float64"])


@pytest.mark.slow
def test_the_clock_of_process_0_ends_a_budget_of_minutes(tmp_path):
    out = tmp_path / "run"
    settings = ("--set", "minutes=0.02", "--set", "steps=none", "--parallel", "fsdp")
    first, second = two_processes("run", RECIPE, *settings, "--out", out)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    summary = read_run(out).summary
    assert summary is not None
    assert summary.stopped == "finished"


def test_a_loss_that_is_not_finite_on_one_process_ends_all(tmp_path):
    out = tmp_path / "run"
    first, second = two_processes("run", RECIPE, "--set", "happen='not finite'", "--parallel", "fsdp", "--out", out)
    assert (first.code, second.code) == (3, 0), first.err + second.err
    assert "the loss of step 7 is not finite in the batch of training rows 10, 11, 12" in first.err
    assert second.err == ""
    assert all(tensor.isfinite().all() for tensor in load_file(out / "model" / "model.safetensors").values())


def test_an_error_of_one_process_ends_all_with_its_sentence(tmp_path):
    done = torchrun("run", RECIPE, "--set", "happen=error", "--out", tmp_path / "run")
    assert done.code != 0
    assert done.err.count("error: ") == done.err.count("error: process 1 cannot read its rows.") == 1


@pytest.mark.slow
def test_a_process_that_is_lost_ends_the_other_with_a_sentence(tmp_path):
    out = tmp_path / "run"
    first, second = two_processes("run", RECIPE, "--set", "happen=kill", "--out", out)
    assert (first.code, second.code) == (2, -9)
    assert "error: another process of this run was lost" in first.err


@pytest.mark.slow
def test_processes_that_start_from_different_weights_are_refused(tmp_path):
    out = tmp_path / "run"
    ended = two_processes("run", RECIPE, "--set", "weights_differ=true", "--out", out)
    assert sorted(one.code for one in ended) == [1, 2]
    assert "".join(one.err for one in ended).count("the processes start from different weights") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("parallel", "sentence"), [("ddp", "needs several processes"), ("dp", "Name one of ddp, fsdp")]
)
def test_what_cannot_be_shared_gets_a_sentence(run, tmp_path, parallel, sentence):
    done = run("run", "classify/digits", "--parallel", parallel, "--out", tmp_path / "run")
    assert done.code == 2
    assert sentence in done.err
    assert not (tmp_path / "run").exists()
