"""What a model is trained for: its loss for each example, what it predicts, and how that is scored.

Legend of shapes: B examples, T tokens, C outputs, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.data import Labels, metric

TASKS = ("classification", "regression", "lm")
"""Names of the tasks, as `--task` takes them."""

_IGNORED = -100
_OF_EXAMPLES = {"accuracy": lambda logits, labels: logits.argmax(-1) == labels}
"""Metrics that are a mean over examples, of which each has a score by itself."""


class Task(Protocol):
    """Losses and scores of one kind of problem."""

    labels: Labels | None
    metric: str

    def losses(self, logits: Tensor, labels: Tensor) -> Float[Tensor, "B"]:
        """The loss of each example."""
        ...

    def score(self, logits: Tensor, labels: Tensor, losses: Float[Tensor, "B"]) -> float:
        """The metric over a whole set."""
        ...


class Classification:
    """Cross-entropy over classes."""

    def __init__(self, labels: Labels, metric_name: str | None) -> None:
        self.labels: Labels | None = labels
        self.metric = metric_name or "accuracy"
        if self.metric == "pearson":
            raise ValueError(
                "the metric `pearson` is for numbers, but the labels are classes. Use accuracy, f1 or mcc."
            )

    def losses(self, logits: Tensor, labels: Tensor) -> Float[Tensor, "B"]:
        return nn.functional.cross_entropy(logits.float(), labels, reduction="none")

    def score(self, logits: Tensor, labels: Tensor, losses: Tensor) -> float:
        return metric(self.metric, logits.argmax(-1), labels)


class Regression:
    """Squared error of one number."""

    def __init__(self, labels: Labels, metric_name: str | None) -> None:
        self.labels: Labels | None = labels
        self.metric = metric_name or "pearson"
        if self.metric != "pearson":
            raise ValueError(f"the metric `{self.metric}` is for classes, but the labels are numbers. Use pearson.")

    def losses(self, logits: Tensor, labels: Tensor) -> Float[Tensor, "B"]:
        return (logits[:, 0].float() - labels).square()

    def score(self, logits: Tensor, labels: Tensor, losses: Tensor) -> float:
        return metric("pearson", logits[:, 0].float(), labels)


class LanguageModel:
    """Cross-entropy of the next token, averaged over an example's tokens."""

    def __init__(self) -> None:
        self.labels: Labels | None = None
        self.metric = "perplexity"

    def losses(self, logits: Float[Tensor, "B T V"], labels: Tensor) -> Float[Tensor, "B"]:
        targets = labels[:, 1:]
        losses = nn.functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), targets, reduction="none", ignore_index=_IGNORED
        )
        counted = (targets != _IGNORED).sum(1).clamp(min=1)
        return losses.sum(1) / counted

    def score(self, logits: Tensor, labels: Tensor, losses: Tensor) -> float:
        return float(losses.mean().exp())


class TaskLoss:
    """`loss(model, batch) -> (B,)` for an Objective; runs only the trained suffix where the batch holds hidden states."""

    def __init__(self, task: Task, prefix: Any = None) -> None:
        self.task = task
        self.prefix = prefix

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "B"]:
        return self.task.losses(self.logits(model, batch), batch["labels"])

    def scores(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The task's metric of each example, (B,), for a RewardObjective."""
        return _OF_EXAMPLES[self.task.metric](self.logits(model, batch), batch["labels"])

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The model's outputs for a batch, (B, C) or (B, T, V)."""
        inputs = {name: tensor for name, tensor in batch.items() if name not in ("labels", "prefix_hidden")}
        if isinstance(self.task, LanguageModel):
            inputs["use_cache"] = False  # pyright: ignore[reportArgumentType]
        if self.prefix is None or "prefix_hidden" not in batch:
            return model(**inputs).logits
        with self.prefix.injected(batch["prefix_hidden"]):
            return model(**inputs).logits


def require_example_metric(name: str) -> None:
    """Raises ValueError for a metric that is no mean over examples, which cannot be an objective."""
    if name not in _OF_EXAMPLES:
        raise ValueError(
            f"the metric `{name}` is of a whole set and no mean over examples, so a batch cannot be trained on it. Metrics "
            f"that can be the objective: {', '.join(_OF_EXAMPLES)}. Or train on the loss (`--objective loss`)."
        )


@torch.no_grad()
def predict_all(model: nn.Module, loss: TaskLoss, batches: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, labels and losses of all examples of a set; a language model's outputs are left out, being large."""
    logits, labels, losses = [], [], []
    for batch in batches:
        outputs = loss.logits(model, batch)
        losses.append(loss.task.losses(outputs, batch["labels"]).cpu())
        if not isinstance(loss.task, LanguageModel):
            logits.append(outputs.float().cpu())
            labels.append(batch["labels"].cpu())
    empty = torch.zeros(0)
    return torch.cat(logits) if logits else empty, torch.cat(labels) if labels else empty, torch.cat(losses)
