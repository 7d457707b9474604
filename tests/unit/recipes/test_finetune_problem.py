"""What a fine-tune is resolved to, its head start, and the use of models of each kind. (Belongs in tests/unit/recipes.)"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from featherlight.nn.models import load_pretrained, resolve_model, save_pretrained
from featherlight.recipes.finetune import FinetuneConfig, use
from featherlight.recipes.finetune.head_start import fit_head
from featherlight.recipes.finetune.problem import Problem, build_problem
from featherlight.trainer import silent, weights_digest
from tests.e2e import tiny_models

WORDS = tiny_models.WORDS


def text(number: int) -> str:
    return " ".join(WORDS[(number * k) % len(WORDS)] for k in range(1, 3 + number % 5)) + (" good", " bad")[number % 2]


def table(path: Path, **columns) -> str:
    """Sixty rows; a column is a function of the row's number."""
    path.write_text("".join(json.dumps({n: make(i) for n, make in columns.items()}) + "\n" for i in range(60)))
    return str(path)


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    return table(tmp_path / "pairs.jsonl", premise=text, hypothesis=lambda i: text(i + 3), label=lambda i: "yn"[i % 2])


@pytest.fixture
def singles(tmp_path: Path) -> str:
    return table(tmp_path / "singles.jsonl", Text=text, target=lambda i: i % 2, stars=lambda i: i / 7)


def build(model: Path, train: str, folder: Path, **settings) -> Problem:
    folder.mkdir(exist_ok=True)
    return build_problem(FinetuneConfig(model=str(model), train=train, device="cpu", **settings), scratch=folder)


def run_of(problem: Problem, folder: Path, **more: object) -> Path:
    """A run directory with the model of a problem, as far as `use` looks at it."""
    config = {"task": problem.config.task, "text": list(problem.config.text), "label": problem.config.label} | more
    folder.mkdir()
    lines = [f"{name} = {json.dumps(value)}" for name, value in config.items() if value is not None]
    (folder / "config.toml").write_text("\n".join(lines))
    labels = problem.labels
    names = {} if labels is None else {"id2label": labels.id2label, "label2id": labels.label2id}
    save_pretrained(problem.loaded, folder / "model", names)
    return folder


@pytest.fixture
def pair_run(tmp_path: Path, pairs: str) -> Path:
    model = tiny_models.sentence_model(tmp_path / "model")
    return run_of(build(model, pairs, tmp_path / "scratch", allow_truncation=True), tmp_path / "run")


