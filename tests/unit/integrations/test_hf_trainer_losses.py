"""Losses that Hugging Face's Trainer is handed, in forward-only steps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from featherlight.integrations.hf_trainer import ZerothOrderTrainer
from featherlight.objective import NonFiniteLossError
from featherlight.optim import RankOneSigns, ZerothOrderSGD
from tests.unit.integrations.hf_samples import classified, classifier, same, weights


def per_row(model: nn.Module, inputs: Any) -> Tensor:
    logits = model(input_ids=inputs["input_ids"]).logits
    return nn.functional.cross_entropy(logits, inputs["labels"], reduction="none") + logits.square().mean(1)


def with_penalty(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """A sum divided by the number of items, as the Trainer asks for."""
    losses = nn.functional.cross_entropy(outputs.logits, labels, reduction="none") + outputs.logits.square().mean(1)
    return losses.sum() / num_items_in_batch


def averaged(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """The same as a mean."""
    losses = nn.functional.cross_entropy(outputs.logits, labels, reduction="none") + outputs.logits.square().mean(1)
    return losses.mean()


def test_a_loss_function_trains_as_the_same_loss_by_rows_does(arguments: Callable[..., TrainingArguments]) -> None:
    found = []
    for options in (
        {"compute_loss_func": with_penalty},
        {"compute_loss_func": averaged},
        {"per_example_loss": per_row},
    ):
        model = classifier()
        args = arguments(gradient_accumulation_steps=2, per_device_train_batch_size=2)
        ZerothOrderTrainer(model, args, train_dataset=classified(), **options).train()
        found.append(weights(model))
    plain = classifier()
    ZerothOrderTrainer(plain, args, train_dataset=classified()).train()
    for one in found:
        assert all(torch.allclose(one[name], found[0][name], rtol=0, atol=1e-5) for name in one)
        assert not all(torch.allclose(one[name], plain.state_dict()[name], rtol=0, atol=1e-4) for name in one)


class OwnLoss(ZerothOrderTrainer):
    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(input_ids=inputs["input_ids"])
        loss = nn.functional.cross_entropy(outputs.logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss


def test_a_loss_of_a_subclass_is_trained_where_examples_share_a_direction(
    arguments: Callable[..., TrainingArguments],
) -> None:
    found = []
    for kind in (OwnLoss, ZerothOrderTrainer):
        model = classifier()
        args = arguments(gradient_accumulation_steps=3, per_device_train_batch_size=2)
        kind(
            model,
            args,
            train_dataset=classified(),
            zeroth_order=lambda model, args: ZerothOrderSGD(model, 1e-2, directions=RankOneSigns(1)),
        ).train()
        found.append(weights(model))
    own, stock = found
    assert not same(own, weights(classifier()))
    assert all(torch.allclose(own[name], stock[name], rtol=0, atol=2e-5) for name in own)


def mixed(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return nn.functional.cross_entropy(outputs.logits - outputs.logits.mean(0), labels)


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        (OwnLoss, {}, "OwnLoss has a `compute_loss` of its own, which returns one loss for a batch"),
        (ZerothOrderTrainer, {"compute_loss_func": mixed}, "so examples are mixed or something is added"),
        (
            ZerothOrderTrainer,
            {"per_example_loss": lambda model, inputs: per_row(model, inputs).mean()},
            r"`per_example_loss` must return one loss for each row, shape \(\d,\); got \(\)",
        ),
    ],
)
def test_a_loss_that_does_not_tell_examples_apart_is_refused(
    kind: type[ZerothOrderTrainer],
    options: dict[str, Any],
    sentence: str,
    arguments: Callable[..., TrainingArguments],
) -> None:
    model = classifier()
    base = weights(model)
    with pytest.raises(ValueError, match=sentence):
        kind(model, arguments(), train_dataset=classified(), **options).train()
    assert same(base, weights(model))


def test_a_loss_that_is_not_finite_ends_the_run_before_the_step(arguments: Callable[..., TrainingArguments]) -> None:
    model = classifier()
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    base = weights(model)
    with pytest.raises(NonFiniteLossError, match="the loss of step 0 is not finite"):
        ZerothOrderTrainer(model, arguments(), train_dataset=classified()).train()
    assert all(torch.equal(base[n], t) for n, t in weights(model).items() if n != "classifier.bias")
