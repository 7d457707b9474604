"""Hugging Face's Trainer with forward-only steps: whatever the Trainer does around a step still holds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from featherlight.integrations import hf_trainer
from featherlight.integrations.hf_trainer import StepSampler, ZerothOrderTrainer, zeroth_order_sgd
from featherlight.meter import allocation_peak
from featherlight.optim import MeZO, RankOneSigns, ZerothOrderSGD
from featherlight.recipes.finetune.config import FinetuneConfig
from featherlight.recipes.methods import METHODS
from tests.unit.integrations.hf_samples import (
    InMemory,
    Losses,
    Rows,
    classified,
    classifier,
    language_model,
    ragged,
    same,
    seeded,
    weights,
)


def test_the_default_is_the_command_lines() -> None:
    config = FinetuneConfig(model="minilm", train="rows.csv").optimizer
    model = classifier()
    optimizer = zeroth_order_sgd(model, TrainingArguments(output_dir="out", learning_rate=METHODS["zo"].default_lr))
    assert METHODS["zo"].default_lr == hf_trainer.DEFAULT_LR
    assert config.sigma is None
    assert optimizer.evaluator.sigma == 1e-3
    assert optimizer.evaluator.family.count is config.directions is None
    assert (optimizer.normalize is not None) == config.normalize
    body, head = optimizer.param_groups
    assert (body["scale"], head["scale"]) == (1.0, config.head_scale)
    assert body["weight_decay"] == config.weight_decay
    assert {id(p) for p in head["params"]} == {id(p) for p in model.classifier.parameters()}
    assert METHODS["zo"].dropout is False


def test_a_language_model_has_no_head() -> None:
    (group,) = zeroth_order_sgd(language_model(), TrainingArguments(output_dir="out")).param_groups
    assert group["scale"] == 1.0


@pytest.mark.parametrize(("build", "rows"), [(classifier, classified), (language_model, ragged)])
def test_micro_batches_make_one_step_on_their_union(
    build: Callable[[], nn.Module], rows: Callable[[], Rows], arguments: Callable[..., TrainingArguments]
) -> None:
    journals, losses = [], []
    for size, count in ((12, 1), (3, 4), (1, 12)):
        journal, log = InMemory(), Losses()
        trainer = ZerothOrderTrainer(
            build(),
            arguments(per_device_train_batch_size=size, gradient_accumulation_steps=count, max_steps=2),
            train_dataset=rows(),
            zeroth_order=lambda model, args, journal=journal: zeroth_order_sgd(model, args, journal=journal),
            callbacks=[log],
        )
        trainer.train()
        assert trainer.state.global_step == len(journal.records) == 2
        journals.append([record.coefficients.double() * record.scale for record in journal.records])
        losses.append([line["loss"] for line in log.logs if "loss" in line])
    for slopes, loss in zip(journals[1:], losses[1:], strict=True):
        for mine, whole in zip(slopes, journals[0], strict=True):
            assert torch.allclose(mine, whole, rtol=0.02, atol=0.02 * float(whole.abs().max()))
        assert loss == pytest.approx(losses[0], rel=1e-5)


def test_what_is_logged_is_the_mean_of_the_losses_of_the_steps(arguments: Callable[..., TrainingArguments]) -> None:
    class Noted(ZerothOrderSGD):
        def step(self, closure: Any = None) -> Tensor:
            seen.append(float(loss := super().step(closure)))
            return loss

    seen: list[float] = []
    log = Losses()
    result = ZerothOrderTrainer(
        classifier(),
        arguments(logging_steps=2, max_steps=5),
        train_dataset=classified(),
        zeroth_order=lambda model, args: Noted(model, 1e-3),
        callbacks=[log],
    ).train()
    assert len(seen) == 5
    logged = [line["loss"] for line in log.logs if "loss" in line]
    assert logged == pytest.approx([sum(seen[:2]) / 2, sum(seen[2:4]) / 2])
    assert result.training_loss == pytest.approx(sum(seen) / 5)
    assert not any("grad_norm" in line for line in log.logs)


def test_callbacks_see_the_weights_move_between_their_events(arguments: Callable[..., TrainingArguments]) -> None:
    class Watcher(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            before.append(weights(others["model"]))

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            after.append(weights(others["model"]))

        def on_substep_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            between.append(state.global_step)

    before: list[dict[str, Tensor]] = []
    after: list[dict[str, Tensor]] = []
    between: list[int] = []
    model = classifier()
    base = weights(model)
    args = arguments(gradient_accumulation_steps=2, max_steps=2)
    ZerothOrderTrainer(model, args, train_dataset=classified(), callbacks=[Watcher()]).train()
    assert same(before[0], base)
    assert not same(after[0], base)
    assert same(before[1], after[0])
    assert between == [0, 1]


@pytest.mark.parametrize(
    "make",
    [
        lambda model: MeZO(model, 1e-3),
        lambda model: ZerothOrderSGD(model, 1e-3, directions=RankOneSigns(1)),
        lambda model: ZerothOrderSGD(model, 1e-3, directions=RankOneSigns(2)),
    ],
    ids=["MeZO", "one direction", "two directions"],
)
def test_any_forward_only_optimizer_can_be_passed_with_a_scheduler(
    make: Callable[[nn.Module], torch.optim.Optimizer], arguments: Callable[..., TrainingArguments]
) -> None:
    model, log = classifier(), Losses()
    base = weights(model)
    optimizer = make(model)
    scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    trainer = ZerothOrderTrainer(
        model, arguments(), train_dataset=classified(), optimizers=(optimizer, scheduler), callbacks=[log]
    )
    trainer.train()
    assert not same(base, weights(model))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / 5)


def test_steps_run_without_dropout_and_without_a_graph(arguments: Callable[..., TrainingArguments]) -> None:
    seen: list[tuple[bool, bool]] = []
    model = classifier()
    model.register_forward_pre_hook(lambda module, _: seen.append((module.training, torch.is_grad_enabled())))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        ZerothOrderTrainer(model, arguments(seed=1), train_dataset=classified()).train()
    assert len(seen) > 8
    assert set(seen) == {(False, False)}
    assert kept == []
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_peak_of_a_run_is_that_of_running_one_micro_batch(arguments: Callable[..., TrainingArguments]) -> None:
    config = BertConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256
    )
    model = seeded(lambda: BertForSequenceClassification(config))
    ids = torch.randint(3, 50, (96, 48), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": row[0] % 2} for row in ids]
    args = arguments(per_device_train_batch_size=16, gradient_accumulation_steps=3, max_steps=1)
    trainer = ZerothOrderTrainer(model, args, train_dataset=rows)
    with allocation_peak() as training:
        trainer.train()
    batch, union = trainer.data_collator(rows[:16]), trainer.data_collator(rows[:48])
    with allocation_peak() as inference, torch.no_grad():
        trainer.compute_loss(model, dict(batch))
    with allocation_peak() as backward:
        trainer.compute_loss(model, dict(union)).backward()
    assert training.bytes < 1.15 * inference.bytes
    assert training.bytes < 0.2 * backward.bytes


@pytest.mark.parametrize(("num_rows", "rows_a_step"), [(20, 4), (23, 4), (3, 4), (4, 4), (1, 1)])
def test_epochs_are_a_stream_in_whole_steps(num_rows: int, rows_a_step: int) -> None:
    sampler = StepSampler(num_rows, rows_a_step, seed=5)
    epochs = []
    for epoch in range(3 * rows_a_step):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert len(epochs[-1]) == len(sampler)
        assert len(epochs[-1]) == (num_rows // rows_a_step * rows_a_step or num_rows)
    if num_rows >= rows_a_step:
        stream = [row for epoch in epochs for row in epoch]
        for start in range(0, len(stream) - num_rows, num_rows):
            assert sorted(stream[start : start + num_rows]) == list(range(num_rows))


@pytest.mark.parametrize("strategy", ["sequential", "group_by_length"])
def test_another_order_of_rows_is_the_trainers(strategy: str, arguments: Callable[..., TrainingArguments]) -> None:
    args = arguments(train_sampling_strategy=strategy)
    stock = Trainer(classifier(), args, train_dataset=classified())
    trainer = ZerothOrderTrainer(classifier(), args, train_dataset=classified())
    assert type(trainer._get_train_sampler()) is type(stock._get_train_sampler())


def test_arguments_by_position_are_passed_on(arguments: Callable[..., TrainingArguments]) -> None:
    trainer = ZerothOrderTrainer(classifier(), arguments(), None, classified(), classified(3))
    assert set(trainer.evaluate()) >= {"eval_loss"}
