"""The loss of each row, against running each row alone through the model's own loss."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    TrainingArguments,
)

from featherlight.integrations.hf_loss import row_means, trainer_loss
from featherlight.integrations.hf_objective import MicroBatchObjective
from featherlight.integrations.hf_trainer import ZerothOrderTrainer
from featherlight.objective import PerExampleObjective

SMALL: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
ROWS = 4


def ids(low: int = 3) -> Tensor:
    return torch.randint(low, 20, (ROWS, 6), generator=torch.Generator().manual_seed(0))


def ragged_labels() -> Tensor:
    return ids().where(torch.arange(6) < torch.tensor([[6], [3], [2], [4]]), -100)


def bert(kind: Any, labels: Tensor, **options: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    return kind(BertConfig(**SMALL, **options)), {"input_ids": ids(), "labels": labels}


def t5() -> tuple[nn.Module, dict[str, Tensor]]:
    config = T5Config(
        vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config), {"input_ids": ids(), "labels": ragged_labels()}


PROBLEMS = {
    "classes": lambda: bert(BertForSequenceClassification, torch.tensor([0, 2, 1, 1]), num_labels=3),
    "numbers": lambda: bert(BertForSequenceClassification, torch.tensor([0.5, -1.0, 2.0, 0.0]), num_labels=1),
    "several numbers": lambda: bert(
        BertForSequenceClassification, torch.arange(8.0).view(4, 2), num_labels=2, problem_type="regression"
    ),
    "several labels": lambda: bert(
        BertForSequenceClassification,
        torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]]),
        num_labels=3,
        problem_type="multi_label_classification",
    ),
    "masked tokens": lambda: bert(BertForMaskedLM, ragged_labels()),
    "classes of tokens": lambda: bert(BertForTokenClassification, ragged_labels().clamp(max=2), num_labels=3),
    "next tokens": lambda: (
        LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2)),
        {"input_ids": ids(), "labels": ragged_labels()},
    ),
    "classes by a decoder": lambda: (
        GPT2ForSequenceClassification(
            GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
        ),
        {"input_ids": ids(), "labels": torch.tensor([0, 1, 1, 0])},
    ),
    "tokens of an encoder-decoder": t5,
}


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Models draw their weights from torch's default generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def trainer(model: nn.Module, folder: Path, **options: Any) -> ZerothOrderTrainer:
    args = TrainingArguments(output_dir=str(folder), learning_rate=1e-3, use_cpu=True, report_to=[], **options)
    return ZerothOrderTrainer(model, args)


def objective(model: nn.Module, parts: list[dict[str, Tensor]], folder: Path, **options: Any) -> MicroBatchObjective:
    loss = trainer_loss(trainer(model, folder, **options), model, parts[0])
    assert loss.refusal is None
    return MicroBatchObjective(parts, loss, seed=0)


def cut(batch: dict[str, Tensor], *starts: int) -> list[dict[str, Tensor]]:
    bounds = [0, *starts, ROWS]
    return [{name: rows[start:end] for name, rows in batch.items()} for start, end in pairwise(bounds)]


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_rows_are_what_the_model_says_of_each_alone(problem: Any, tmp_path: Path) -> None:
    """Weighted by the labels that count, and the union's mean is that of one batch, however it is cut."""
    with torch.no_grad():
        model, batch = problem()
        model.eval()
        whole = model(**batch).loss
        alone = torch.stack([model(**row).loss for row in cut(batch, 1, 2, 3)])
    labels = batch["labels"][:, 1:] if isinstance(model, LlamaForCausalLM) else batch["labels"]
    items = torch.ones(ROWS) if labels.ndim == 1 or labels.is_floating_point() else (labels != -100).sum(1)
    for parts in (cut(batch), cut(batch, 1), cut(batch, 1, 2, 3)):
        found = objective(model, parts, tmp_path)
        assert isinstance(found, PerExampleObjective)
        assert found.num_examples == ROWS
        torch.testing.assert_close(found.values(), alone * items * ROWS / items.sum(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.value(), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["classes", "next tokens"])
def test_label_smoothing_is_the_trainers(name: str, tmp_path: Path) -> None:
    model, batch = PROBLEMS[name]()
    model.eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    smoothing = {"label_smoothing_factor": 0.2}
    with torch.no_grad():
        whole = trainer(model, tmp_path, **smoothing).compute_loss(model, dict(batch))
        plain = model(**batch).loss
    found = objective(model, cut(batch, 1), tmp_path, **smoothing).value()
    torch.testing.assert_close(found, whole)
    assert not torch.allclose(found, plain, rtol=1e-4)


def test_micro_batches_are_weighted_where_rows_are_not_known(tmp_path: Path) -> None:
    model, batch = PROBLEMS["masked tokens"]()
    model.eval()
    named = {"input_ids": batch["input_ids"], "start_positions": ids()[:, 0] % 6, "end_positions": ids()[:, 1] % 6}
    answers = BertForQuestionAnswering(BertConfig(**SMALL)).eval()
    loss = trainer_loss(trainer(answers, tmp_path), answers, named)
    assert loss.refusal is not None
    assert "the batch has no tensor `labels`. Pass `per_example_loss`" in loss.refusal
    with torch.no_grad():
        whole = answers(**named).loss
    found = MicroBatchObjective(cut(named, 1), loss, seed=0)
    torch.testing.assert_close(found.value().float(), whole)
    with pytest.raises(ValueError, match="the losses of single examples are not known"):
        found.values()


def test_a_batch_without_labels_that_count_is_refused(tmp_path: Path) -> None:
    model, batch = PROBLEMS["masked tokens"]()
    loss = trainer_loss(trainer(model, tmp_path), model, batch)
    nothing = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    with pytest.raises(ValueError, match=r"no label of the batch counts \(all are -100\)"):
        MicroBatchObjective([nothing], loss, seed=0)


def test_a_batch_without_tensors_is_refused(tmp_path: Path) -> None:
    model, batch = PROBLEMS["classes"]()
    loss = trainer_loss(trainer(model, tmp_path), model, batch)
    with pytest.raises(ValueError, match=r"a micro-batch has no tensor .* \(it holds \['text'\]\)"):
        MicroBatchObjective([{"text": "words"}], loss, seed=0)


def test_what_does_not_fit_is_not_known() -> None:
    with pytest.raises(ValueError, match=r"logits of shape \(4, 3\) do not fit labels of shape \(4, 6\)"):
        row_means(torch.zeros(4, 3), torch.zeros(4, 6, dtype=torch.int64))


def test_two_evaluations_see_the_same_randomness_and_leave_the_generators_alone(tmp_path: Path) -> None:
    model, batch = PROBLEMS["classes"]()
    model.eval()
    found = objective(model, cut(batch, 1), tmp_path)
    model.train()
    before = torch.get_rng_state()
    first, second = found.values(), found.values()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    model.eval()
    assert not torch.equal(first, found.values())


def test_a_narrow_objective_repeats_rows_of_a_small_micro_batch(tmp_path: Path) -> None:
    model, batch = PROBLEMS["classes"]()
    model.eval()
    found = objective(model, cut(batch, 1, 2, 3), tmp_path)
    three = found.narrow(3)
    assert three.num_examples == 3
    torch.testing.assert_close(three.values(), found.values()[:1].expand(3))
