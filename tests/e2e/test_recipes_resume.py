"""A run that was stopped, killed or damaged: what goes on to the same bits, and what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from featherlight import files
from featherlight.recipes import command
from featherlight.recipes.classify import experiment as module
from featherlight.report import read_run
from tests.e2e.command_line import ROOT, call
from tests.e2e.digits_runs import DIGITS, interrupt_at, same, weights

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted at step 6; for copies."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 6)
        assert call([*DIGITS, "--out", str(out)]).code == 130
    return out


@pytest.mark.parametrize("extra", [(), ("--set", "micro_batch=100", "--set", "optimizer.clip=0.5")])
def test_the_same_command_goes_on_mid_epoch_to_the_same_bits(run, finished, tmp_path, monkeypatch, extra):
    whole, parts = finished, tmp_path / "parts"
    if extra:
        whole = tmp_path / "whole"
        assert run(*DIGITS, *extra, "--out", whole).code == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        stopped = run(*DIGITS, *extra, "--out", parts)
    assert stopped.code == 130
    assert f"featherlight run --resume {parts}" in stopped.err
    resumed = run(*DIGITS, *extra, "--out", parts)
    assert resumed.code == 0, resumed.err
    assert "resumed at step 8" in resumed.err
    assert same(weights(whole), weights(parts))
    one, other = read_run(whole), read_run(parts)
    assert [(p.step, p.loss, p.forwards) for p in one.steps] == [(p.step, p.loss, p.forwards) for p in other.steps]
    assert one.summary is not None
    assert other.summary is not None
    assert one.summary.counters.backward_passes == other.summary.counters.backward_passes


def test_a_run_that_is_killed_goes_on_to_the_same_bits(run, tmp_path):
    settings = ("--set", "epochs=8", "--set", "evaluations=24", "--set", "batch=256", "--set", "channels=[16,32]")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run("run", "classify/digits", *settings, "--out", whole).code == 0
    command = [sys.executable, "-c", "from featherlight.cli import main; main()", "run", "classify/digits", *settings]
    process = subprocess.Popen([*command, "--out", str(killed)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(killed.glob("saves/save-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    if (killed / "summary.json").exists():
        pytest.skip("the run was over before it could be killed")
    resumed = run("run", "--resume", killed)
    assert resumed.code == 0, resumed.err
    assert "resumed at step" in resumed.err
    assert same(weights(whole), weights(killed))


def test_a_save_that_fails_leaves_the_one_before(run, stopped, tmp_path, monkeypatch):
    out = shutil.copytree(stopped, tmp_path / "run")
    (before,) = out.glob("saves/save-*/state.safetensors")
    data = before.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert run(*DIGITS, "--out", out).code == 1
    assert before.read_bytes() == data
    assert run("verify", out).code == 0
    assert run(*DIGITS, "--out", out).code == 0
    assert not (out / "saves").exists()


def test_a_damaged_save_is_passed_over_and_refused_only_if_it_is_the_last(run, stopped, tmp_path):
    out = shutil.copytree(stopped, tmp_path / "run")
    (save,) = out.glob("saves/save-*")
    newer = shutil.copytree(save, save.with_name("save-000999"))
    data = bytearray((newer / "state.safetensors").read_bytes())
    data[-9] ^= 4
    (newer / "state.safetensors").write_bytes(data)
    found = run("verify", out, "--json")
    assert found.code == 4
    assert [one["state"] for one in json.loads(found.out) if "/saves/" in one["part"]] == ["damaged", "intact"]
    kept = shutil.copytree(out, tmp_path / "kept")
    done = run(*DIGITS, "--out", out)
    assert done.code == 0
    assert f"skipped a damaged save: {newer / 'state.safetensors'} is altered" in done.err
    assert "resumed at step" in done.err
    shutil.rmtree(kept / "saves" / save.name)
    refused = run("run", "--resume", kept)
    assert refused.code == 2
    assert "all saves in" in refused.err


def test_a_sweep_that_is_interrupted_goes_on(run, tmp_path, monkeypatch):
    out = tmp_path / "sweep"
    arguments = (*DIGITS, "--set", "dropout=0.0,0.5", "--out", out)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        assert run(*arguments).code == 130
    assert len([one for one in out.iterdir() if one.is_dir()]) == 1
    assert run(*arguments).code == 0
    assert all(read_run(out / f"dropout={value}").summary.stopped == "finished" for value in (0.0, 0.5))


def test_a_staged_run_that_is_interrupted_between_and_within_stages_ends_at_the_same_bits(run, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run("run", "tests.e2e.staged_recipe:two", "--out", whole).code == 0
    for at in (4, 7, 10):
        monkeypatch.setenv("INTERRUPT_AT", str(at))
        stopped = run("run", "tests.e2e.staged_recipe:two", "--out", parts)
        assert stopped.code == 130, stopped.err
        assert len(read_run(parts).steps) == at
    monkeypatch.delenv("INTERRUPT_AT")
    assert run("run", "tests.e2e.staged_recipe:two", "--out", parts).code == 0
    weights = load_file(whole / "model" / "w.safetensors")
    assert same(weights, load_file(parts / "model" / "w.safetensors"))
    assert set(weights) == {"0.weight", "0.bias", "1.weight", "1.bias"}, "the transform left a trace"
    assert (weights["1.weight"] == 0).tolist() == [[True, True, True, False]], "8 updates hide 8/3 of the 4 columns"
    assert [point.step for point in read_run(parts).steps] == list(range(1, 13))


def test_a_damaged_line_of_the_metrics_does_not_stop_a_resume(run, stopped, tmp_path):
    out = shutil.copytree(stopped, tmp_path / "run")
    log = out / "metrics.jsonl"
    log.write_bytes(log.read_bytes().replace(b'{"kind": "step", "step": 3', b'{"kinf": "step", "step": 3'))
    resumed = run(*DIGITS, "--out", out)
    assert resumed.code == 0, resumed.err
    assert "1 damaged lines" in resumed.err


def test_a_run_whose_sections_fail_is_not_called_finished(run, tmp_path, monkeypatch):
    out = tmp_path / "run"

    def failing(self):
        raise ValueError("no figure")

    with monkeypatch.context() as patch:
        patch.setattr(module._Classifier, "sections", failing)
        assert run(*DIGITS, "--out", out).code == 2
    assert not (out / "summary.json").exists()
    done = run(*DIGITS, "--out", out)
    assert done.code == 0, done.err
    assert read_run(out).summary.stopped == "finished"


def test_a_finished_run_without_its_page_gets_it(run, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    (out / "report.html").unlink()
    assert run(*DIGITS, "--out", out).code == 0
    assert (out / "report.html").is_file()


def test_an_interrupt_outside_of_the_steps_is_told(run, tmp_path, monkeypatch):
    def loading(*_arguments: object, **_options: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(command, "run_all", loading)
    done = run("run", "implicit/interpolation", "--out", tmp_path / "run")
    assert (done.code, done.err) == (130, "stopped; go on with the same command")
