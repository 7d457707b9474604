"""A deep belief net from end to end, by the command line: all stages, report, resuming."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from featherlight.meter import Meter
from featherlight.recipes.dbn import experiment as module
from featherlight.recipes.dbn.config import DbnConfig, PretrainingConfig
from featherlight.recipes.dbn.network import read_network
from featherlight.report import read_run
from featherlight.trainer import Display, Workspace

TINY = (
    *("hidden=[8,6,12]", "pretraining.epochs=1", "up_down.epochs=1", "backprop.epochs=1", "batch=400", "samples=2"),
    *("sample_steps=3", "evaluations=2", "device=cpu"),
)


def command(*changes):
    return ("run", "dbn/digits", *[part for change in (*TINY, *changes) for part in ("--set", change)])


def test_a_run_of_real_units_without_up_down(run, tmp_path):
    pytest.importorskip("sklearn")
    done = run(*command("visible=gaussian", "up_down=none"), "--out", tmp_path / "run")
    assert done.code == 0, done.err
    model, _ = read_network(tmp_path / "run")
    assert model.shift_V.max() > 0
    assert 0 < float(model.scale) < 1


def test_a_run_that_is_stopped_goes_on_to_the_same_bits(run, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    start = command("pretraining.chains=persistent")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = run(*start, "--out", whole)
    assert done.code == 0, done.err
    for at in (6, 13):
        with monkeypatch.context() as patch:
            count = 0
            real = module.Belief._of_batch

            def interrupting(self, *arguments, at=at, real=real):
                nonlocal count
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGINT)
                return real(self, *arguments)

            patch.setattr(module.Belief, "_of_batch", interrupting)
            assert run(*start, "--out", parts).code == 130
    assert run(*start, "--out", parts).code == 0
    one, other = (load_file(path / "model" / "model.safetensors") for path in (whole, parts))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    titles = {part["title"] for part in json.loads((whole / "sections.json").read_text())["sections"]}
    assert titles == {"Errors", "What it draws of each label", "Features"}
    summary = read_run(whole).summary
    assert summary is not None
    assert summary.metric is not None
    assert summary.metric.name == "error"
    model, about = read_network(whole)
    assert about["hidden"] == [8, 6, 12]
    assert model.net.sample(torch.tensor([3]), torch.Generator().manual_seed(0), steps=2).shape == (1, 64)


def test_chains_move_when_a_step_is_taken_and_not_when_one_is_looked_at(tmp_path):
    pytest.importorskip("sklearn")
    settings = {"pretraining": PretrainingConfig(chains="persistent"), "device": "cpu"}
    config = DbnConfig(data="digits", hidden=(8, 6), **settings)
    experiment = config.experiment(Workspace(scratch=tmp_path, display=Display()))
    for number, name in ((0, "0"), (1, "1"), (2, "up_down")):
        stage, chains = experiment.stages[number], experiment.model.chains[name]
        stage.prepare()
        before = chains.v_NV.clone()
        optimizer = stage.optimizer(None, Meter())
        one, again = (stage.objective(3, Meter()) for _ in range(2))
        assert torch.equal(one.value(), again.value())
        assert torch.equal(chains.v_NV, before)
        optimizer.step(one)
        assert not torch.equal(chains.v_NV, before)


def test_bad_settings_get_a_sentence(run, tmp_path):
    for change, match in (
        ("hidden=[8]", "two or more"),
        ("up_down.lr=0", "finite positive"),
        ("backprop.dropout_hidden=1", "must lie in [0, 1)"),
        ("pretraining.steps=0", "at least 1"),
    ):
        assert match in run("run", "dbn/digits", "--set", change, "--out", tmp_path / "run").err
    with pytest.raises(ValueError, match="there is no deep belief net at"):
        read_network(tmp_path)
