"""`featherlight finetune --method svrg`: large and small batches, stops in the middle of a period, and replay."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from featherlight.recipes.finetune import experiment as module
from featherlight.report import read_run
from featherlight.trainer import read_journal
from tests.e2e.command_line import call
from tests.e2e.test_finetune import all_weights, renamed, same

COMMON = ("--text", "sentence", "--label", "feeling", "--steps", 8, "--batch", 8, "--method", "svrg")
PERIODS = ("--set", "optimizer.anchor_every=3", "--set", "optimizer.anchor_batch=40")


def arguments(models: Path, reviews: Path, *more: object) -> tuple[object, ...]:
    return ("finetune", "--model", models / "bert", "--train", reviews, *COMMON, *PERIODS, *more)


@pytest.mark.parametrize("extra", [(), ("--trainable", "last:1"), ("--lora", 2)])
def test_a_run_counts_its_forwards_and_replays_to_the_same_bits(run, models, reviews, tmp_path, extra):
    if "--lora" in extra:
        pytest.importorskip("peft")
    out = tmp_path / "run"
    done = run(*arguments(models, reviews, *extra), "--out", out)
    assert done.code == 0, done.err
    record = read_run(out)
    assert record.summary is not None
    assert record.summary.facts["anchors"] == "40 rows, every 3 steps"
    assert record.summary.facts["learning rate at anchors"] == "0.01"
    assert record.summary.memory is not None
    assert record.summary.memory.adamw_estimate is not None
    assert record.summary.memory.training_peak is not None
    probes = record.steps[0].forwards - 2 * 40
    counted = [point.forwards - probes for point in record.steps]
    small, large = 4 * 8, 2 * 40
    assert counted == [large, large + small, large + 2 * small, 2 * large + 2 * small, 2 * large + 3 * small,
                       2 * large + 4 * small, 3 * large + 4 * small, 3 * large + 5 * small]  # fmt: skip
    assert [len(one.echoes) for one in read_journal(out / "journal").records] == [0, 1, 1, 0, 1, 1, 0, 1]
    torch.set_num_threads(1)
    replayed = run("replay", models / "bert", out / "journal", "--out", tmp_path / "again", "--json")
    assert replayed.code == 0, replayed.err
    assert json.loads(replayed.out)["steps"] == 8
    assert same(all_weights(out / "model"), renamed(all_weights(tmp_path / "again"), "again"))
    part = run("replay", models / "bert", out / "journal", "--out", tmp_path / "part", "--steps", 7)
    assert part.code == 0, part.err
    assert not same(all_weights(out / "model"), renamed(all_weights(tmp_path / "part"), "part"))


@pytest.fixture(scope="module")
def whole(models: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = call([*map(str, arguments(models, reviews)), "--out", str(out)])
    assert done.code == 0, done.err
    return out


@pytest.mark.parametrize("step", [2, 4])
def test_a_run_that_was_stopped_within_a_period_goes_on_to_the_same_bits(
    run, models, reviews, whole, tmp_path, step, monkeypatch
):
    parts = tmp_path / "parts"
    real = module._Finetune.objective

    def interrupting(self, number, meter):
        if number == step:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, number, meter)

    monkeypatch.setattr(module._Finetune, "objective", interrupting)
    assert run(*arguments(models, reviews), "--out", parts).code == 130
    monkeypatch.setattr(module._Finetune, "objective", real)
    resumed = run("finetune", "--resume", parts)
    assert resumed.code == 0, resumed.err
    assert same(all_weights(whole / "model"), all_weights(parts / "model"))
    assert [point.step for point in read_run(parts).steps] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_killed_run_whose_journal_was_torn_goes_on_to_the_same_bits(
    run, models, reviews, whole, tmp_path, monkeypatch
):
    parts = tmp_path / "parts"

    class KilledError(BaseException):
        pass

    real = module._Finetune.objective

    def dying(self, number, meter):
        if number == 5:
            raise KilledError
        return real(self, number, meter)

    monkeypatch.setattr(module._Finetune, "objective", dying)
    with pytest.raises(KilledError):
        run(*arguments(models, reviews), "--out", parts)
    monkeypatch.setattr(module._Finetune, "objective", real)
    with (parts / "journal").open("r+b") as journal:
        journal.truncate((parts / "journal").stat().st_size - 3)
    resumed = run(*arguments(models, reviews), "--out", parts)
    assert resumed.code == 0, resumed.err
    assert "damaged after step 4" in resumed.err
    assert same(all_weights(whole / "model"), all_weights(parts / "model"))


def test_an_anchor_larger_than_the_data_takes_all_rows_and_says_so(run, models, reviews, tmp_path):
    own = ("--set", "optimizer.anchor_batch=512", "--set", "optimizer.anchor_every=3", "--out", tmp_path / "run")
    settings = ("finetune", "--model", models / "bert", "--train", reviews, *COMMON, *own)
    shown = run(*settings, "--dry-run", "--json")
    assert shown.code == 0, shown.err
    assert "an anchor is to take 512 rows, but there are 108; it takes them all" in shown.err
    assert json.loads(shown.out)["anchors"] == "all 108 rows, every 3 steps"
    done = run(*settings)
    assert done.code == 0, done.err
    steps = read_run(tmp_path / "run").steps
    assert steps[3].forwards - steps[2].forwards == 2 * 108


def test_the_schedule_holds_at_anchors_and_between(run, models, reviews, tmp_path):
    out = tmp_path / "run"
    plain = ("--no-head-start", "--set", "optimizer.normalize=false", "--lr", 1e-6)
    done = run(*arguments(models, reviews, *plain), "--out", out)
    assert done.code == 0, done.err
    records = read_journal(out / "journal").records
    per_unit = [record.rates[0] / record.scale for record in records]
    assert per_unit[0] == pytest.approx(1e-5)
    assert per_unit[3] == pytest.approx(1e-5 * 5 / 8)
    assert per_unit[1] == pytest.approx(1e-6 * 7 / 8)
    assert records[1].echoes[0].rates[0] / records[0].scale == pytest.approx(1e-6 * 7 / 8)
    assert records[1].rates[1] / records[1].rates[0] == pytest.approx(10)


def test_a_loss_that_is_not_finite_ends_the_run_at_an_anchor_too(run, models, reviews, tmp_path):
    done = run(*arguments(models, reviews, "--set", "optimizer.sigma=1e30"), "--out", tmp_path / "run")
    assert done.code == 3
    assert "the loss of step 0 is not finite in the batch of training rows" in done.err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("optimizer.anchor_every=0", "`anchor_every` must be at least 1 step from one anchor to the next; got 0."),
        ("optimizer.anchor_batch=0", "`anchor_batch` must be at least 1 example; got 0."),
        ("optimizer.anchor_lr=0.0", "`anchor_lr` must be a finite positive number; got 0.0."),
    ],
)
def test_wrong_keys_get_a_sentence(run, models, reviews, tmp_path, change, sentence):
    done = run(
        "finetune", "--model", models / "bert", "--train", reviews, *COMMON, "--set", change, "--out", tmp_path / "run"
    )
    assert done.code == 2
    assert sentence in done.err
