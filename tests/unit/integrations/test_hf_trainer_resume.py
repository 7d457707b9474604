"""Runs of Hugging Face's Trainer with forward-only steps are taken up and replayed, with adapters too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from featherlight.integrations.hf_trainer import ZerothOrderTrainer, zeroth_order_sgd
from tests.unit.integrations.hf_samples import InMemory, classified, classifier, same, seeded, weights

of_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
"""PEFT asks models of transformers for a name that they are about to drop."""


@pytest.mark.parametrize("resumed_at", [2, 7], ids=["in the first epoch", "in a later epoch"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_resumed_run_comes_to_the_same_bits(
    resumed_at: int, schedule: str, arguments: Callable[..., TrainingArguments], tmp_path: Path
) -> None:
    def run(resume: str | None) -> dict[str, Tensor]:
        model = classifier()
        args = arguments(
            lr_scheduler_type=schedule,
            warmup_steps=3,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=9,
            save_strategy="steps",
            save_steps=1,
            seed=(1 << 32) - 1,
            eval_strategy="steps",
            eval_steps=2,
        )
        trainer = ZerothOrderTrainer(model, args, train_dataset=classified(18), eval_dataset=classified(3))
        trainer.train(resume_from_checkpoint=resume)
        return weights(model)

    whole = run(None)
    resumed = run(str(tmp_path / "out" / f"checkpoint-{resumed_at}"))
    assert same(whole, resumed)
    assert not same(whole, weights(classifier()))


def test_a_second_call_of_train_is_a_run_of_its_own(arguments: Callable[..., TrainingArguments]) -> None:
    trainer = ZerothOrderTrainer(classifier(), arguments(max_steps=2), train_dataset=classified())
    trainer.train()
    before = weights(trainer.model)
    assert trainer.train().global_step == 2
    assert not same(before, weights(trainer.model))


def test_a_stop_between_micro_batches_leaves_nothing_for_the_next_run(
    arguments: Callable[..., TrainingArguments],
) -> None:
    class Stopper(TrainerCallback):
        def on_substep_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            control.should_training_stop = True

    trainer = ZerothOrderTrainer(
        classifier(), arguments(gradient_accumulation_steps=2), train_dataset=classified(), callbacks=[Stopper()]
    )
    base = weights(trainer.model)
    trainer.train()
    assert same(base, weights(trainer.model))
    trainer.pop_callback(Stopper)
    journal = InMemory()
    trainer.optimizer = zeroth_order_sgd(trainer.model, trainer.args, journal=journal)
    trainer.train()
    assert [len(record.coefficients) for record in journal.records] == [8] * 4


def test_records_of_a_run_replay_to_its_weights(arguments: Callable[..., TrainingArguments]) -> None:
    model, base, journal = classifier(), classifier(), InMemory()
    ZerothOrderTrainer(
        model,
        arguments(),
        train_dataset=classified(),
        zeroth_order=lambda model, args: zeroth_order_sgd(model, args, journal=journal),
    ).train()
    optimizer = zeroth_order_sgd(base, arguments())
    kept, shared = ({t.index for t in journal.targets if t.shared or not only} for only in (False, True))
    optimizer.keep_targets(kept, shared)
    optimizer.replay(journal.records)
    assert same(weights(model), weights(base))


@of_peft
def test_adapters_are_trained_and_resumed_and_the_base_is_not(
    arguments: Callable[..., TrainingArguments], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")

    def run(resume: str | None) -> dict[str, Tensor]:
        config = peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"])
        model = seeded(lambda: peft.get_peft_model(classifier(), config))
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        before = weights(model)
        args = arguments(save_strategy="steps", save_steps=2)
        ZerothOrderTrainer(model, args, train_dataset=classified()).train(resume_from_checkpoint=resume)
        after = weights(model)
        assert {name for name in after if not torch.equal(before[name], after[name])} == trained
        return after

    assert same(run(None), run(str(tmp_path / "out" / "checkpoint-2")))
    assert (tmp_path / "out" / "checkpoint-2" / "adapter_model.safetensors").is_file()


@of_peft
def test_the_head_of_an_adapted_classifier_is_moved_further(arguments: Callable[..., TrainingArguments]) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=3, target_modules=["query"], modules_to_save=["classifier"])
    model = peft.get_peft_model(classifier(), config)
    _, head = zeroth_order_sgd(model, arguments()).param_groups
    assert [tuple(parameter.shape) for parameter in head["params"]] == [(3, 16), (3,)]
    assert head["scale"] == 10.0
