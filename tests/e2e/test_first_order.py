"""Methods that go by gradients, chosen at the command line: they run, stop and go on to the same bits."""

import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from featherlight.recipes.classify import experiment as module
from featherlight.report import read_run


@pytest.mark.parametrize("method", ["prodigy", "muon", "schedule_free"])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(run, tmp_path, monkeypatch, method):
    pytest.importorskip("sklearn")
    changes = ("steps=8", "evaluations=2", "batch=32", "channels=[4,8]", f"method={method}", "device=cpu")
    command = ("run", "classify/digits", *[part for change in changes for part in ("--set", change)])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = run(*command, "--out", whole)
    assert done.code == 0, done.err
    record = read_run(whole)
    assert record.summary is not None
    assert record.summary.counters.steps == 8
    if method == "schedule_free":
        assert 'schedule = "constant"' in (whole / "config.toml").read_text()
        assert len({point.lr for point in record.steps}) == 1
    with monkeypatch.context() as patch:
        real = module._Classifier.objective

        def interrupting(self, step, meter):
            if step == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return real(self, step, meter)

        patch.setattr(module._Classifier, "objective", interrupting)
        assert run(*command, "--out", parts).code == 130
    assert run(*command, "--out", parts).code == 0
    one, other = (load_file(path / "model" / "model.safetensors") for path in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)
