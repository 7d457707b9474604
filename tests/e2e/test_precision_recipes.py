"""Number formats from end to end, by the command line: what loss scaling is for, emulated formats, resuming, fine-tunes."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from featherlight.recipes.classify import experiment as module
from featherlight.report import read_run

pytest.importorskip("sklearn")

SMALL = (
    *("classify.channels=[8,16]", "classify.norm_groups=none", "classify.optimizer.lr=0.01"),
    *("classify.evaluations=1", "device=cpu"),
)


def command(recipe: str, *changes: str) -> list[str]:
    return ["run", recipe, *(part for change in changes for part in ("--set", change))]


def accuracy(path: Path) -> float:
    record = read_run(path)
    assert record.summary is not None
    assert record.summary.metric is not None
    return record.summary.metric.last


def last_values(path: Path) -> dict[str, Any]:
    metrics = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in metrics if line["kind"] == "eval"][-1]["values"]


def titles(path: Path) -> dict[str, Any]:
    return {one["title"]: one for one in json.loads((path / "sections.json").read_text())["sections"]}


def test_gradients_near_the_end_of_fp16_train_as_in_fp32_with_loss_scaling_and_not_at_all_without(run, tmp_path):
    found = {}
    for name, changes in {
        "fp32": ("precision=fp32",),
        "scaled": ("precision=fp16",),
        "unscaled": ("precision=fp16", "scaling=false"),
    }.items():
        done = run(
            *command("precision/loss_scaling", *SMALL, "classify.epochs=4", *changes),
            *("--out", tmp_path / name),
        )
        assert done.code == 0, done.err
        found[name] = accuracy(tmp_path / name)
    assert found["fp32"] > 0.85
    assert found["scaled"] >= 0.99 * found["fp32"]
    assert found["unscaled"] < 0.3
    values = last_values(tmp_path / "scaled")
    assert values["loss_scale"] >= 2**10
    assert values["underflow_share"] > 0.9
    assert {"Loss scaling", "Exponents", "What formats lose"} <= titles(tmp_path / "scaled").keys()
    assert "Loss scaling" not in titles(tmp_path / "unscaled")
    assert "What formats lose" in (tmp_path / "scaled" / "report.html").read_text()


def test_emulated_formats_train_side_by_side_and_leave_plain_weights(run, tmp_path):
    settings = (*SMALL, "classify.steps=30", "format=fp8,nvfp4")
    done = run(*command("precision/digits", *settings), "--out", tmp_path / "runs")
    assert done.code == 0, done.err
    for name in ("fp8", "nvfp4"):
        path = tmp_path / "runs" / f"format={name}"
        assert accuracy(path) > 0.3
        weights = load_file(path / "model" / "model.safetensors")
        assert not any("parametrizations" in one for one in weights)
        assert {"Exponents", "What formats lose"} <= titles(path).keys()


def test_a_run_in_fp16_that_is_stopped_goes_on_to_the_same_bits(run, tmp_path, monkeypatch):
    changes = ("steps=8", "evaluations=2", "batch=32", "channels=[4,8]", "device=cpu", "precision=fp16")
    words = command("classify/digits", *changes)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(*words, "--out", whole).code == 0
    with monkeypatch.context() as patch:
        real = module._Classifier.objective

        def interrupting(self, step, meter):
            if step == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return real(self, step, meter)

        patch.setattr(module._Classifier, "objective", interrupting)
        assert run(*words, "--out", parts).code == 130
    assert run(*words, "--out", parts).code == 0
    one, other = (load_file(path / "model" / "model.safetensors") for path in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert last_values(whole) == last_values(parts)


@pytest.mark.parametrize(("precision", "method"), [("fp16", "adamw"), ("bf16", "zo")])
def test_a_fine_tune_takes_16_bits(run, tmp_path, models, reviews, precision, method):
    words = (
        "finetune",
        "--model",
        models / "sentence",
        "--train",
        reviews,
        "--label",
        "feeling",
        "--method",
        method,
        "--steps",
        3,
    )
    done = run(*words, "--precision", precision, "--set", "evaluations=1", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    scaled = {"loss_scale", "skipped_steps", "underflow_share"} if precision == "fp16" else set()
    assert last_values(tmp_path / "run").keys() == {"accuracy", *scaled}
    assert f'precision = "{precision}"' in (tmp_path / "run" / "config.toml").read_text()


def test_a_translation_takes_16_bits(run, tmp_path):
    changes = ("steps=3", "evaluations=1", "evaluated=8", "network.width=16", "network.heads=2", "precision=fp16")
    done = run(*command("text/copy", *changes, "device=cpu"), "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert last_values(tmp_path / "run")["loss_scale"] == 2**16


def test_forward_only_training_takes_16_bits_without_a_scale(run, tmp_path):
    changes = ("steps=4", "evaluations=1", "batch=16", "channels=[4,8]", "device=cpu", "precision=bf16", "method=zo")
    done = run(*command("classify/digits", *changes), "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert last_values(tmp_path / "run").keys() == {"accuracy"}


@pytest.mark.parametrize(
    ("recipe", "change", "sentence"),
    [
        ("precision/digits", "format=fp9", "format"),
        ("precision/digits", "rounded=[]", "`rounded` is empty, so nothing would be rounded"),
        ("precision/digits", "classify.precision=fp16", "`format` says in which format this recipe computes"),
        ("precision/loss_scaling", "loss_weight=0", "`loss_weight` must be a finite positive number; got 0"),
        ("precision/loss_scaling", "classify.method=zo", "the proof is made with AdamW"),
        ("classify/digits", "precision=fp64", "precision"),
    ],
)
def test_a_wrong_choice_is_told_in_a_sentence(run, tmp_path, recipe, change, sentence):
    done = run(*command(recipe, change), "--out", tmp_path / "run")
    assert done.code != 0
    assert sentence in " ".join(done.err.split())
