"""`featherlight finetune` from end to end, each method on each kind of model."""

import json
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from featherlight.data import read_plain_text
from featherlight.report import read_run

COMMON = ("--text", "sentence", "--label", "feeling", "--steps", 6, "--batch", 8)


def all_weights(path: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{k}": t for file in sorted(path.rglob("*.safetensors")) for k, t in load_file(file).items()
    }


def renamed(tensors: dict[str, torch.Tensor], folder: str) -> dict[str, torch.Tensor]:
    return {name.replace(f"{folder}/", "model/"): tensor for name, tensor in tensors.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("model", "method"),
    [("bert", "zo"), ("sentence", "zo"), ("gpt2", "zo"), ("gpt2", "mezo"), ("sentence", "adamw")],
)
def test_a_run_leaves_a_model_a_report_and_a_journal(run, models, reviews, tmp_path, method, model):
    out = tmp_path / "run"
    done = run("finetune", "--model", models / model, "--train", reviews, *COMMON, "--method", method, "--out", out)
    assert done.code == 0, done.err
    record = read_run(out)
    assert record.summary is not None
    assert record.summary.counters.steps == 6
    assert record.summary.stopped == "finished"
    assert [event.name for event in record.events] == ["head start"]
    assert (out / "report.html").is_file()
    assert (out / "journal").is_file() == (method == "zo")
    assert not (out / "scratch").exists()
    if model != "sentence":
        loaded = AutoModelForSequenceClassification.from_pretrained(out / "model")
        assert loaded.config.id2label == {0: "bad", 1: "good"}
    again = run("predict", out, "--input", reviews, "--text", "sentence", "--json")
    assert again.code == 0, again.err
    lines = [json.loads(line) for line in again.out.splitlines()]
    assert len(lines) == 120
    assert all(abs(sum(line["probabilities"].values()) - 1) < 1e-5 for line in lines)
    scored = run("evaluate", out, "--data", reviews, "--json")
    agree = sum(
        line["label"] == json.loads(row)["feeling"]
        for line, row in zip(lines, reviews.read_text().splitlines(), strict=True)
    )
    assert json.loads(scored.out)["accuracy"] == pytest.approx(agree / 120)


