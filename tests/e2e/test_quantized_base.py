"""`featherlight finetune --base int8`: trained, taken up again, replayed and exported."""

import json

import pytest
from safetensors.torch import load_file

from featherlight.report import read_run
from tests.e2e.test_finetune import COMMON, all_weights, renamed, same

SETTINGS = {
    "int8": ("--base", "int8", "--set", "merge_rank=20"),
    "int4 last block": ("--base", "int4", "--trainable", "last:1", "--set", "merge_rank=0"),
    "int8 adapters": ("--base", "int8", "--lora", 2),
}


@pytest.mark.parametrize("extra", SETTINGS.values(), ids=SETTINGS)
def test_a_run_is_replayed_to_the_same_bits(run, models, reviews, tmp_path, extra):
    if "--lora" in extra:
        pytest.importorskip("peft")
    out = tmp_path / "run"
    done = run("finetune", "--model", models / "bert", "--train", reviews, *COMMON, "--out", out, *extra)
    assert done.code == 0, done.err
    replayed = run("replay", models / "bert", out / "journal", "--out", tmp_path / "again", "--json")
    assert replayed.code == 0, replayed.err
    assert same(all_weights(out / "model"), renamed(all_weights(tmp_path / "again"), "again"))
    record = read_run(out)
    assert record.summary is not None
    assert "linear weights in" in record.summary.facts["base"]
    scored = json.loads(run("evaluate", out, "--data", reviews, "--json").out)
    assert 0.0 <= scored["accuracy"] <= 1.0


@pytest.mark.parametrize("merge_rank", [0, 20])
def test_a_run_goes_on_from_its_journal_to_the_same_bits(run, models, reviews, tmp_path, merge_rank, monkeypatch):
    from featherlight.optim import ZerothOrderSGD

    command = (
        "finetune", "--model", models / "bert", "--train", reviews, *COMMON, "--base", "int8", "--set",
        f"merge_rank={merge_rank}",
    )  # fmt: skip
    assert run(*command, "--out", tmp_path / "whole").code == 0
    step = ZerothOrderSGD.step

    def stopped(self, closure=None):
        if self.steps_done == 4:
            raise KeyboardInterrupt
        return step(self, closure)

    with monkeypatch.context() as patch:
        patch.setattr(ZerothOrderSGD, "step", stopped)
        assert run(*command, "--out", tmp_path / "cut").code != 0
    resumed = run("finetune", "--resume", tmp_path / "cut")
    assert resumed.code == 0, resumed.err
    assert "resumed at step 4" in resumed.err
    assert same(all_weights(tmp_path / "whole" / "model"), all_weights(tmp_path / "cut" / "model"))


def test_adamw_trains_adapters_on_it_and_the_export_is_a_float_model(run, models, reviews, tmp_path):
    pytest.importorskip("peft")
    out = tmp_path / "run"
    done = run(
        "finetune", "--model", models / "gpt2", "--train", reviews, *COMMON, "--base", "int8", "--lora", 2,
        "--method", "adamw", "--out", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert all(tensor.dtype.is_floating_point for tensor in load_file(out / "model" / "model.safetensors").values())


def test_the_memory_of_weights_is_what_is_held(run, models, reviews, tmp_path):
    found = {}
    for base in ("float", "int8", "int4"):
        out = tmp_path / base
        assert (
            run("finetune", "--model", models / "bert", "--train", reviews, *COMMON, "--base", base, "--out", out).code
            == 0
        )
        summary = read_run(out).summary
        assert summary is not None
        assert summary.memory is not None
        found[base] = summary.memory.weights
    assert found["int4"] < found["int8"] < found["float"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--base", "int8", "--method", "adamw"),
            "`method` adamw trains and saves float weights, and `base` int8 holds",
        ),
        (
            ("--base", "int4", "--method", "mezo"),
            "Train adapters (`--lora 8`), use `--method zo`, or leave `--base` float",
        ),
        (("--base", "int3"), "base"),
        (("--base", "int8", "--set", "merge_rank=-1"), "`merge_rank` must be at least 0 directions"),
    ],
)
def test_bases_that_do_not_fit_get_a_sentence(run, models, reviews, tmp_path, arguments, message):
    done = run("finetune", "--model", models / "bert", "--train", reviews, "--out", tmp_path / "run", *arguments)
    assert done.code == 2
    assert message in done.err
