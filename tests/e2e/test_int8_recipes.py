"""Classifiers for whole numbers, tiny, by the command line: both stages, what is left, and resuming in the second."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from featherlight.data import load_images
from featherlight.recipes.catalogue import find_recipe, make_config
from featherlight.recipes.classify.network import read_network
from featherlight.recipes.int8 import experiment as module
from featherlight.transforms.quantize.integer_executor import IntegerExecutor
from featherlight.transforms.quantize.program_file import FILE_NAME, read_program

TINY = ("data=digits", "network=resnet8", "width=0.5", "epochs=2", "augment=none", "evaluations=2", "device=cpu")
COMMAND = (
    "run",
    "int8/resnet20",
    *[part for one in TINY for part in ("--set", f"classify.{one}")],
    "--set",
    "steps=12",
)


@pytest.fixture(scope="module", autouse=True)
def digits():
    pytest.importorskip("sklearn")


def blocks(path):
    return {one["title"]: one["blocks"] for one in json.loads((path / "sections.json").read_text())["sections"]}


def test_a_run_leaves_a_plain_network_and_its_integer_program_and_resumes(run, tmp_path, monkeypatch):
    done = run(*COMMAND, "--out", tmp_path / "whole")
    assert done.code == 0, done.err
    found = blocks(tmp_path / "whole")
    rows = {row[0]: row[1] for row in found["Whole numbers"][0]["rows"]}
    assert list(rows)[:2] == ["float", "calibrated, not trained"]
    program = read_program(tmp_path / "whole" / "model" / FILE_NAME)
    images = load_images("digits").with_valid(0.05).valid
    logits = IntegerExecutor(program)(images.floats(torch.arange(len(images))))
    assert 100 * float((logits.argmax(-1) == images.labels).double().mean()) == pytest.approx(
        rows["trained, whole numbers"]
    )
    model = read_network(tmp_path / "whole").model
    for layer in (one for one in model.modules() if isinstance(one, torch.nn.Conv2d)):
        units = layer.weight.detach() * 127 / layer.weight.detach().abs().amax((1, 2, 3), keepdim=True)
        torch.testing.assert_close(units, units.round(), rtol=0, atol=1e-3)
    assert len(found["Weights"][0]["rows"]) == len(program.layers)
    with monkeypatch.context() as patch:
        real = module.Quantized.update

        def interrupting(self, model, progress):
            if progress == 0.5:
                os.kill(os.getpid(), signal.SIGINT)
            return real(self, model, progress)

        patch.setattr(module.Quantized, "update", interrupting)
        assert run(*COMMAND, "--out", tmp_path / "parts").code == 130
    assert run(*COMMAND, "--out", tmp_path / "parts").code == 0
    for name in ("model.safetensors", FILE_NAME):
        one, other = (load_file(tmp_path / part / "model" / name) for part in ("whole", "parts"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert blocks(tmp_path / "parts") == found


def test_a_finished_network_is_taken_over_with_learned_grids_of_few_bits(run, tmp_path):
    base = ("run", "classify/digits", "--set", "epochs=1", "--set", "device=cpu", "--out", tmp_path / "base")
    assert run(*base).code == 0
    changes = (
        "weight_bits=4",
        "weight_scales=learned",
        "ranges=learned",
        "steps=4",
        f"classify.initial={tmp_path / 'base'}",
    )
    settings = [part for one in (*changes, "classify.data=digits") for part in ("--set", one)]
    done = run("run", "int8/lenet5", *settings, "--out", tmp_path / "few")
    assert done.code == 0, done.err
    assert not (tmp_path / "few" / "model" / FILE_NAME).exists()
    assert read_network(tmp_path / "few").model.settings["channels"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("classify.norm=group", "has no integer form"),
        ("classify.method=zo", "`classify.method` must be one of"),
        ("weight_bits=9", "`weight_bits` must be from 2 to 8"),
        ("freeze_after=2", "must lie in [0, 1]"),
        ("lr=0", "`lr` must be a finite positive number"),
    ],
)
def test_choices_that_there_are_not(run, tmp_path, change, message):
    done = run(*COMMAND, "--set", change, "--out", tmp_path / "run")
    assert done.code != 0
    assert message in done.err


@pytest.mark.parametrize("name", ["int8/lenet5", "int8/resnet20", "int8/mobile"])
def test_recipes_are_there(name):
    assert make_config(find_recipe(name)).seed == 0
