"""Tiny models, rows and watchers for the tests of Hugging Face's Trainer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, TrainerCallback

from featherlight.optim.zeroth_order import StepRecord, Target

Rows = list[dict[str, Any]]


def seeded(build: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def classifier() -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=3,
    )
    return seeded(lambda: BertForSequenceClassification(config))


def language_model() -> GPT2LMHeadModel:
    config = GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2)
    config.loss_type = "ForCausalLM"
    return seeded(lambda: GPT2LMHeadModel(config))


def classified(count: int = 20) -> Rows:
    """Eight tokens a row; the label is what the first is modulo 3."""
    ids = torch.randint(3, 30, (count, 8), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row[0] % 3} for row in ids]


def ragged(count: int = 12) -> Rows:
    """Twelve tokens a row, the last few of which are no labels."""
    ids = torch.randint(3, 30, (count, 12), generator=torch.Generator().manual_seed(0))
    lengths = [5 + number % 7 for number in range(count)]
    return [
        {
            "input_ids": row,
            "attention_mask": (torch.arange(12) < n).long(),
            "labels": row.where(torch.arange(12) < n, -100),
        }
        for row, n in zip(ids, lengths, strict=True)
    ]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Losses(TrainerCallback):
    """Keeps what is logged after each step."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        self.logs.append(dict(logs))


class InMemory:
    """A journal in a list."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []
        self.targets: Sequence[Target] = ()

    def append(self, record: StepRecord, targets: Sequence[Target]) -> None:
        self.records.append(record)
        self.targets = targets
