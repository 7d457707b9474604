"""`featherlight search` from end to end, on the digits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from featherlight.recipes.classify import experiment as module
from featherlight.report import read_run

pytest.importorskip("sklearn")
pytest.importorskip("optuna")

SHORT = ("--set", "epochs=1", "--set", "batch=128", "--set", "evaluations=4", "--set", "channels=[8]")
SPACE = ("--space", "optimizer.lr=log:1e-4:1e-2", "--space", "dropout=0.0:0.5", "--space", "channels=[8],[4,8]")
SEARCH = ("search", "classify/digits", *SHORT, *SPACE)


def found(out: str) -> list[tuple[Any, ...]]:
    return [(one["values"], one["stopped"], one["metric"]) for one in json.loads(out)["trials"]]


def interrupt_at(patch: pytest.MonkeyPatch, at: int) -> None:
    """Sends Ctrl-C during the `at`-th step over all trials."""
    real, calls = module._Classifier.objective, []

    def objective(self, step, meter):
        calls.append(step)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, step, meter)

    patch.setattr(module._Classifier, "objective", objective)


def test_a_search_leaves_its_best_config_and_a_report_and_goes_on(run, tmp_path):
    out = tmp_path / "study"
    done = run(*SEARCH, "--trials", 2, "--out", out)
    assert done.code == 0, done.err
    assert {one.name for one in out.iterdir()} == {
        ".lock", "best.toml", "report.html", "search.toml", "study.journal", "trial-0000", "trial-0001",
    }  # fmt: skip
    assert "2 trials: 2 finished" in done.out
    more = run(*SEARCH, "--trials", 3, "--out", out, "--json")
    assert more.err.count("trial ") == 1
    results = json.loads(more.out)
    assert [one["stopped"] for one in results["trials"]] == ["finished"] * 3
    best = max(results["trials"], key=lambda one: one["metric"])
    assert results["best"] == best
    assert (out / "best.toml").read_bytes() == (Path(best["run"]) / "config.toml").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in out.glob("trial-*/*")}
    assert json.loads(run(*SEARCH, "--trials", 3, "--out", out, "--json").out) == results
    assert {path: path.stat().st_mtime_ns for path in out.glob("trial-*/*")} == before
    again = run("run", out / "best.toml", "--out", tmp_path / "again")
    assert again.code == 0, again.err
    assert read_run(tmp_path / "again").summary.metric.last == best["metric"]


def test_the_first_trial_is_the_recipe_as_it_is(run, tmp_path):
    results = json.loads(run(*SEARCH, "--trials", 1, "--out", tmp_path / "study", "--json").out)
    assert results["trials"][0]["values"] == {"optimizer.lr": 3e-3, "dropout": 0.2, "channels": "[8]"}


def test_a_search_that_is_interrupted_comes_to_the_same_trials(run, tmp_path, monkeypatch):
    whole = run(*SEARCH, "--trials", 3, "--out", tmp_path / "whole", "--json")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 18)
        stopped = run(*SEARCH, "--trials", 3, "--out", tmp_path / "parts", "--json")
    assert stopped.code == 130
    assert [one["stopped"] for one in json.loads(stopped.out)["trials"]] == ["finished", "under way"]
    rest = run(*SEARCH, "--trials", 3, "--out", tmp_path / "parts", "--json")
    assert rest.code == 0
    assert "resumed at step" in rest.err
    assert found(rest.out) == found(whole.out)


def test_a_search_that_is_killed_goes_on(run, tmp_path):
    out = tmp_path / "study"
    command = [sys.executable, "-c", "from featherlight.cli import main; main()", *SEARCH, "--set", "epochs=12"]
    arguments = [*command[3:], "--trials", "1", "--out", str(out)]
    process = subprocess.Popen([*command[:3], *arguments], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob("trial-0000/saves/save-*")) and time.monotonic() < deadline:
        assert process.poll() is None, "it was over before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    with (out / "study.journal").open("ab") as journal:
        journal.write(b'{"op_code":7,"wor')
    done = run(*arguments)
    assert done.code == 0, done.err
    assert "resumed at step" in done.err
    assert "1 trials: 1 finished" in done.out


def test_a_trial_that_is_worse_than_most_is_pruned(run, tmp_path):
    out = tmp_path / "study"
    settings = ("--set", "epochs=3", "--set", "channels=[16]", "--space", "optimizer.lr=log:1e-6:1e-1")
    done = run("search", "classify/digits", *settings, "--trials", 8, "--out", out, "--json")
    assert done.code == 0, done.err
    results = json.loads(done.out)
    pruned = [one for one in results["trials"] if one["stopped"] == "pruned"]
    assert pruned
    assert all(one["number"] >= 5 and one["metric"] is None for one in pruned)
    record = read_run(pruned[0]["run"])
    assert record.summary is not None
    assert record.summary.stopped == "pruned"
    assert 0 < record.summary.counters.steps < 36
    assert "Pruned" in (out / "report.html").read_text()


def test_what_comes_up_again_is_not_run_again(run, tmp_path):
    out = tmp_path / "study"
    arguments = ("search", "classify/digits", *SHORT, "--space", "dropout=0.0,0.2", "--trials", 4, "--out", out)
    done = run(*arguments, "--json")
    assert done.code == 0, done.err
    assert "the space has 2 points" in done.err
    trials = json.loads(done.out)["trials"]
    assert len(trials) == 4
    assert len(list(out.glob("trial-*"))) == len({one["values"]["dropout"] for one in trials})
    assert all(Path(one["run"]).is_dir() for one in trials)


def test_what_the_data_or_the_network_refuse_is_a_failed_trial(run, tmp_path, monkeypatch):
    real = module._Classifier.optimizer

    def optimizer(self, journal, meter):
        if self.config.dropout > 0.2:
            raise ValueError("too much dropout")
        if self.config.dropout > 0.1:
            raise RuntimeError("not enough memory")
        return real(self, journal, meter)

    monkeypatch.setattr(module._Classifier, "optimizer", optimizer)
    common = ("search", "classify/digits", *SHORT)
    done = run(*common, "--space", "dropout=0.2,0.3,0.0", "--trials", 6, "--out", tmp_path / "some", "--json")
    assert done.code == 0, done.err
    kinds = {(one["values"]["dropout"], one["stopped"], one["note"]) for one in json.loads(done.out)["trials"]}
    assert {("0.3", "failed", "too much dropout"), ("0.2", "failed", "the memory was used up")} & kinds
    none = run(*common, "--space", "dropout=0.3:0.5", "--trials", 9, "--out", tmp_path / "none")
    assert none.code == 2
    assert "no trial worked. The last one: too much dropout" in none.err
    assert none.err.count("(of 9)") == 3


def test_a_loss_that_is_not_finite_is_kept_away_from(run, tmp_path, monkeypatch):
    real = module.cross_entropy
    monkeypatch.setattr(module, "cross_entropy", lambda model, batch: real(model, batch) * float("nan"))
    out = tmp_path / "study"
    done = run("search", "classify/digits", *SHORT, "--space", "dropout=0.1:0.3", "--trials", 2, "--out", out, "--json")
    assert done.code == 0, done.err
    results = json.loads(done.out)
    assert [one["stopped"] for one in results["trials"]] == ["not finite", "not finite"]
    assert results["best"] is None


def test_minutes_begin_no_trial_afterwards(run, tmp_path):
    done = run(*SEARCH, "--trials", 30, "--minutes", 1e-9, "--out", tmp_path / "study")
    assert done.code == 0, done.err
    assert "the time is up" in done.err
    assert "0 trials" in done.out


def test_dry_run_writes_nothing(run, tmp_path):
    out = tmp_path / "study"
    plan = json.loads(run(*SEARCH, "--out", out, "--dry-run", "--json").out)
    assert plan["space"]["optimizer.lr"] == "0.0001 to 0.01, by factors"
    assert run(*SEARCH, "--out", out, "--dry-run").code == 0
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("classify/digit", "--space", "dropout=0.0:0.5"), "Did you mean classify/digits?"),
        (("classify/digits",), "at least one `--space`"),
        (("classify/digits", "--space", "droput=0.0:0.5"), "Did you mean `dropout`?"),
        (("classify/digits", "--space", "dropout=0.0:1.5"), "must lie in [0, 1)"),
        (("classify/digits", "--space", "dropout=0.0:0.5", "--set", "batch=16,32"), "takes one value in a search"),
        (("classify/digits", "--space", "dropout=0.0:0.5", "--minutes", "0"), "must be positive"),
        (("classify/digits", "--space", "dropout=0.0:0.5", "--set", "device=abacus"), "no device `abacus`"),
    ],
)
def test_what_is_wrong_gets_a_sentence(run, tmp_path, arguments, sentence):
    done = run("search", *arguments, "--out", tmp_path / "study")
    assert done.code == 2
    assert sentence in done.err
    assert not (tmp_path / "study").exists()


def test_a_directory_with_something_else_is_not_touched(run, tmp_path):
    out = tmp_path / "study"
    assert run(*SEARCH, "--trials", 1, "--out", out).code == 0
    other = run(*SEARCH, "--trials", 1, "--seed", 1, "--out", out)
    assert other.code == 2
    assert "exists already with something else in it" in other.err
    (tmp_path / "file").write_text("mine")
    assert run(*SEARCH, "--out", tmp_path / "file").code == 2
    assert (tmp_path / "file").read_text() == "mine"


def test_a_damaged_journal_gets_a_sentence(run, tmp_path):
    out = tmp_path / "study"
    assert run(*SEARCH, "--trials", 1, "--out", out).code == 0
    lines = (out / "study.journal").read_bytes().splitlines(keepends=True)
    (out / "study.journal").write_bytes(b"".join([lines[0], b"{]\n", *lines[2:]]))
    done = run(*SEARCH, "--trials", 2, "--out", out)
    assert done.code == 2
    assert "study.journal is damaged" in done.err


def test_a_search_without_optuna_says_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = run(*SEARCH, "--out", tmp_path / "study")
    assert done.code == 2
    assert "pip install 'featherlight[search]'" in done.err
