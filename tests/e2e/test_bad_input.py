"""Bad input at the command line: each gets one clear sentence and an exit code, and nothing is lost or left behind."""

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from featherlight.trainer import read_journal
from tests.e2e.command_line import call

BASE = ("--text", "sentence", "--label", "feeling", "--steps", 3, "--batch", 8)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def rows(*pairs: tuple[str, object]) -> str:
    return "".join(json.dumps({"sentence": text, "feeling": label}) + "\n" for text, label in pairs)


DATA = {
    "empty file": ("", "is empty"),
    "broken line": (rows(("good", 1)) + "{oops\n", "train.jsonl:2"),
    "one class only": (rows(("good", 1), ("bad", 1)), "one class only"),
    "a label is absent": (rows(("good", 1), ("bad", None)), "row 2"),
    "a text is no text": (rows(("good", 1), (7, 0)), "row 2"),  # pyright: ignore[reportArgumentType]
}


@pytest.mark.parametrize("name", DATA)
def test_data(run, models, tmp_path, name):
    content, sentence = DATA[name]
    train = write(tmp_path / "train.jsonl", content)
    out = tmp_path / "run"
    done = run("finetune", "--model", models / "bert", "--train", train, *BASE, "--out", out)
    assert done.code == 2
    assert sentence in done.err
    assert not out.exists()


def test_an_unknown_column_lists_the_columns_and_suggests_one(run, models, reviews, tmp_path):
    done = run(
        "finetune", "--model", models / "bert", "--train", reviews, "--text", "sentnce", "--out", tmp_path / "run"
    )
    assert done.code == 2
    assert "sentnce" in done.err
    assert "Did you mean 'sentence'?" in done.err
    assert "stars" in done.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--train", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--model", "nowhere"), "the model `nowhere` is no directory"),
        (("--trainable", "last:9"), "has 3"),
        (("--trainable", "nothing_like_it"), "fits none"),
        (("--trainable", "("), "not a regular expression"),
        (("--metric", "pearson"), "for numbers"),
        (("--metric", "acuracy"), "metric"),
        (("--method", "zoo"), "'muon', 'schedule_free' or 'auto'"),
        (("--batch", 0), "must be positive"),
        (("--lr", "nan"), "finite positive"),
        (("--set", "optimizer.sigm=1"), "optimizer.sigma"),
        (("--set", "sigma"), "key=value"),
        (("--seed", -1), "seed"),
        (("--task", "lm"), "neither"),
    ],
)
def test_settings(run, models, reviews, tmp_path, arguments, sentence):
    given = {"--model": models / "bert", "--train": reviews, "--out": tmp_path / "run"}
    given |= {arguments[0]: arguments[1]}
    flat = [part for pair in given.items() for part in pair]
    done = run("finetune", *BASE, *flat)
    assert done.code == 2
    assert sentence in done.err
    assert not (tmp_path / "run").exists()


def test_text_longer_than_the_model_takes(run, models, tmp_path):
    long = " ".join(["film"] * 100)
    train = write(tmp_path / "long.jsonl", rows(*[(f"{long} {mood}", mood) for mood in ("good", "bad") * 10]))
    arguments = ("finetune", "--model", models / "bert", "--train", train, *BASE)
    refused = run(*arguments, "--out", tmp_path / "run")
    assert refused.code == 2
    assert "--allow-truncation" in refused.err
    assert run(*arguments, "--out", tmp_path / "run", "--allow-truncation").code == 0


