"""Set-ups of Hugging Face's Trainer that forward-only steps cannot serve get a sentence."""

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from featherlight.integrations import hf_trainer
from featherlight.integrations.hf_trainer import ZerothOrderTrainer, zeroth_order_sgd
from featherlight.optim import MeZO, MeZOSVRG
from tests.unit.integrations.hf_samples import classified, classifier, same, weights


def test_a_default_rate_for_gradients_is_warned_of(arguments: Callable[..., TrainingArguments]) -> None:
    with pytest.warns(UserWarning, match="`learning_rate` is 5e-05, the default for training with gradients"):
        ZerothOrderTrainer(classifier(), arguments(learning_rate=5e-5), train_dataset=classified())


def test_an_optimizer_that_needs_gradients_is_refused(arguments: Callable[..., TrainingArguments]) -> None:
    model = classifier()
    base = weights(model)
    optimizer = torch.optim.AdamW(model.parameters())
    trainer = ZerothOrderTrainer(model, arguments(), train_dataset=classified(), optimizers=(optimizer, None))
    with pytest.raises(ValueError, match="asks for a gradient, but ZerothOrderTrainer makes forward passes alone"):
        trainer.train()
    assert same(base, weights(model))


def test_an_optimizer_that_wants_a_larger_batch_at_times_is_refused(
    arguments: Callable[..., TrainingArguments],
) -> None:
    trainer = ZerothOrderTrainer(
        classifier(),
        arguments(),
        train_dataset=classified(),
        zeroth_order=lambda model, args: MeZOSVRG(model, 1e-4, 1e-3),
    )
    with pytest.raises(ValueError, match="MeZOSVRG measures its anchors on a batch much larger than a step's"):
        trainer.train()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("fp16", True, r"`fp16` \(True\) cannot be used by ZerothOrderTrainer: it scales losses"),
        ("deepspeed", {"zero_optimization": {"stage": 2}}, "DeepSpeed makes its own steps from gradients"),
        ("fsdp", True, "directions are drawn for whole weights"),
        ("torch_compile", True, "a compiled model cannot be perturbed"),
        ("neftune_noise_alpha", 5.0, "noise on the embeddings is for training mode"),
        ("optim", "sgd", r"`optim` \(sgd\) cannot be used by ZerothOrderTrainer: it names an optimizer that needs"),
        ("_n_gpu", 2, r"`n_gpu` \(2\) cannot be used by ZerothOrderTrainer: forward-only training runs on one device"),
    ],
)
def test_set_ups_that_cannot_work_are_refused_at_once(
    name: str, value: Any, sentence: str, arguments: Callable[..., TrainingArguments]
) -> None:
    args = arguments()
    object.__setattr__(args, name, value)
    with pytest.raises(ValueError, match=sentence):
        ZerothOrderTrainer(classifier(), args, train_dataset=classified())


def test_several_processes_are_refused(
    arguments: Callable[..., TrainingArguments], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingArguments, "world_size", 4)
    with pytest.raises(ValueError, match=r"`world_size` \(4\) .*Start a single process, without torchrun"):
        ZerothOrderTrainer(classifier(), arguments(), train_dataset=classified())


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("distributed_type", "MULTI_GPU", "accelerate is set up for MULTI_GPU. Start it with plain python"),
        ("mixed_precision", "fp8", "the mixed precision `fp8` that accelerate is set up for scales losses"),
    ],
)
def test_what_accelerate_is_set_up_for_is_looked_at(
    name: str,
    value: str,
    sentence: str,
    arguments: Callable[..., TrainingArguments],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    monkeypatch.setattr(Accelerator, name, DistributedType(value) if name == "distributed_type" else value)
    with pytest.raises(ValueError, match=sentence):
        ZerothOrderTrainer(classifier(), arguments(), train_dataset=classified())


@pytest.mark.parametrize("given", ["both", "class"])
def test_an_optimizer_is_given_once(given: str, arguments: Callable[..., TrainingArguments]) -> None:
    model = classifier()
    options: dict[str, Any] = (
        {"optimizers": (MeZO(model), None), "zeroth_order": zeroth_order_sgd}
        if given == "both"
        else {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1})}
    )
    with pytest.raises(ValueError, match="the optimizer must be given once"):
        ZerothOrderTrainer(model, arguments(), train_dataset=classified(), **options)


def test_without_accelerate_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate.optimizer", None)
    spec = importlib.util.spec_from_file_location("another_copy", hf_trainer.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"Run: pip install 'featherlight\[trainer\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