@pytest.fixture
def language_run(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("the cat sat and the dog sat " * 60)
    model = tiny_models.gpt2(tmp_path / "model")
    problem = build(model, str(tmp_path / "a.txt"), tmp_path / "scratch", task="lm", max_length=10)
    return run_of(problem, tmp_path / "run", max_length=10)


def test_the_resolved_config_says_what_was_guessed(tmp_path: Path, pairs: str, singles: str) -> None:
    model = tiny_models.sentence_model(tmp_path / "model")
    config = build(model, pairs, tmp_path / "a", allow_truncation=True).config
    assert (config.text, config.label) == (("premise", "hypothesis"), "label")
    assert (config.task, config.metric, config.head_start) == ("classification", "accuracy", True)
    config = build(model, singles, tmp_path / "b", label="stars", head_start=False).config
    assert (config.text, config.label) == (("Text",), "stars")
    assert (config.task, config.metric, config.head_start) == ("regression", "pearson", False)


def test_a_language_model_has_neither_label_nor_head_start(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the cat sat " * 200)
    model = tiny_models.gpt2(tmp_path / "model")
    config = build(model, str(tmp_path / "a.txt"), tmp_path / "a", task="lm").config
    assert (config.task, config.label, config.metric, config.head_start) == ("lm", None, None, False)
    assert build(model, str(tmp_path / "a.txt"), tmp_path / "b", **vars_of(config)).config == config
    with pytest.raises(ValueError, match="no new head to fit"):
        build(model, str(tmp_path / "a.txt"), tmp_path / "a", task="lm", head_start=True)


def vars_of(config: FinetuneConfig) -> dict:
    return {name: getattr(config, name) for name in ("task", "text", "label", "metric", "head_start")}


@pytest.mark.parametrize("trainable", ["default", "last:1"])
def test_a_resolved_config_builds_the_same_problem(tmp_path: Path, singles: str, trainable: str) -> None:
    model = tiny_models.sentence_model(tmp_path / "model")
    first = build(model, singles, tmp_path / "a", trainable=trainable)
    again = build_problem(first.config, scratch=tmp_path / "a")
    assert again.config == first.config
    assert again.data_digest() == first.data_digest()
    assert again.base_digest == first.base_digest
    for one in (first, again):
        fit_head(one, silent)
    digests = [weights_digest(dict(one.loaded.model.named_parameters())) for one in (first, again)]
    assert digests[0] == digests[1]


def test_a_trained_head_is_not_fitted_again_even_with_adapters(tmp_path: Path, singles: str) -> None:
    model = tiny_models.sentence_model(tmp_path / "model")
    run = run_of(build(model, singles, tmp_path / "a"), tmp_path / "run")
    for settings in ({}, {"lora": 2}):
        assert build(run / "model", singles, tmp_path / "b", **settings).config.head_start is False


def test_a_head_start_does_not_depend_on_the_batches_of_its_pass(
    tmp_path: Path, singles: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_models.sentence_model(tmp_path / "model")
    problem = build(model, singles, tmp_path / "a")
    heads = [fit_head(replace(problem, tokens_at_once=count), silent) for count in (1, 40, 8192)]
    for head in heads[1:]:
        assert head.penalty == heads[0].penalty
        torch.testing.assert_close(head.weight, heads[0].weight, rtol=1e-4, atol=1e-4)


def test_pairs_are_not_predicted_from_single_texts(pair_run: Path, pairs: str, singles: str) -> None:
    trained = use.load_trained(pair_run, device="cpu")
    rows = [one for chunk in use.predict(trained, Path(pairs), text=(), allow_truncation=True) for one in chunk]
    assert len(rows) == 60
    for columns in ((), ("Text",)):
        with pytest.raises(ValueError, match=r"trained on pairs \(premise, hypothesis\), but .* gives it Text"):
            list(use.predict(trained, Path(singles), text=columns, allow_truncation=True))
        with pytest.raises(ValueError, match=r"trained on pairs \(premise, hypothesis\)"):
            use.evaluate(trained, singles, text=columns, label=None, allow_truncation=True)


def test_columns_of_other_names_are_guessed(pair_run: Path, tmp_path: Path) -> None:
    trained = use.load_trained(pair_run / "model", device="cpu")
    assert trained.text == ("premise", "hypothesis")
    other = table(
        tmp_path / "o.jsonl", sentence1=text, sentence2=text, labels=lambda i: "yn"[i % 2], target=lambda i: 1
    )
    assert (
        len(next(iter(use.predict(trained, Path(other), text=("sentence1", "sentence2"), allow_truncation=True)))) == 60
    )
    scores = use.evaluate(trained, other, text=(), label="labels", allow_truncation=True)
    assert scores["rows"] == 60


def test_a_language_model_is_known_by_its_run_or_its_config(language_run: Path, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("the dog sat and the cat sat " * 40)
    for path, length in ((language_run, 10), (tmp_path / "model", 32)):
        trained = use.load_trained(path, device="cpu")
        scores = use.evaluate(trained, str(tmp_path / "b.txt"), text=(), label=None, allow_truncation=False)
        assert scores["block_length"] == length
        assert scores["perplexity"] > 1
        assert use.generate(trained, "the cat", max_new_tokens=3, temperature=0.0, seed=0)
        with pytest.raises(ValueError, match="is a language model, which predicts no labels"):
            list(use.predict(trained, tmp_path / "b.txt", text=(), allow_truncation=False))
        with pytest.raises(ValueError, match="is not scored on labels"):
            use.evaluate(trained, str(tmp_path / "b.txt"), text=(), label="label", allow_truncation=False)
        with pytest.raises(ValueError, match=r"`--task classification` does not fit: .* language \(lm\)"):
            use.load_trained(path, task="classification")


def test_a_classifier_writes_no_text(pair_run: Path) -> None:
    trained = use.load_trained(pair_run, device="cpu")
    with pytest.raises(ValueError, match="one for classification, which writes no text"):
        use.generate(trained, "the cat", max_new_tokens=3, temperature=0.0, seed=0)
    with pytest.raises(ValueError, match="one for classification, which has no perplexity"):
        use.perplexity(trained, pair_run)
    with pytest.raises(ValueError, match="`--task lm` does not fit"):
        use.load_trained(pair_run, task="lm")


def test_what_cannot_be_loaded_gets_a_sentence(pair_run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"there is no task `sentiment`. Known tasks: classification, regression, lm\."
    ):
        use.load_trained(pair_run, task="sentiment")
    with pytest.raises(ValueError, match="there is no model or run at"):
        use.load_trained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is not a model directory"):
        use.load_trained(tmp_path / "scratch")
    with pytest.raises(ValueError, match="is a file, not a model directory"):
        use.load_trained(pair_run / "config.toml")
    (tmp_path / "model2").mkdir()
    (tmp_path / "model2" / "config.toml").write_text("task = 'lm'")
    with pytest.raises(ValueError, match="has no model yet"):
        use.load_trained(tmp_path / "model2")
    with pytest.raises(ValueError, match="there is no device"):
        use.load_trained(pair_run, device="tpu0")


def test_an_untrained_encoder_cannot_predict(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="its classes are unknown"):
        use.load_trained(tiny_models.bert(tmp_path / "bert"))


def test_the_sentence_model_of_a_run_loads_as_a_directory(pair_run: Path) -> None:
    source = resolve_model(str(pair_run / "model"))
    loaded = load_pretrained(source, num_outputs=2, generator=torch.Generator().manual_seed(0))
    assert not loaded.fresh