@pytest.mark.parametrize("method", ["zo", "mezo", "adamw"])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_step(run, models, reviews, tmp_path, method):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (models / "bert").iterdir():
        os.link(file, folder / file.name) if file.name != "model.safetensors" else None
    weights = load_file(models / "bert" / "model.safetensors")
    weights["encoder.layer.0.attention.self.query.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "run"
    done = run(
        "finetune", "--model", folder, "--train", reviews, *BASE, "--method", method, "--no-head-start", "--out", out
    )
    assert done.code == 3
    assert "the loss of step 0 is not finite" in done.err
    assert "rows" in done.err


def test_a_loss_that_becomes_infinite_leaves_a_valid_journal(run, models, reviews, tmp_path, monkeypatch):
    from featherlight.recipes.finetune import tasks

    calls = 0
    real = tasks.Classification.losses

    def failing(self, logits, labels):
        nonlocal calls
        calls += len(labels) == 8
        return real(self, logits, labels) + (float("inf") if calls > 6 else 0.0)

    monkeypatch.setattr(tasks.Classification, "losses", failing)
    out = tmp_path / "run"
    done = run("finetune", "--model", models / "bert", "--train", reviews, *BASE, "--steps", 40, "--out", out)
    assert done.code == 3
    contents = read_journal(out / "journal")
    assert contents.damage is None
    assert len(contents.records) in (1, 2, 3)
    assert f"step {len(contents.records)} is not finite" in done.err


def test_a_directory_that_is_not_a_model(run, reviews, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    write(folder / "notes.txt", "hello")
    done = run("finetune", "--model", folder, "--train", reviews, *BASE, "--out", tmp_path / "run")
    assert done.code == 2
    assert "not a model directory" in done.err
    assert "notes.txt" in done.err


def test_an_existing_run_directory_is_not_touched(run, models, reviews, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    mine = write(out / "mine.txt", "precious")
    done = run("finetune", "--model", models / "bert", "--train", reviews, *BASE, "--out", out)
    assert done.code == 2
    assert "exists already" in done.err
    assert [entry.name for entry in out.iterdir()] == ["mine.txt"]
    assert mine.read_text() == "precious"


def test_an_output_that_cannot_be_written(run, models, reviews, tmp_path):
    blocked = write(tmp_path / "file", "")
    done = run("finetune", "--model", models / "bert", "--train", reviews, *BASE, "--out", blocked / "run")
    assert done.code == 2
    assert "cannot be written" in done.err


def test_a_journal_of_another_base_model(run, models, reviews, tmp_path):
    out = tmp_path / "run"
    assert run("finetune", "--model", models / "bert", "--train", reviews, *BASE, "--out", out).code == 0
    folder = tmp_path / "other"
    folder.mkdir()
    for file in (models / "bert").iterdir():
        os.link(file, folder / file.name) if file.name != "model.safetensors" else None
    weights = load_file(models / "bert" / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][5, 3] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    done = run("replay", folder, out / "journal", "--out", tmp_path / "again")
    assert done.code == 2
    assert "another base model" in done.err
    assert not (tmp_path / "again").exists()


@pytest.fixture(scope="module")
def recorded(models: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The journal of a run of three steps."""
    out = tmp_path_factory.mktemp("recorded") / "run"
    asked = ("finetune", "--model", models / "bert", "--train", reviews, *BASE, "--out", out)
    assert call([*map(str, asked)]).code == 0
    return (out / "journal").read_bytes()


@pytest.mark.parametrize("damage", ["cut", "flipped", "not a journal", "missing"])
def test_damaged_journals(run, models, recorded, tmp_path, damage):
    """The last step is damaged: what stands behind it, a note of the state, is of no use without it."""
    journal = tmp_path / "journal"
    data = bytearray(recorded)
    journal.write_bytes(data)
    if damage == "cut":
        journal.write_bytes(data[:-80])
    elif damage == "flipped":
        data[-90] ^= 16
        journal.write_bytes(data)
    elif damage == "not a journal":
        journal.write_bytes(b"hello")
    else:
        journal.unlink()
    done = run("replay", models / "bert", journal, "--out", tmp_path / "again")
    if damage in ("cut", "flipped"):
        assert done.code == 0
        assert "replayed 2 steps" in done.out
        assert "everything before them is intact" in done.err
    else:
        assert done.code == 2
        assert "journal" in done.err


def test_a_misspelt_config_key_and_a_broken_config(run, tmp_path):
    config = write(tmp_path / "c.toml", 'model = "minilm"\ntrian = "x"\n')
    done = run("finetune", "--config", config)
    assert done.code == 2
    assert "Did you mean `train`?" in done.err
    broken = run("finetune", "--config", write(tmp_path / "b.toml", "model = "))
    assert broken.code == 2
    assert "not valid TOML" in broken.err


def test_runs_that_cannot_be_used(run, models, tmp_path):
    assert "not a run directory" in run("finetune", "--resume", tmp_path).err
    assert "there is no model or run at" in run("predict", tmp_path / "nothing", "--input", "x.csv").err
    assert "its classes are unknown" in run("predict", models / "bert", "--input", "x.csv").err
    assert run("report", tmp_path).code == 2


def test_the_disk_is_full(run, models, reviews, tmp_path, monkeypatch):
    from featherlight.trainer.journal import writing

    calls = 0

    def full(descriptor):
        nonlocal calls
        calls += 1
        if calls > 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "fdatasync", full)
    out = tmp_path / "run"
    done = run("finetune", "--model", models / "bert", "--train", reviews, *BASE, "--steps", 20, "--out", out)
    assert done.code == 1
    assert "No space left on device" in done.err
    monkeypatch.undo()
    resumed = run("finetune", "--resume", out)
    assert resumed.code == 0, resumed.err
    assert len(read_journal(out / "journal").records) == 20


def test_dry_run_shows_the_plan_and_writes_nothing(run, models, reviews, tmp_path):
    done = run(
        "finetune", "--model", models / "bert", "--train", reviews, *BASE, "--out", tmp_path / "run", "--dry-run"
    )
    assert done.code == 0
    assert "training examples" in done.err
    assert not (tmp_path / "run").exists()


def test_version_and_json(run, models, reviews, tmp_path):
    assert run("--version").out.startswith("featherlight ")
    done = run("finetune", "--model", models / "bert", "--train", reviews, *BASE, "--out", tmp_path / "run", "--json")
    assert json.loads(done.out)["counters"]["steps"] == 3
