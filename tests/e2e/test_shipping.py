"""compress, expand, inspect and verify, as a user meets them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from featherlight.archive import Archive, write_archive
from featherlight.recipes.classify.architectures import ImageClassifier
from featherlight.recipes.classify.network import write_network
from tests.e2e.command_line import Ended
from tests.e2e.digits_runs import DIGITS

pytest.importorskip("numba")
Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.e2e.command_line import call

    path = tmp_path_factory.mktemp("digits") / "run"
    assert call([*DIGITS, "--out", str(path)]).code == 0
    return path


def test_a_run_is_compressed_without_loss_looked_into_checked_and_expanded(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    file = tmp_path / "a.feather"
    planned = run("compress", trained, "--out", file, "--dry-run", "--json")
    assert json.loads(planned.out)["mode"] == "lossless"
    assert not file.exists()
    done = run("compress", trained, "--out", file)
    assert "without `--data` nothing can be measured, so the file is lossless" in done.err
    assert f"{file.stat().st_size:,} bytes" in done.out
    assert "exists already" in run("compress", trained, "--out", file).err
    run("expand", file, "--out", tmp_path / "x", "--like", trained)
    before, after = load_file(trained / "model/model.safetensors"), load_file(tmp_path / "x/model.safetensors")
    assert all(torch.equal(one, after[name]) for name, one in before.items())
    assert (tmp_path / "x/config.json").read_text() == (trained / "model/config.json").read_text()
    account = json.loads(run("inspect", file, "--json", "--picture", tmp_path / "a.svg").out)
    assert (
        sum(one["num_bytes"] for one in account["rows"]) + sum(account["other_bytes"].values()) == file.stat().st_size
    )
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
    assert "head.weight" in run("inspect", file).out
    assert run("verify", file).code == 0
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert run("verify", file).code == 4
    assert "was cut off or changed" in run("expand", file, "--out", tmp_path / "y").err


def test_loss_on_data_is_bounded_and_told_or_bytes_are(run: Run, trained: Path, tmp_path: Path) -> None:
    told = json.loads(
        run("compress", trained, "--data", "digits", "--max-loss", 2, "--out", tmp_path / "a.feather", "--json").out
    )
    assert told["file_bytes"] == (tmp_path / "a.feather").stat().st_size < told["tensor_bytes"] / 3
    assert told["before"] - told["after"] < 8
    assert told["told"] == "chosen on one half of the images, told on the other"
    told = json.loads(run("compress", trained, "--target", "4KB", "--out", tmp_path / "b.feather", "--json").out)
    assert told["file_bytes"] <= 4000
    assert "after" not in told
    assert Archive(tmp_path / "b.feather").entries.keys() == Archive(tmp_path / "a.feather").entries.keys()
    plenty = json.loads(run("compress", trained, "--target", "1MB", "--out", tmp_path / "d.feather", "--json").out)
    assert (plenty["mode"], plenty["settings"]) == ("lossless", None)
    impossible = run("compress", trained, "--target", "200B", "--out", tmp_path / "c.feather")
    assert impossible.code == 2
    assert "more than fit into the target of 200" in impossible.err
    assert not (tmp_path / "c.feather").exists()


def test_images_of_more_classes_and_those_that_do_not_fit(run: Run, tmp_path: Path) -> None:
    for name, classes, side in (("two", ("3", "7"), 8), ("wide", ("3", "7"), 28), ("other", ("a", "b"), 8)):
        model = ImageClassifier(network="lenet300", in_channels=1, num_classes=2, side=side)
        write_network(tmp_path / name, model, classes)
    file = tmp_path / "a.feather"
    told = json.loads(
        run("compress", tmp_path / "two", "--data", "digits", "--max-loss", 60, "--out", file, "--json").out
    )
    assert 0 <= told["before"] <= 100
    out = ("--data", "digits", "--out", tmp_path / "b.feather")
    assert "takes 1 channel of 28x28 pixels" in run("compress", tmp_path / "wide", *out).err
    assert "the model knows ['a', 'b']" in run("compress", tmp_path / "other", *out).err


def test_bad_input_gets_a_sentence(run: Run, trained: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "a.feather")
    tensors = trained / "model/model.safetensors"
    for arguments, sentence in (
        (("compress", tmp_path, *out), "there is no model at"),
        (("compress", tensors, *out, "--data", "digits"), "holds tensors alone"),
        (("compress", trained, *out, "--max-loss", "1"), "so it needs `--data`"),
        (
            ("compress", trained, *out, "--data", "digits", "--coding", "zip"),
            "`--coding` must be one of mixed, ans, huffman",
        ),
        (("compress", trained, *out, "--target", "small"), "`small` is no amount of memory"),
        (("inspect", tensors), "does not begin as such a file does"),
        (("inspect", tmp_path / "none"), "there is no file"),
    ):
        ended = run(*arguments)
        assert ended.code == 2
        assert sentence in ended.err


def test_tensors_beside_a_model_are_no_part_of_it_and_nothing_half_expanded_is_left(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    model, file = tmp_path / "model", tmp_path / "a.feather"
    shutil.copytree(trained / "model", model)
    save_file({"0.weight": torch.ones(3)}, model / "integer_program.safetensors")
    assert run("compress", model, "--out", file).code == 0
    assert Archive(file).entries.keys() == load_file(model / "model.safetensors").keys()
    assert "there is none at" in run("expand", file, "--out", tmp_path / "x", "--like", tmp_path / "none").err
    write_archive(file, {"weight": torch.zeros(2, dtype=torch.complex128)})
    assert "which safetensors cannot hold" in run("expand", file, "--out", tmp_path / "x").err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("model", "parts"), [("sentence", {"", "2_Dense"}), ("bert", {""})])
def test_a_text_model_is_compressed_with_its_head_and_runs_when_expanded(
    run: Run, models: Path, reviews: Path, tmp_path: Path, model: str, parts: set[str]
) -> None:
    trained, file, named = tmp_path / "run", tmp_path / "a.feather", ("--text", "sentence", "--label", "feeling")
    options = (*named, "--steps", 20, "--method", "adamw", "--trainable", "all", "--lr", "3e-3")
    assert run("finetune", "--model", models / model, "--train", reviews, *options, "--out", trained).code == 0
    done = run("compress", trained, "--data", reviews, "--max-loss", 5, "--out", file, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["before"] - 5 <= told["after"]
    assert told["times"] > 1.5
    run("expand", file, "--out", tmp_path / "x", "--like", trained)
    found = {one.parent.relative_to(tmp_path / "x") for one in (tmp_path / "x").rglob("*.safetensors")}
    assert found == {Path(part) for part in parts}
    measured = json.loads(run("evaluate", tmp_path / "x", "--data", reviews, *named, "--json").out)
    assert 100 * measured["accuracy"] == pytest.approx(told["after"])


def test_a_model_with_modules_that_have_no_files_is_expanded(run: Run, models: Path, tmp_path: Path) -> None:
    like = tmp_path / "like"
    shutil.copytree(models / "sentence", like)
    for name in ("vocab.bin", "pytorch_model.bin", "model.onnx", "asset_manifest.json"):
        (like / name).write_text("{}")
    (like / "vocab.bin").chmod(0o600)
    assert run("compress", like, "--out", tmp_path / "a.feather").code == 0
    assert run("expand", tmp_path / "a.feather", "--out", tmp_path / "x", "--like", like).code == 0
    names = {one.name for one in (tmp_path / "x").iterdir()}
    assert {"model.safetensors", "modules.json", "1_Pooling", "vocab.bin", "asset_manifest.json"} <= names
    assert not {"pytorch_model.bin", "model.onnx"} & names
    assert (tmp_path / "x/vocab.bin").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["[" * 100_000, '[{"path": null}]', '[{"path": "../x"}]', "[3]", "{"])
def test_a_list_of_modules_that_is_none_gets_a_sentence(run: Run, models: Path, tmp_path: Path, text: str) -> None:
    like = tmp_path / "like"
    shutil.copytree(models / "sentence", like)
    (like / "modules.json").write_text(text)
    assert f"{like / 'modules.json'} " in run("compress", like, "--out", tmp_path / "a.feather").err.replace("\n", "")
