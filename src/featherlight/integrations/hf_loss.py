"""The loss of Hugging Face's Trainer, as a whole and row by row.

Legend of shapes: b rows, T tokens, C outputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.loss.loss_utils import ForCausalLMLoss

from featherlight.integrations.hf_objective import (
    IGNORED_LABEL,
    Inputs,
    MicroBatchLoss,
    device_of,
    num_rows,
    split_rows,
)
from featherlight.objective import PerExampleLoss, seeded_random

_LABELS = "labels"


def trainer_loss(trainer: Trainer, model: nn.Module, first: Inputs) -> MicroBatchLoss:
    """What a trainer's `compute_loss` says, and the same for single rows where it can be told from one forward pass.

    A row's loss is made of the model's outputs: by the trainer's `compute_loss_func`, or as models of transformers do for
    classes, tokens, numbers and several labels, with the trainer's label smoothing. It is compared with the loss as a
    whole; where the two differ, the result refuses to tell rows apart.

    Args:
        trainer: whose loss it is.
        model: what is trained, wrapped as for `training_step`.
        first: a micro-batch to compare the two on.

    Cost: two forward passes of `first`.
    """
    shifted = _shifts_labels(model)
    loss = MicroBatchLoss(
        whole=_whole(trainer, model),
        rows=_rows(trainer, model, shifted),
        items=lambda inputs: count_items(inputs, shifted=shifted),
    )
    with torch.no_grad(), seeded_random(trainer.args.seed, device_of(first)):
        why = _why_no_rows(trainer, loss, first)
    if why is None:
        return loss
    return replace(
        loss,
        refusal=f"the losses of single examples are not known: {why}. Pass `per_example_loss`, a function of model and "
        "inputs that returns one loss for each row, or an optimizer that needs none, such as ZerothOrderSGD with "
        "directions=RankOneSigns(1).",
    )


def given_loss(trainer: Trainer, model: nn.Module, per_example: PerExampleLoss) -> MicroBatchLoss:
    """A user's loss of each row, in the trainer's autocast.

    Args:
        trainer: whose autocast it is.
        model: what is trained, wrapped as for `training_step`.
        per_example: `loss(model, inputs) -> (b,)`.
    """

    def rows(inputs: Inputs, items: Tensor) -> Tensor:
        with trainer.compute_loss_context_manager():
            losses = per_example(model, inputs)
        if losses.shape != items.shape:
            raise ValueError(
                f"`per_example_loss` must return one loss for each row, shape {tuple(items.shape)}; got "
                f"{tuple(losses.shape)}. Use reduction='none' and average over everything but the rows."
            )
        return losses

    return MicroBatchLoss(whole=_whole(trainer, model), rows=rows, items=_ones)


def count_items(inputs: Inputs, *, shifted: bool) -> Tensor:
    """How many labels of each row count, (b,); 1 for a row whose label is no class or token.

    Args:
        inputs: the micro-batch.
        shifted: whether the label of a token is predicted from the tokens before it, so that the first never counts.
    """
    labels = inputs.get("shift_labels", inputs.get(_LABELS))
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        return _ones(inputs)
    if shifted and "shift_labels" not in inputs:
        labels = labels[..., 1:]
    return _counted(labels)


def row_means(
    logits: Tensor, labels: Tensor, *, shifted: bool = False, smoothing: float = 0.0, multi_label: bool = False
) -> Tensor:
    """The mean loss of each row, (b,), as models of transformers compute it for a batch.

    Args:
        logits: (b, C) or (b, T, C); of numbers, as many as there are labels.
        labels: classes, (b,) or (b, T), where -100 does not count; or numbers or 0s and 1s in floating point.
        shifted: whether the logits at t predict token t + 1.
        smoothing: of labels that are classes.
        multi_label: whether 0s and 1s say which of C classes apply.

    Raises:
        ValueError: logits and labels do not fit each other.
    """
    if shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    is_class = not labels.is_floating_point()
    if logits.shape[:-1] != labels.shape if is_class else logits.numel() != labels.numel():
        raise ValueError(f"logits of shape {tuple(logits.shape)} do not fit labels of shape {tuple(labels.shape)}")
    if not is_class:
        values = logits.float().view_as(labels)
        losses = (
            nn.functional.binary_cross_entropy_with_logits(values, labels, reduction="none")
            if multi_label
            else (values - labels).square()
        )
        return losses.reshape(len(labels), -1).mean(1)
    losses = nn.functional.cross_entropy(
        logits.float().movedim(-1, 1), labels, reduction="none", ignore_index=IGNORED_LABEL, label_smoothing=smoothing
    )
    return losses.reshape(len(labels), -1).sum(1) / _counted(labels).clamp(min=1)


def _whole(trainer: Trainer, model: nn.Module) -> Callable[[Inputs, Tensor], Tensor]:
    def whole(inputs: Inputs, num_items: Tensor) -> Tensor:
        with trainer.compute_loss_context_manager():
            return trainer.compute_loss(model, dict(inputs), num_items_in_batch=num_items)  # pyright: ignore[reportReturnType]

    return whole


def _rows(trainer: Trainer, model: nn.Module, shifted: bool) -> Callable[[Inputs, Tensor], Tensor]:
    config = getattr(model, "config", None)
    multi_label = getattr(config, "problem_type", None) == "multi_label_classification"
    needs_labels = trainer.compute_loss_func is None and getattr(config, "is_encoder_decoder", False)

    def rows(inputs: Inputs, items: Tensor) -> Tensor:
        labels = inputs[_LABELS]
        with trainer.compute_loss_context_manager():
            outputs = model(**{name: value for name, value in inputs.items() if needs_labels or name != _LABELS})
            if trainer.compute_loss_func is not None:
                return _rows_by_function(trainer.compute_loss_func, outputs, labels, items)
            logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
            smoothing = trainer.args.label_smoothing_factor
            return row_means(logits, labels, shifted=shifted, smoothing=smoothing, multi_label=multi_label)

    return rows


def _rows_by_function(function: Callable[..., Tensor], outputs: Any, labels: Tensor, items: Tensor) -> Tensor:
    """A `compute_loss_func` at one row after the other, each as if it were the batch."""
    rows = zip(split_rows(outputs, len(items)), labels.split(1), items, strict=True)
    return torch.stack([function(one, label, num_items_in_batch=number) for one, label, number in rows])


def _why_no_rows(trainer: Trainer, loss: MicroBatchLoss, first: Inputs) -> str | None:
    """Why the losses of rows are not known, if they are not."""
    if type(trainer).compute_loss is not Trainer.compute_loss:
        return f"{type(trainer).__name__} has a `compute_loss` of its own, which returns one loss for a batch"
    if not isinstance(first.get(_LABELS), Tensor):
        return "the batch has no tensor `labels`"
    items = loss.items(first)
    try:
        rows = loss.rows(first, items)
    except ValueError as error:
        return str(error).rstrip(".")
    num_items = items.sum()
    whole = loss.whole(first, num_items)
    mean = (rows * items).sum() / num_items
    rtol = max(1e-5, 4 * torch.finfo(whole.dtype).eps)
    if torch.allclose(mean.float(), whole.float(), rtol=rtol, atol=1e-6, equal_nan=True):
        return None
    return (
        f"their mean is {float(mean):.6g} where the loss of the batch is {float(whole):.6g}, so examples are mixed or "
        "something is added"
    )


def _shifts_labels(model: nn.Module) -> bool:
    """Whether a model's own loss compares the logits at t with the label at t + 1."""
    return getattr(model, "loss_function", None) is ForCausalLMLoss and not getattr(
        getattr(model, "config", None), "is_encoder_decoder", False
    )


def _counted(labels: Tensor) -> Tensor:
    return (labels != IGNORED_LABEL).reshape(len(labels), -1).sum(1)


def _ones(inputs: Inputs) -> Tensor:
    return torch.ones(num_rows(inputs), dtype=torch.int64, device=device_of(inputs))
