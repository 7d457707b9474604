"""`featherlight run` from end to end, on the digits."""

import json
import os
import shutil
from pathlib import Path

import pytest

from featherlight.report import read_run
from featherlight.trainer import RunDirectory
from tests.e2e.digits_runs import DIGITS, STEPS, same, weights

pytest.importorskip("sklearn")


def test_a_run_leaves_a_model_a_card_and_a_report_and_is_not_run_twice(run, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    record = read_run(out)
    assert not record.damage
    assert record.summary is not None
    assert record.summary.counters.steps == STEPS
    assert record.summary.metric is not None
    assert record.summary.metric.last > record.summary.metric.start
    assert {path.name for path in (out / "model").iterdir()} == {
        "README.md",
        "config.json",
        "manifest.json",
        "model.safetensors",
    }
    card = (out / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: featherlight")
    assert "classify/digits --set epochs=2" in card
    assert "Mistakes" in (out / "report.html").read_text()
    before = (out / "metrics.jsonl").read_bytes()
    again = run(*DIGITS, "--out", out)
    assert again.code == 0
    assert "is finished already" in again.err
    assert (out / "metrics.jsonl").read_bytes() == before


def test_seeds_and_a_sweep_are_drawn_in_one_picture(run, tmp_path):
    out = tmp_path / "sweep"
    arguments = (*DIGITS, "--set", "optimizer.lr=1e-4,3e-3", "--seeds", 2, "--out", out)
    done = run(*arguments, "--json")
    assert done.code == 0, done.err
    summaries = json.loads(done.out)
    assert [Path(one["run"]).name for one in summaries] == [
        "optimizer.lr=0.0001,seed=0",
        "optimizer.lr=0.0001,seed=1",
        "optimizer.lr=0.003,seed=0",
        "optimizer.lr=0.003,seed=1",
    ]
    assert (out / "report.html").is_file()
    again = run(*arguments)
    assert again.err.count("is finished already") == 4


def test_names_tell_configs_apart(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*DIGITS).code == 0
    assert run(*DIGITS, "--set", "seed=3").code == 0
    names = [path.name for path in (tmp_path / "runs").iterdir()]
    assert len(names) == 2
    assert all(name.startswith("classify-digits-") for name in names)


def test_the_resolved_config_runs_again_to_the_same_bits(run, finished, tmp_path):
    first, second = finished, tmp_path / "second"
    assert run("run", first / "config.toml", "--out", second).code == 0
    assert (first / "config.toml").read_text() == (second / "config.toml").read_text()
    assert same(weights(first), weights(second))


def test_dry_run_and_recipes_as_json(run, tmp_path):
    out = tmp_path / "run"
    plan = json.loads(run(*DIGITS, "--out", out, "--dry-run", "--json").out)
    assert plan["recipe"] == "classify/digits"
    assert plan["budget of training"] == f"{STEPS} steps"
    assert not out.exists()
    listed = json.loads(run("recipes", "--json").out)
    assert {"classify/digits", "finetune/stdlib_docs"} <= {one["name"] for one in listed}
    assert run("recipes").code == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "name a recipe"),
        (("classify/digit",), "Did you mean classify/digits?"),
        (("classify/digits", "--set", "epoch=3"), "Did you mean `epochs`?"),
        (("classify/digits", "--set", "optimizer=3"), "is a group of keys"),
        (("classify/digits", "--set", "epochs.x=3"), "which is a value"),
        (("classify/digits", "--set", "epochs=many"), "`epochs` is 'many'"),
        (("classify/digits", "--set", "epochs"), "key=value"),
        (("classify/digits", "--set", "dropout=1.5"), "must lie in [0, 1)"),
        (("classify/digits", "--device", "abacus"), "no device `abacus`"),
        (("classify/digits", "--tracker", "mlflw"), "there is no tracker mlflw"),
        (("classify/digits", "--seeds", "1001"), "1 to 1,000"),
        (("classify/digits", "--set", "batch=8,16", "--set", "batch=32"), "`batch` is given twice"),
        (("classify/digits", "--set", "optimizer.lr=0.001,1e-3"), "two of these runs are the same"),
        (("classify/digits", "--set", "epochs=true"), "`epochs` is True, and it takes a int"),
        (("nowhere.toml",), "no config file at nowhere.toml"),
        (("--resume", "nowhere"), "not a run directory"),
        (("--resume", "nowhere", "--set", "epochs=3"), "takes no other settings"),
    ],
)
def test_what_is_wrong_gets_a_sentence(run, tmp_path, arguments, sentence):
    out = () if "--resume" in arguments else ("--out", tmp_path / "run")
    done = run("run", *arguments, *out)
    assert done.code == 2
    assert sentence in done.err
    assert not (tmp_path / "run").exists()


def test_a_directory_with_another_run_is_not_touched(run, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    done = run(*DIGITS, "--set", "seed=5", "--out", out)
    assert done.code == 2
    assert "exists already with something else in it" in done.err
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_two_processes_do_not_write_to_one_directory(run, tmp_path):
    out = tmp_path / "run"
    with RunDirectory.open(out, "asked") as directory:
        directory.keep("", "asked")
        done = run("run", "--resume", out)
    assert done.code == 2
    assert f"is being written to by process {os.getpid()} (" in done.err


def test_an_empty_directory_is_taken_and_one_of_a_run_that_is_loading_is_not(run, tmp_path):
    empty, loading = tmp_path / "empty", tmp_path / "loading"
    empty.mkdir()
    assert run(*DIGITS, "--out", empty).code == 0
    with RunDirectory.open(loading, "asked"):
        done = run(*DIGITS, "--out", loading)
    assert done.code == 2
    assert "is being written to by process" in done.err
    loading.mkdir()
    (loading / ".lock").touch()
    (loading / ".config.toml.123.part").touch()
    assert run(*DIGITS, "--out", loading).code == 0


def test_a_report_of_a_sweep_and_text_verbs_on_a_run_of_images(run, tmp_path):
    out = tmp_path / "sweep"
    assert run(*DIGITS, "--set", "dropout=0.0,0.5", "--out", out).code == 0
    done = run("report", out, "--out", tmp_path / "page.html")
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 3
    refused = run("predict", out / "dropout=0.0", "--input", "x.csv")
    assert refused.code == 2
    assert "is a run of classify/digits; this works on fine-tuned text models" in refused.err