def test_the_saved_sentence_model_gives_the_same_logits_in_sentence_transformers(run, models, reviews, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    out = tmp_path / "run"
    assert run("finetune", "--model", models / "sentence", "--train", reviews, *COMMON, "--out", out).code == 0
    texts = ["the film was good", "a bad plot and the dog sat"]
    peer = sentence_transformers.SentenceTransformer(str(out / "model"), device="cpu")
    logits = torch.as_tensor(peer.encode(texts))
    table = tmp_path / "two.jsonl"
    table.write_text("".join(json.dumps({"sentence": text}) + "\n" for text in texts))
    ours = [json.loads(line) for line in run("predict", out, "--input", table, "--json").out.splitlines()]
    torch.testing.assert_close(
        torch.tensor([[p["probabilities"]["bad"], p["probabilities"]["good"]] for p in ours]),
        logits.softmax(-1),
        atol=1e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize(
    ("model", "extra"),
    [
        ("bert", ()),
        ("sentence", ("--trainable", "last:1")),
        ("bert", ("--lora", 2)),
        ("sentence", ("--lora", 2)),
        ("bert", ("--set", "optimizer.directions=3")),
    ],
)
def test_replay_rebuilds_the_model_to_the_same_bits(run, models, reviews, tmp_path, model, extra):
    if "--lora" in extra:
        pytest.importorskip("peft")
    out = tmp_path / "run"
    done = run("finetune", "--model", models / model, "--train", reviews, *COMMON, "--out", out, *extra)
    assert done.code == 0, done.err
    torch.set_num_threads(1)
    replayed = run("replay", models / model, out / "journal", "--out", tmp_path / "again", "--json")
    assert replayed.code == 0, replayed.err
    assert json.loads(replayed.out)["steps"] == 6
    assert same(all_weights(out / "model"), renamed(all_weights(tmp_path / "again"), "again"))
    start = run("replay", models / model, out / "journal", "--out", tmp_path / "start", "--steps", 0)
    assert start.code == 0
    assert not same(all_weights(out / "model"), renamed(all_weights(tmp_path / "start"), "start"))


def test_adapters_on_a_tied_language_model_are_merged_to_what_was_trained(run, models, tmp_path):
    pytest.importorskip("peft")
    text = tmp_path / "text.txt"
    text.write_text("the cat sat and the dog sat . the film was good and the plot was bad . " * 40)
    out = tmp_path / "run"
    done = run(
        "finetune", "--task", "lm", "--model", models / "gpt2", "--train", text, "--valid", text, "--lora", 2,
        "--method", "adamw", "--lr", 0.01, "--steps", 8, "--batch", 4, "--set", "max_length=32", "--out", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    summary = read_run(out).summary
    assert summary is not None
    scored = run("evaluate", out, "--data", text, "--task", "lm", "--json")
    assert json.loads(scored.out)["perplexity"] == pytest.approx(summary.metric.last, rel=1e-3)
    assert summary.metric.last < summary.metric.start


def test_a_model_whose_blocks_cannot_be_passed_over_runs_whole(run, models, reviews, tmp_path):
    out = tmp_path / "run"
    done = run("finetune", "--model", models / "t5", "--train", reviews, *COMMON, "--trainable", "last:1", "--out", out)
    assert done.code == 0, done.err


def test_a_run_killed_while_loading_leaves_its_place_free(run, models, reviews, tmp_path):
    out = tmp_path / "run"
    (out / "scratch").mkdir(parents=True)
    (out / ".lock").touch()
    assert run("finetune", "--model", models / "bert", "--train", reviews, *COMMON, "--out", out).code == 0


def test_regression_and_pairs(run, models, reviews, tmp_path):
    rows = [json.loads(line) for line in reviews.read_text().splitlines()]
    table = tmp_path / "pairs.jsonl"
    table.write_text(
        "".join(json.dumps({"a": r["sentence"], "b": r["feeling"], "stars": r["stars"]}) + "\n" for r in rows)
    )
    out = tmp_path / "run"
    columns = ("--text", "a", "--text", "b", "--label", "stars")
    done = run("finetune", "--model", models / "bert", "--train", table, *columns, "--steps", 4, "--out", out)
    assert done.code == 0, done.err
    summary = read_run(out).summary
    assert summary is not None
    assert summary.metric.name == "pearson"
    [head_start] = read_run(out).events
    assert head_start.values["pearson"] > 0.5
    scored = run("evaluate", out, "--data", table, *columns, "--task", "regression", "--json")
    assert set(json.loads(scored.out)) == {"rows", "pearson", "mean_squared_error"}


@pytest.mark.parametrize(("model", "method"), [("gpt2", "zo"), ("llama", "adamw")])
def test_language_models(run, models, tmp_path, model, method):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat and the dog sat . the film was good and the plot was bad . " * 40)
    out = tmp_path / "run"
    done = run(
        "finetune", "--task", "lm", "--model", models / model, "--train", text, "--method", method, "--steps", 8,
        "--batch", 4, "--out", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    summary = read_run(out).summary
    assert summary is not None
    assert summary.metric.name == "perplexity"
    AutoModelForCausalLM.from_pretrained(out / "model")
    said = run("generate", out, "--prompt", "the cat", "--max-new-tokens", 5)
    assert said.code == 0, said.err
    assert said.out.startswith("the cat")
    assert run("generate", out, "--prompt", "the cat", "--temperature", 1, "--seed", 3).out == run(
        "generate", out, "--prompt", "the cat", "--temperature", 1, "--seed", 3
    ).out  # fmt: skip
    scored = run("evaluate", out, "--data", text, "--task", "lm", "--json")
    assert json.loads(scored.out)["perplexity"] > 1


def test_a_real_pretrained_language_model_gets_better_at_another_text(run, real_data, tmp_path):
    """stories260K through the converter, then tuned on Shakespeare: perplexity falls, and falls further with AdamW."""
    source, model = real_data / "stories260K", tmp_path / "stories"
    assert run("convert-llama2c", source / "stories260K.bin", source / "tok512.bin", "--out", model).code == 0
    text = tmp_path / "shakespeare.txt"
    text.write_text(read_plain_text(real_data / "tiny-shakespeare" / "validation.parquet")[:30_000])
    common = ("finetune", "--task", "lm", "--model", model, "--train", text, "--batch", 8, "--set", "max_length=64")
    scores = {}
    for method, steps in (("zo", 30), ("adamw", 30)):
        out = tmp_path / method
        done = run(*common, "--method", method, "--steps", steps, "--out", out)
        assert done.code == 0, done.err
        scores[method] = read_run(out).summary.metric
    assert scores["adamw"].last < scores["adamw"].start
    assert scores["zo"].last < scores["zo"].start
    assert scores["adamw"].last < scores["zo"].last
    assert run("generate", tmp_path / "zo", "--prompt", "Once upon", "--max-new-tokens", 10).out.startswith("Once upon")


def test_the_resolved_config_runs_again_to_the_same_model(run, models, reviews, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert run("finetune", "--model", models / "bert", "--train", reviews, *COMMON, "--out", first).code == 0
    again = run("finetune", "--config", first / "config.toml", "--out", second)
    assert again.code == 0, again.err
    assert tomllib.loads((first / "config.toml").read_text()) == tomllib.loads((second / "config.toml").read_text())
    assert same(all_weights(first / "model"), all_weights(second / "model"))


@pytest.mark.parametrize("method", ["zo", "mezo", "adamw"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(run, models, reviews, tmp_path, method, monkeypatch):
    import os
    import signal

    from featherlight.recipes.finetune import experiment as module

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = ("finetune", "--model", models / "bert", "--train", reviews, *COMMON, "--method", method)
    assert run(*arguments, "--out", whole).code == 0
    real = module._Finetune.objective

    def interrupting(self, step, meter):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, step, meter)

    monkeypatch.setattr(module._Finetune, "objective", interrupting)
    stopped = run(*arguments, "--out", parts)
    assert stopped.code == 130
    assert f"featherlight run --resume {parts}" in stopped.err
    monkeypatch.setattr(module._Finetune, "objective", real)
    resumed = run("finetune", "--resume", parts)
    assert resumed.code == 0, resumed.err
    assert same(all_weights(whole / "model"), all_weights(parts / "model"))
    assert [point.step for point in read_run(parts).steps] == [1, 2, 3, 4, 5, 6]
    assert "is finished" in run("finetune", "--resume", parts).err
