"""Methods that go by gradients, chosen at the command line: they run, stop and go on to the same bits."""

import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from featherlight.recipes.classify import experiment as module
from featherlight.report import read_run

TINY = ("steps=8", "evaluations=2", "batch=32", "channels=[4,8]", "device=cpu")


def command(*changes):
    return ("run", "classify/digits", *[part for change in (*TINY, *changes) for part in ("--set", change)])


@pytest.mark.parametrize("method", ["prodigy", "muon"])
def test_a_method_is_chosen_by_its_name(run, tmp_path, method):
    pytest.importorskip("sklearn")
    done = run(*command(f"method={method}"), "--out", tmp_path / "run")
    assert done.code == 0, done.err
    record = read_run(tmp_path / "run")
    assert record.summary is not None
    assert record.summary.counters.steps == 8
    assert len({point.lr for point in record.steps}) > 1


def test_a_run_with_an_average_that_is_stopped_goes_on_to_the_same_bits(run, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = run(*command("method=schedule_free"), "--out", whole)
    assert done.code == 0, done.err
    assert 'schedule = "constant"' in (whole / "config.toml").read_text()
    assert len({point.lr for point in read_run(whole).steps}) == 1
    with monkeypatch.context() as patch:
        real = module._Classifier.objective

        def interrupting(self, step, meter):
            if step == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return real(self, step, meter)

        patch.setattr(module._Classifier, "objective", interrupting)
        assert run(*command("method=schedule_free"), "--out", parts).code == 130
    assert run(*command("method=schedule_free"), "--out", parts).code == 0
    one, other = (load_file(path / "model" / "model.safetensors") for path in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)
