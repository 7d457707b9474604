"""`featherlight run` in two processes: the same as one at the same batch, up to rounding, for DDP and FSDP2 on gloo.

Tolerances are of the largest weight of a tensor, after 18 steps of AdamW with batches of 10 and 7 rows (so slices of 5
and 5, and of 3 and 4): 1e-6 in float32, 1e-14 in float64. Measured: 1.9e-7 and 3.9e-16.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from featherlight.report import read_run
from featherlight.trainer.save import read_progress
from tests.e2e.command_line import ROOT, Ended, call
from tests.e2e.commands_in_processes import run_pair

RECIPE = ("run", "tests.e2e.shared_regression:make", "--set", "micro_batch=3")
SWEEP = (*RECIPE, "--set", "dtype=float32,float64", "--set", "clip=none,0.05")
STOPPED = (*RECIPE, "--set", "dtype=float64", "--set", "happen=signal")
TOLERANCES = {"float32": 1e-6, "float64": 1e-14}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}


def torchrun(*arguments: object) -> Ended:
    """As people start it."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*launcher, "-m", "featherlight.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)
    return Ended(done.returncode, done.stdout, done.stderr)


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


def assert_same_sweep(single: Path, out: Path) -> None:
    names = {path.name for path in single.iterdir()}
    assert {path.name for path in out.iterdir()} == names
    runs = [name for name in names if (single / name).is_dir()]
    assert len(runs) == 4
    for name in runs:
        assert_same_run(single / name, out / name, TOLERANCES[name.partition(",")[0].removeprefix("dtype=")])
        assert {path.name for path in (out / name).iterdir()} == {path.name for path in (single / name).iterdir()}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of one process, and a run that was stopped."""
    out = tmp_path_factory.mktemp("single")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        done = call([*SWEEP, "--out", str(out / "runs")])
        assert done.code == 0, done.err
        assert call([*STOPPED, "--out", str(out / "left")]).code == 130
    return out / "runs"


@pytest.fixture(scope="module")
def unclipped(single: Path) -> Path:
    """The run of one process that others are held against."""
    return single / "dtype=float64,clip=None"


@pytest.fixture(scope="module")
def pair(single: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Ended, Ended]]:
    """Many commands in two processes: where each wrote, and how it ended on both."""
    folder = tmp_path_factory.mktemp("pair")
    places = {name: folder / name for name in ("sweep", "signal", "clock", "nan", "room", "error", "weights", "kill")}
    places["left"] = single.parent / "left"
    sharded = ("--parallel", "fsdp")
    commands = {
        "sweep": (*SWEEP, *sharded),
        "signal": (*STOPPED, *sharded),
        "left": (*STOPPED, *sharded),
        "clock": (*RECIPE, "--set", "minutes=0.01", "--set", "steps=none", *sharded),
        "nan": (*RECIPE, "--set", "happen='not finite'", *sharded),
        "room": (*RECIPE, "--set", "happen='no room'", *sharded),
        "error": (*RECIPE, "--set", "happen=error"),
        "weights": (*RECIPE, "--set", "weights_differ=true"),
        "kill": (*RECIPE, "--set", "happen=kill"),
    }
    commands = {name: (*one, "--out", str(places[name])) for name, one in commands.items()}
    ended = run_pair(commands, folder, ENVIRONMENT)
    assert "Traceback" not in "".join(one.err for both in ended.values() for one in both)
    return {name: (places[name], *both) for name, both in ended.items()}


def test_under_torchrun_two_whole_models_equal_one_at_the_same_batch(single, tmp_path):
    out = tmp_path / "runs"
    done = torchrun(*SWEEP, "--parallel", "ddp", "--out", out)
    assert done.code == 0, done.err
    assert "Warning" not in done.err
    assert done.err.count("run 4 of 4") == done.out.count("report:") == 1
    assert_same_sweep(single, out)


def test_two_parts_of_a_model_equal_one_at_the_same_batch(single, pair):
    out, first, second = pair["sweep"]
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert first.err.count("run 4 of 4") == first.out.count("report:") == 1
    assert second.err == second.out == ""
    assert_same_sweep(single, out)


def test_an_interrupt_of_one_process_stops_all_and_one_process_goes_on(unclipped, pair, run, monkeypatch):
    monkeypatch.chdir(ROOT)
    out, first, second = pair["signal"]
    assert (first.code, second.code) == (130, 0), first.err + second.err
    assert "stopped after step 8" in first.err
    assert second.err == second.out == ""
    (save,) = out.glob("saves/*/state.safetensors")
    assert read_progress(save)["step"] == 8
    resumed = run(*STOPPED, "--out", out)
    assert resumed.code == 0, resumed.err
    assert "resumed at step 8" in resumed.err
    assert_same_run(unclipped, out, TOLERANCES["float64"])


def test_two_processes_go_on_with_what_one_left(unclipped, pair):
    out, first, second = pair["left"]
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "resumed at step 8" in first.err
    assert_same_run(unclipped, out, TOLERANCES["float64"])


def test_the_clock_of_process_0_ends_a_budget_of_minutes(pair):
    out, first, second = pair["clock"]
    assert (first.code, second.code) == (0, 0), first.err + second.err
    summary = read_run(out).summary
    assert summary is not None
    assert summary.stopped == "finished"


def test_a_loss_that_is_not_finite_on_one_process_ends_all(pair):
    out, first, second = pair["nan"]
    assert (first.code, second.code) == (3, 0), first.err + second.err
    assert "the loss of step 7 is not finite in the batch of training rows 10, 11, 12" in first.err
    assert second.err == ""
    assert all(tensor.isfinite().all() for tensor in load_file(out / "model" / "model.safetensors").values())


def test_no_room_for_a_save_on_the_first_process_ends_all(pair):
    out, first, second = pair["room"]
    assert first.code == 1
    assert second.code in (0, 1)
    assert "a save needs about" in first.err + second.err
    assert (first.err + second.err).count("error: ") == 1
    (earlier,) = out.glob("saves/*/state.safetensors")
    assert read_progress(earlier)["step"] <= 7


def test_an_error_of_one_process_ends_all_with_its_sentence(pair):
    _, first, second = pair["error"]
    assert 0 not in (first.code, second.code)
    said = first.err + second.err
    assert said.count("error: ") == said.count("error: process 1 cannot read its rows.") == 1


def test_processes_that_start_from_different_weights_are_refused(pair):
    out, *ended = pair["weights"]
    assert sorted(one.code for one in ended) == [1, 2]
    assert "".join(one.err for one in ended).count("the processes start from different weights") == 1
    assert not out.exists()


def test_a_process_that_is_lost_ends_the_other_with_a_sentence(pair):
    _, first, second = pair["kill"]
    assert (first.code, second.code) == (2, -9)
    assert "error: another process of this run was lost" in first.err


@pytest.mark.parametrize(
    ("parallel", "sentence"), [("ddp", "needs several processes"), ("dp", "Name one of ddp, fsdp")]
)
def test_what_cannot_be_shared_gets_a_sentence(run, tmp_path, parallel, sentence):
    done = run("run", "classify/digits", "--parallel", parallel, "--out", tmp_path / "run")
    assert done.code == 2
    assert sentence in done.err
    assert not (tmp_path / "run").exists()
