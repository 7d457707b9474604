"""`featherlight export`: of runs for whole numbers and of float ones, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from featherlight.nn.models import SmallConvNet
from featherlight.recipes.classify.architectures import ImageClassifier
from featherlight.recipes.classify.network import write_network
from tests.e2e.command_line import call
from tests.e2e.digits_runs import DIGITS

TINY = ("classify.data=digits", "classify.network=small", "classify.channels=[4,8]", "classify.steps=4", "steps=3")
CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run for whole numbers."""
    path = tmp_path_factory.mktemp("runs") / "rounded"
    done = call(["run", "int8/lenet5", *(word for one in TINY for word in ("--set", one)), "--out", str(path)])
    assert not done.code, done.err
    return path


def small(path: Path, network: str | None = None) -> Path:
    """A model directory with fresh weights."""
    torch.manual_seed(0)
    if network is None:
        model = SmallConvNet(in_channels=1, num_classes=3, channels=[4])
    else:
        model = ImageClassifier(network=network, in_channels=1, num_classes=3, side=16)
    write_network(path, model, CLASSES)
    return path


def test_a_run_becomes_a_file_of_whole_numbers_that_is_certified_and_checked(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    done = call(["export", str(run), "--int8", "--check", "--out", str(out)])
    assert not done.code, done.err
    assert out.stat().st_size < 8000
    lines = done.out.splitlines()
    assert lines[0].startswith(f"wrote {out}: {out.stat().st_size:,} bytes, opset 18")
    assert lines[1].startswith("certificate: Sub, Div; 1 QuantizeLinear, ")
    assert lines[1].endswith("1 DequantizeLinear: no float operator between")
    assert lines[2].startswith("as ONNX Runtime runs it: ")
    assert "8-bit numbers" in lines[3]
    assert "validation images of digits; same arg-max in 100.00%" in lines[4]
    assert lines[5].startswith("largest difference of one operation, given equal inputs: ")
    kinds = {one.op_type for one in onnx.load(out).graph.node}
    assert {"QLinearConv", "MatMulInteger"} <= kinds
    assert "Conv" not in kinds


def test_a_model_becomes_a_file_of_floats(tmp_path: Path) -> None:
    model, out = small(tmp_path / "model"), tmp_path / "model.onnx"
    refused = call(["export", str(model), "--fp32", "--out", str(out)])
    assert refused.code == 2
    assert "Give `--side`, in pixels" in refused.err
    words = ["export", str(model), "--fp32", "--check", "--side", "9", "--examples", "70", "--opset", "19", "--json"]
    done = call([*words, "--out", str(out)])
    assert not done.code, done.err
    facts = json.loads(done.out)
    assert facts["opset"] == 19
    assert {one.domain: one.version for one in onnx.load(out).opset_import}[""] == 19
    assert facts["check"]["examples"] == 70
    assert facts["check"]["same_choice"] == 1
    assert facts["check"]["largest_difference"] < 1e-4


def test_what_cannot_be_exported_is_said_in_a_sentence(run: Path, tmp_path: Path) -> None:
    model, vit = small(tmp_path / "model"), small(tmp_path / "vit", "vit")
    recurrent, unfinished = tmp_path / "recurrent", tmp_path / "unfinished"
    recurrent.mkdir()
    (recurrent / "config.json").write_text('{"architecture": "Forecaster"}')
    unfinished.mkdir()
    (unfinished / "config.toml").write_text('recipe = "int8/lenet5"\n')
    (tmp_path / "there.onnx").touch()
    kept = tmp_path / "kept"
    (kept / "model").mkdir(parents=True)
    (kept / "model" / "config.json").write_text("{}")
    (kept / "config.toml").write_text('recipe = "int8/lenet5"\nkeep_float = ["head"]\n')
    out = ("--out", str(tmp_path / "out.onnx"))
    refused = {
        "an export is of one kind": [str(run), *out],
        "`opset` must be from 13 to 23": [str(run), "--int8", "--opset", "11", *out],
        "there is no directory": [str(run), "--int8", "--out", str(tmp_path / "none" / "m.onnx")],
        "there.onnx exists already": [str(run), "--int8", "--out", str(tmp_path / "there.onnx")],
        "is not finished, so that there is no model": [str(unfinished), "--int8", *out],
        "trained floats (SmallConvNet)": [str(model), "--int8", *out],
        "(vit) has no static form in whole numbers: its attention": [str(vit), "--int8", *out],
        "(Forecaster) has no static form in whole numbers: its recurrent cells (LSTM)": [
            str(recurrent),
            "--int8",
            *out,
        ],
        "it keeps head in float": [str(kept), "--int8", *out],
        "there is no model at": [str(tmp_path / "nowhere"), "--int8", *out],
    }
    for sentence, words in refused.items():
        done = call(["export", *words])
        assert done.code == 2, sentence
        assert sentence in done.err
        assert "Traceback" not in done.err
    assert not (tmp_path / "out.onnx").exists()


def test_a_network_of_floats_is_calibrated_by_images(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    path, out = tmp_path / "run", tmp_path / "model.onnx"
    done = call([*DIGITS, "--out", str(path)])
    assert not done.code, done.err
    words = ["export", str(path), "--int8", "--calibrate", "digits", "--out", str(out)]
    done = call([*words, "--check", "--json"])
    assert not done.code, done.err
    facts = json.loads(done.out)
    assert facts["certificate"].endswith("1 DequantizeLinear: no float operator between")
    check = facts["check"]
    assert check["images"] == "validation images of digits"
    assert check["same_as_float"] > 0.97
    assert abs(check["accuracy"] - check["accuracy_of_float"]) < 0.02
    colour, vit = tmp_path / "colour", small(tmp_path / "vit", "vit")
    write_network(colour, SmallConvNet(in_channels=3, num_classes=3, channels=[4]), CLASSES)
    np.savez(tmp_path / "grey.npz", x_train=np.zeros((4, 16, 16), np.uint8), y_train=np.arange(4) % 2)
    refused = {
        "takes 3 channels of 8x8 pixels": [str(colour), "--int8", "--calibrate", "digits"],
        "or export the network with `--fp32`": [str(vit), "--int8", "--calibrate", str(tmp_path / "grey.npz")],
        "which is neither a set that is known by name": [str(path), "--int8", "--calibrate", "digit"],
        "so it needs `--int8`": [str(path), "--fp32", "--calibrate", "digits"],
    }
    for sentence, words in refused.items():
        done = call(["export", *words, "--out", str(tmp_path / "other.onnx")])
        assert done.code == 2, sentence
        assert sentence.lower() in done.err.lower(), done.err
    assert not (tmp_path / "other.onnx").exists()
