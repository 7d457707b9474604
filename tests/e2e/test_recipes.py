"""`featherlight run` from end to end, on the digits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from featherlight.recipes.classify import experiment as module
from featherlight.report import read_run

pytest.importorskip("sklearn")

DIGITS = ("run", "classify/digits", "--set", "epochs=2", "--set", "evaluations=3", "--set", "batch=128")
STEPS = 24


def weights(run_directory: Path) -> dict[str, torch.Tensor]:
    return load_file(run_directory / "model" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Sends Ctrl-C during a step."""
    real = module._Classifier.objective

    def objective(self, step, meter):
        if step == at:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, step, meter)

    monkeypatch.setattr(module._Classifier, "objective", objective)


def test_a_run_leaves_a_model_a_card_and_a_report_and_is_not_run_twice(run, tmp_path):
    out = tmp_path / "run"
    done = run(*DIGITS, "--out", out)
    assert done.code == 0, done.err
    record = read_run(out)
    assert not record.damage
    assert record.summary is not None
    assert record.summary.counters.steps == STEPS
    assert record.summary.metric is not None
    assert record.summary.metric.last > record.summary.metric.start
    assert {path.name for path in (out / "model").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    card = (out / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: featherlight")
    assert "classify/digits --set epochs=2" in card
    assert "Mistakes" in (out / "report.html").read_text()
    before = (out / "metrics.jsonl").read_bytes()
    again = run(*DIGITS, "--out", out)
    assert again.code == 0
    assert "is finished already" in again.err
    assert (out / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("extra", [(), ("--set", "micro_batch=100", "--set", "optimizer.clip=0.5")])
def test_the_same_command_goes_on_mid_epoch_to_the_same_bits(run, tmp_path, monkeypatch, extra):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(*DIGITS, *extra, "--out", whole).code == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        stopped = run(*DIGITS, *extra, "--out", parts)
    assert stopped.code == 130
    assert f"featherlight run --resume {parts}" in stopped.err
    resumed = run(*DIGITS, *extra, "--out", parts)
    assert resumed.code == 0, resumed.err
    assert "resumed at step 8" in resumed.err
    assert same(weights(whole), weights(parts))
    one, other = read_run(whole), read_run(parts)
    assert [(p.step, p.loss, p.forwards) for p in one.steps] == [(p.step, p.loss, p.forwards) for p in other.steps]
    assert one.summary is not None
    assert other.summary is not None
    assert one.summary.counters.backward_passes == other.summary.counters.backward_passes


def test_a_run_that_is_killed_goes_on_to_the_same_bits(run, tmp_path):
    settings = ("--set", "epochs=8", "--set", "evaluations=24", "--set", "batch=256")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run("run", "classify/digits", *settings, "--out", whole).code == 0
    command = [sys.executable, "-c", "from featherlight.cli import main; main()", "run", "classify/digits", *settings]
    process = subprocess.Popen([*command, "--out", str(killed)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(killed.glob("saves/save-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    if (killed / "summary.json").exists():
        pytest.skip("the run was over before it could be killed")
    resumed = run("run", "--resume", killed)
    assert resumed.code == 0, resumed.err
    assert "resumed at step" in resumed.err
    assert same(weights(whole), weights(killed))


def test_a_save_that_fails_leaves_the_one_before(run, tmp_path, monkeypatch):
    from featherlight.trainer import files

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)
        assert run(*DIGITS, "--out", out).code == 130
    (before,) = out.glob("saves/save-*/state.safetensors")
    data = before.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert run(*DIGITS, "--out", out).code == 1
    assert before.read_bytes() == data
    assert run("verify", out).code == 0
    assert run(*DIGITS, "--out", out).code == 0
    assert not (out / "saves").exists()


def test_a_damaged_save_is_passed_over_and_refused_only_if_it_is_the_last(run, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)
        assert run(*DIGITS, "--out", out).code == 130
    (save,) = out.glob("saves/save-*")
    newer = shutil.copytree(save, save.with_name("save-000999"))
    data = bytearray((newer / "state.safetensors").read_bytes())
    data[-9] ^= 4
    (newer / "state.safetensors").write_bytes(data)
    found = run("verify", out, "--json")
    assert found.code == 4
    assert [one["state"] for one in json.loads(found.out)] == ["unchecked", "damaged", "intact"]
    kept = shutil.copytree(out, tmp_path / "kept")
    done = run(*DIGITS, "--out", out)
    assert done.code == 0
    assert f"skipped a damaged save: {newer / 'state.safetensors'} is altered" in done.err
    assert "resumed at step" in done.err
    shutil.rmtree(kept / "saves" / save.name)
    refused = run("run", "--resume", kept)
    assert refused.code == 2
    assert "all saves in" in refused.err


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


def test_a_sweep_that_is_interrupted_goes_on(run, tmp_path, monkeypatch):
    out = tmp_path / "sweep"
    arguments = (*DIGITS, "--set", "dropout=0.0,0.5", "--out", out)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        assert run(*arguments).code == 130
    assert len([one for one in out.iterdir() if one.is_dir()]) == 1
    assert run(*arguments).code == 0
    assert all(read_run(out / f"dropout={value}").summary.stopped == "finished" for value in (0.0, 0.5))


def test_names_tell_configs_apart(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*DIGITS).code == 0
    assert run(*DIGITS, "--set", "seed=3").code == 0
    names = [path.name for path in (tmp_path / "runs").iterdir()]
    assert len(names) == 2
    assert all(name.startswith("classify-digits-") for name in names)


def test_the_resolved_config_runs_again_to_the_same_bits(run, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(*DIGITS, "--out", first).code == 0
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


def test_a_directory_with_another_run_is_not_touched(run, tmp_path):
    out = tmp_path / "run"
    assert run(*DIGITS, "--out", out).code == 0
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    done = run(*DIGITS, "--set", "seed=5", "--out", out)
    assert done.code == 2
    assert "exists already with something else in it" in done.err
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_two_processes_do_not_write_to_one_directory(run, tmp_path):
    from featherlight.trainer import RunDirectory

    out = tmp_path / "run"
    with RunDirectory.open(out, "asked") as directory:
        directory.keep("", "asked")
        done = run("run", "--resume", out)
    assert done.code == 2
    assert f"is being written to by process {os.getpid()} (" in done.err


def test_a_listener_that_fails_is_left_out_and_the_run_goes_on(run, tmp_path, monkeypatch):
    (tmp_path / "listening.py").write_text(
        "seen = []\ndef good(path):\n    return seen.append\ndef bad(path):\n    return lambda line: 1 / 0\n"
    )
    monkeypatch.chdir(tmp_path)
    done = run(*DIGITS, "--tracker", "listening:good", "--tracker", "listening:bad", "--out", tmp_path / "run")
    assert done.code == 0
    assert done.err.count("failed (ZeroDivisionError: division by zero) and is left out") == 1
    import listening  # pyright: ignore[reportMissingImports]

    assert [line["step"] for line in listening.seen if line["kind"] == "step"] == list(range(1, STEPS + 1))


def test_tensorboard_files_hold_the_metrics(run, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    assert run(*DIGITS, "--tracker", "tensorboard", "--out", out).code == 0
    events = accumulator.EventAccumulator(str(out / "tensorboard")).Reload()
    losses = [one.value for one in events.Scalars("train/loss")]
    assert losses == pytest.approx([point.loss for point in read_run(out).steps], rel=1e-6)
    assert len(events.Scalars("valid/accuracy")) == len(read_run(out).evals)


def test_a_staged_run_that_is_interrupted_between_and_within_stages_ends_at_the_same_bits(run, tmp_path, monkeypatch):
    """The first stage trains what the second freezes, so a save of the second must hold both."""
    (tmp_path / "staged.py").write_text(STAGED)
    monkeypatch.chdir(tmp_path)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run("run", "staged:two", "--out", whole).code == 0
    for at in (4, 7, 10):
        monkeypatch.setenv("INTERRUPT_AT", str(at))
        stopped = run("run", "staged:two", "--out", parts)
        assert stopped.code == 130, stopped.err
        assert len(read_run(parts).steps) == at
    monkeypatch.delenv("INTERRUPT_AT")
    assert run("run", "staged:two", "--out", parts).code == 0
    assert same(load_file(whole / "model" / "w.safetensors"), load_file(parts / "model" / "w.safetensors"))
    assert [point.step for point in read_run(parts).steps] == list(range(1, 13))


def test_a_damaged_line_of_the_metrics_does_not_stop_a_resume(run, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        assert run(*DIGITS, "--out", out).code == 130
    log = out / "metrics.jsonl"
    log.write_bytes(log.read_bytes().replace(b'{"kind": "step", "step": 3', b'{"kinf": "step", "step": 3'))
    resumed = run(*DIGITS, "--out", out)
    assert resumed.code == 0, resumed.err
    assert "1 damaged lines" in resumed.err


def test_a_run_whose_sections_fail_is_not_called_finished(run, tmp_path, monkeypatch):
    out = tmp_path / "run"

    def failing(self):
        raise ValueError("no figure")

    with monkeypatch.context() as patch:
        patch.setattr(module._Classifier, "sections", failing)
        assert run(*DIGITS, "--out", out).code == 2
    assert not (out / "summary.json").exists()
    done = run(*DIGITS, "--out", out)
    assert done.code == 0, done.err
    assert read_run(out).summary.stopped == "finished"


def test_a_finished_run_without_its_page_gets_it(run, tmp_path):
    out = tmp_path / "run"
    assert run(*DIGITS, "--out", out).code == 0
    (out / "report.html").unlink()
    assert run(*DIGITS, "--out", out).code == 0
    assert (out / "report.html").is_file()


def test_an_empty_directory_is_taken_and_one_of_a_run_that_is_loading_is_not(run, tmp_path):
    from featherlight.trainer import RunDirectory

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


def test_a_tracker_that_cannot_start_is_left_out(run, tmp_path, monkeypatch):
    (tmp_path / "offline.py").write_text("def make(path):\n    raise OSError('no network')\n")
    monkeypatch.chdir(tmp_path)
    done = run(*DIGITS, "--tracker", "offline:make", "--out", tmp_path / "run")
    assert done.code == 0
    assert "the tracker offline:make failed to start (OSError: no network)" in done.err


STAGED = """
import os, signal
from dataclasses import dataclass
import torch
from safetensors.torch import save_file
from torch import nn
from featherlight.objective import BatchObjective
from featherlight.trainer import Evaluation, Experiment, Stage
from featherlight.trainer.loop import Budget

def loss(model, batch):
    return (model(batch["x"]) - batch["x"].sum(1, keepdim=True)).square().mean(1)

@dataclass(frozen=True)
class Two:
    seed: int = 0

    def experiment(self, workspace):
        generator = torch.Generator().manual_seed(self.seed)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
        for p in model.parameters():
            p.data = torch.randn(p.shape, generator=generator)

        def stage(number):
            def prepare():
                for index, part in enumerate(model):
                    part.requires_grad_(index == number)

            def objective(step, meter):
                assert step < 4 + 4 * number, "never asked for a step beyond the budget"
                if 4 * number + step + 1 == int(os.environ.get("INTERRUPT_AT", 0)):
                    os.kill(os.getpid(), signal.SIGINT)
                x = torch.randn(8, 3, generator=torch.Generator().manual_seed(100 * number + step))
                return BatchObjective(model, {"x": x}, loss, meter=meter)

            return Stage(
                name=f"part {number}",
                prepare=prepare,
                objective=objective,
                budget=Budget(steps=4 + 4 * number),
                optimizer=lambda journal, meter: torch.optim.AdamW(model[number].parameters(), lr=0.1),
            )

        def evaluate():
            x = torch.eye(3)
            return [Evaluation(values={"error": float(loss(model, {"x": x}).mean())})]

        def write_model(path):
            path.mkdir()
            save_file(model.state_dict(), path / "w.safetensors")

        return Experiment(
            model=model, stages=[stage(0), stage(1)], evaluate=evaluate, title="two parts", lower_is_better=True,
            write_model=write_model,
        )

def two():
    return Two()
"""
