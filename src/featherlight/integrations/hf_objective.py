"""The loss of a step of Hugging Face's Trainer as an Objective: its micro-batches are one batch, never run at once.

Legend of shapes: B rows, b rows of a micro-batch.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.trainer_pt_utils import find_batch_size

from featherlight.objective import seeded_random

IGNORED_LABEL = -100
"""The label of what is not predicted."""

Inputs = Mapping[str, Any]
"""A micro-batch as a data collator makes it: tensors by name, each with one row for each example."""


@dataclass(frozen=True, kw_only=True)
class MicroBatchLoss:
    """The mean loss of a micro-batch, as a whole and row by row.

    A row counts as often as it has items: the tokens that are predicted in it, or 1.

    Attributes:
        whole: the mean over the items of a micro-batch, (); is handed their number.
        rows: the mean over the items of each row, (b,); is handed their numbers.
        items: how many items each row has, (b,) int64.
        refusal: a sentence that says why there is no loss for each row; None if there is one.
    """

    whole: Callable[[Inputs, Tensor], Tensor]
    rows: Callable[[Inputs, Tensor], Tensor]
    items: Callable[[Inputs], Tensor]
    refusal: str | None = None


class MicroBatchObjective:
    """The mean loss over the union of micro-batches, each of which is a forward pass of its own. It has no gradient.

    Args:
        micro_batches: at least one, on the model's device.
        loss: of a micro-batch.
        seed: of what is random in a forward pass; every evaluation sees the same.

    Attributes:
        num_examples: B, the rows of all micro-batches.
        window: the rows that are in the forward pass being run right now.

    Raises:
        ValueError: no label counts.
    """

    def __init__(self, micro_batches: Sequence[Inputs], loss: MicroBatchLoss, *, seed: int) -> None:
        self._micro_batches = micro_batches
        self._loss = loss
        self._seed = seed
        self._items = [loss.items(inputs) for inputs in micro_batches]
        self._num_items = int(sum(items.sum() for items in self._items))
        if self._num_items == 0:
            raise ValueError(
                f"no label of the batch counts (all are {IGNORED_LABEL}), so there is no loss to learn from. Look at the "
                "data collator, or leave such rows out."
            )
        self.num_examples = sum(len(items) for items in self._items)
        self.window = range(self.num_examples)

    def __call__(self) -> NoReturn:
        """Raises ValueError: forward passes alone make no gradient."""
        raise ValueError(
            "the optimizer asks for a gradient, but ZerothOrderTrainer makes forward passes alone. Pass one of the "
            "forward-only optimizers of featherlight.optim, or use transformers.Trainer."
        )

    @torch.no_grad()
    def value(self) -> Float[Tensor, ""]:
        """The mean loss over all items, without a graph."""
        if self._loss.refusal is None:
            return self.values().mean()
        with closing(self._forward(self._loss.whole, [items.sum() for items in self._items])) as means:
            parts = [
                mean.double() * (int(items.sum()) / self._num_items)
                for mean, items in zip(means, self._items, strict=True)
            ]
        return torch.stack(parts).sum()

    @torch.no_grad()
    def values(self) -> Float[Tensor, "B"]:
        """The losses of the rows, weighted by their items so that `value()` is their mean; without a graph.

        Raises:
            ValueError: the loss of a row is not known.
        """
        if self._loss.refusal is not None:
            raise ValueError(self._loss.refusal)
        with closing(self._forward(self._loss.rows, self._items)) as means:
            parts = [
                mean * ((items * self.num_examples).double() / self._num_items).to(mean.dtype)
                for mean, items in zip(means, self._items, strict=True)
            ]
        return torch.cat(parts)

    def narrow(self, count: int) -> "MicroBatchObjective":
        """The same loss over `count` rows in one forward pass: those of the first micro-batch, repeated if need be."""
        rows = torch.arange(count, device=self._items[0].device) % len(self._items[0])
        return MicroBatchObjective([take_rows(self._micro_batches[0], rows)], self._loss, seed=self._seed)

    def _forward(
        self, loss: Callable[[Inputs, Tensor], Tensor], items: Sequence[Tensor]
    ) -> Generator[Tensor, None, None]:
        start = 0
        with seeded_random(self._seed, self._items[0].device):
            for inputs, own, counted in zip(self._micro_batches, self._items, items, strict=True):
                self.window = range(start, start + len(own))
                start = self.window.stop
                yield loss(inputs, counted)


def num_rows(inputs: Inputs) -> int:
    """The rows of a micro-batch.

    Raises:
        ValueError: it holds no tensor.
    """
    found = find_batch_size(inputs)
    if found is None:
        raise ValueError(
            f"a micro-batch has no tensor that would say how many rows it has (it holds {sorted(inputs)}). Let the data "
            "collator return tensors."
        )
    return found


def take_rows(inputs: Inputs, rows: Tensor) -> dict[str, Any]:
    """The rows of a micro-batch that stand at `rows`; what has no row for each example is left as it is."""
    return {name: _take(value, rows, num_rows(inputs)) for name, value in inputs.items()}


def split_rows(outputs: Any, count: int) -> list[Any]:
    """The outputs of a model for `count` rows as outputs for one row each, of the same class."""
    device = device_of(outputs)
    return [_take(outputs, torch.tensor([row], device=device), count) for row in range(count)]


def _take(value: Any, rows: Tensor, count: int) -> Any:
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and len(value) == count else value
    if isinstance(value, Mapping):
        taken = {name: _take(one, rows, count) for name, one in value.items()}
        return taken if type(value) is dict else type(value)(**taken)
    if type(value) in (list, tuple):
        return type(value)(_take(one, rows, count) for one in value)
    return value


def device_of(inputs: Inputs) -> torch.device:
    """The device of the first tensor."""
    return next(value.device for value in inputs.values() if isinstance(value, Tensor))
