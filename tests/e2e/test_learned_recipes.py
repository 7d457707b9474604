"""Learned optimizers from end to end, by the command line: report, rule file, and a run that is taken up."""

import json
import os
import signal

import pytest
import torch

from featherlight.optim.learned import load_rule
from featherlight.recipes.learned import experiment as module
from featherlight.report import read_run

TINY = ("--set", "held_out=3", "--set", "evaluations=4")


def sections_of(path) -> dict[str, str]:
    found = json.loads((path / "sections.json").read_text())["sections"]
    return {one["title"]: json.dumps(one) for one in found}


def test_least_squares_leaves_a_report_and_a_rule_that_solves_in_one_step(run, tmp_path):
    out = tmp_path / "run"
    done = run("run", "learned/least-squares", "--out", out, *TINY)
    assert done.code == 0, done.err
    assert "Evaluations fell from 5 to 1." in done.out + done.err
    found = sections_of(out)
    assert found.keys() == {"Held-out tasks", "Out of its class", "When meta-training has paid for itself"}
    assert "another matrix" in found["Out of its class"]
    assert "tasks until it has paid" in found["When meta-training has paid for itself"]
    assert "Held-out tasks" in (out / "report.html").read_text()
    record = read_run(out)
    assert record.summary is not None
    points = [torch.zeros(32, dtype=torch.float64)]
    rule = load_rule(out / "model" / "rule.safetensors", points)
    assert sum(p.numel() for p in rule.parameters()) == 32 * 32 + 2  # pyright: ignore
    with pytest.raises(ValueError, match="least squares with one matrix"):
        load_rule(out / "model" / "rule.safetensors", [torch.zeros(31)])


@pytest.mark.parametrize("method", ["unrolled", "evolution"])
def test_a_run_that_is_stopped_goes_on_to_the_same_rule(run, tmp_path, monkeypatch, method):
    small = tuple(part for one in ("steps=4", "horizon=3", "meta_batch=2", "memory=2") for part in ("--set", one))
    command = ("run", "learned/smooth-nonconvex", *TINY, *small, "--set", f"method={method}")
    monkeypatch.setattr(module, "sections", lambda learning: ())
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    real, interrupt = module.LearningRun.objective, False

    def observed(self, step, meter):
        if step == 1:
            self._count_dropped([0])
        if step == 2 and interrupt:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, step, meter)

    monkeypatch.setattr(module.LearningRun, "objective", observed)
    assert run(*command, "--out", whole).code == 0
    interrupt = True
    stopped = run(*command, "--out", parts)
    assert stopped.code == 130, stopped.err
    interrupt = False
    resumed = run(*command, "--out", parts)
    assert "resumed at step 3" in resumed.out + resumed.err
    one, other = (load_rule(path / "model" / "rule.safetensors").state_dict() for path in (whole, parts))  # pyright: ignore
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [read_run(path).evals[-1].values["dropped tasks"] for path in (whole, parts)] == [1, 1]


def test_a_dry_run_says_what_would_be_learned(run, tmp_path):
    done = run("run", "learned/system-identification", "--dry-run", *TINY)
    assert done.code == 0, done.err
    assert "curvature" in done.out + done.err
    assert "budget of training" in done.out + done.err
