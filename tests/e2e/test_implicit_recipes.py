"""Implicit models from end to end, by the command line: tables, functions and images; resuming, report and model."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from featherlight.recipes.implicit import experiment as module
from featherlight.recipes.implicit.network import read_model
from featherlight.report import read_run


def settings(*changes: str) -> list[str]:
    return [part for change in (*changes, "device=cpu") for part in ("--set", change)]


def titles(run_directory: Path) -> list[str]:
    return [one["title"] for one in json.loads((run_directory / "sections.json").read_text())["sections"]]


@pytest.fixture
def own_table(tmp_path):
    x = torch.rand(120, 2, generator=torch.Generator().manual_seed(0)).tolist()
    path = tmp_path / "own.csv"
    path.write_text("a,b,y\n" + "\n".join(f"{a},{b},{(a - 0.5) ** 2 + a * b}" for a, b in x) + "\n")
    return path


def test_a_table_block_by_block_stopped_and_taken_up(run, tmp_path, own_table, monkeypatch):
    command = ("run", "implicit/tabular", *settings(f"data={own_table}", "blocks=[3, 3, 3]", "sparse=[0.01]"))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = run(*command, "--out", whole)
    assert done.code == 0, done.err
    assert titles(whole) == ["Blocks", "Pattern of A", "Certificates", "Sparsity"]
    record = read_run(whole)
    assert record.summary is not None
    assert record.summary.metric is not None
    assert record.summary.metric.name == "rmse"
    assert record.summary.metric.last < 0.2 * record.summary.metric.start
    losses = [point.loss for point in record.steps]
    assert losses == sorted(losses, reverse=True)
    real = module.ImplicitRun._whole

    def interrupting(self, step, meter):
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, step, meter)

    with monkeypatch.context() as patch:
        patch.setattr(module.ImplicitRun, "_whole", interrupting)
        assert run(*command, "--out", parts).code == 130
    assert run(*command, "--out", parts).code == 0
    one, other = (load_file(path / "model" / "model.safetensors") for path in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)
    model, about = read_model(parts)
    assert about["inputs"] == ["a", "b"]
    value = model(torch.tensor([[0.5, 0.5]], dtype=torch.float64)).item()
    assert abs(value - 0.25) < 0.1


def test_a_full_a_by_implicit_differentiation(run, tmp_path, own_table):
    out = tmp_path / "run"
    chosen = settings(f"data={own_table}", "method=implicit", "blocks=[6]", "loop.epochs=2", "sparse=[0.01]")
    done = run("run", "implicit/tabular", *chosen, "--out", out)
    assert done.code == 0, done.err
    assert titles(out) == ["Pattern of A", "Convergence of the solver", "Certificates", "Sparsity"]
    model, _ = read_model(out)
    assert float(model.layer.A.detach().abs().sum(1).max()) < 1


def test_a_function_and_images(run, tmp_path):
    out = tmp_path / "function"
    done = run("run", "implicit/interpolation", *settings("blocks=[8, 8]", "points=40", "data=kink"), "--out", out)
    assert done.code == 0, done.err
    assert titles(out)[0] == "Blocks"
    pytest.importorskip("sklearn")
    out = tmp_path / "digits"
    chosen = settings("data=digits", "blocks=[12, 4]", "growth.directions=20", "sparse=[]", "growth.epochs=4")
    done = run("run", "implicit/mnist", *chosen, "--out", out)
    assert done.code == 0, done.err
    summary = read_run(out).summary
    assert summary is not None
    assert summary.metric is not None
    assert summary.metric.last > 0.5
    assert "growth.directions" in run("run", "implicit/mnist", *settings("growth.directions=0"), "--dry-run").err
