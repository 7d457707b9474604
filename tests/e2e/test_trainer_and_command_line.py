"""A fine-tune through Hugging Face's Trainer and one by the command line end in the same weights, bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    TrainingArguments,
)

from featherlight.data import lm_blocks
from featherlight.integrations.hf_trainer import ZerothOrderTrainer
from tests.e2e import tiny_models
from tests.e2e.command_line import Ended

STEPS = 16  # of a power of two, both schedules are exact in binary
SEED = 3


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a head for two classes."""
    path = tmp_path_factory.mktemp("classifier")
    config = BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    tiny_models.seeded(lambda: BertForSequenceClassification(config)).save_pretrained(path)
    tiny_models.tokenizer().save_pretrained(path)
    return path


def train(model: nn.Module, rows: list[dict[str, Any]], folder: Path, **options: Any) -> None:
    """As the command line does by default: all but the embedding tables, at 1e-3, falling to zero."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.requires_grad = False
    args = TrainingArguments(
        output_dir=str(folder),
        learning_rate=1e-3,
        max_steps=STEPS,
        seed=SEED,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    ZerothOrderTrainer(model, args, train_dataset=rows, processing_class=tiny_models.tokenizer()).train()


def same_weights(model: nn.Module, run: Path, base: Path) -> None:
    """The model is what the run left, and not what both began with."""
    (trained,), (untrained,) = (
        [load_file(one) for one in path.glob("*.safetensors")] for path in (run / "model", base)
    )
    own = model.state_dict()
    assert trained.keys() <= own.keys()
    assert [name for name, tensor in trained.items() if not torch.equal(own[name], tensor)] == []
    assert sum(not torch.equal(untrained[name], tensor) for name, tensor in trained.items()) > len(trained) / 2


def test_a_classifier(run: Callable[..., Ended], classifier: Path, reviews: Path, tmp_path: Path) -> None:
    """120 rows of different lengths in batches of 16, which begin anew in the middle of a batch."""
    out = run(
        "finetune", "--model", classifier, "--train", reviews, "--valid", reviews, "--steps", STEPS, "--seed", SEED,
        "--text", "sentence", "--label", "feeling", "--device", "cpu", "--out", tmp_path / "run",
    )  # fmt: skip
    assert out.code == 0, out.err
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    labels = {"bad": 0, "good": 1}
    parsed = [json.loads(line) for line in reviews.read_text().splitlines()]
    rows = [{**tokenizer(row["sentence"]), "labels": labels[row["feeling"]]} for row in parsed]
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    train(model, rows, tmp_path / "trainer", per_device_train_batch_size=16)
    same_weights(model, tmp_path / "run", classifier)


def test_a_language_model_in_micro_batches(run: Callable[..., Ended], models: Path, tmp_path: Path) -> None:
    text = " ".join(tiny_models.WORDS[number * number % 16] for number in range(1, 1500))
    (tmp_path / "text.txt").write_text(text)
    out = run(
        "finetune", "--task", "lm", "--model", models / "llama", "--train", tmp_path / "text.txt",
        "--valid", tmp_path / "text.txt", "--steps", STEPS, "--seed", SEED, "--device", "cpu",
        "--set", "max_length=16", "--set", "micro_batch=4", "--out", tmp_path / "run",
    )  # fmt: skip
    assert out.code == 0, out.err
    blocks = lm_blocks(text, AutoTokenizer.from_pretrained(models / "llama"), block_length=16)
    rows = [{name: tensor[0] for name, tensor in blocks.batch([row]).items()} for row in range(len(blocks))]
    model = AutoModelForCausalLM.from_pretrained(models / "llama")
    train(model, rows, tmp_path / "trainer", per_device_train_batch_size=4, gradient_accumulation_steps=4)
    same_weights(model, tmp_path / "run", models / "llama")
