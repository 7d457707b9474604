"""The mean loss of a model over one batch."""

import copy
from collections.abc import Generator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.meter import Meter
from featherlight.objective.passes import add_gradients, count_forward, num_rows, one_per_row, seeded_random
from featherlight.objective.protocols import Batch, PerExampleLoss, Team
from featherlight.objective.shared import SharedObjective
from featherlight.precision import LossScaler


class BatchObjective:
    """The mean loss of a model over one batch.

    Args:
        model: any module; its training flags are used as they are.
        batch: tensors by name, each with B rows.
        loss: `loss(model, batch) -> (B,)`, the losses of the single examples.
        micro_batch: rows per forward pass; None runs the batch as a whole.
        dropout_seed: seeds the random state that dropout reads; give each step its own, or all see the same masks. The
            state is put in place for the pass and taken away after it, so that the process's generators stay as they were.
        meter: counts forward and backward examples and tokens.

    Attributes:
        num_examples: B, the rows of the batch.
        window: the rows that are in the forward pass being run right now.
        scaler: by whose scale the gradient is computed; None without loss scaling.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        loss: PerExampleLoss,
        *,
        micro_batch: int | None = None,
        dropout_seed: int = 0,
        meter: Meter | None = None,
    ) -> None:
        if micro_batch is not None and micro_batch < 1:
            raise ValueError(f"`micro_batch` must be at least 1 row; got {micro_batch}. Pass None for the whole batch.")
        self.model = model
        self.batch = batch
        self.loss = loss
        self.micro_batch = micro_batch
        self.dropout_seed = dropout_seed
        self.meter = meter if meter is not None else Meter()
        self.num_examples = num_rows(batch)
        self.window = range(self.num_examples)
        self.scaler: LossScaler | None = None

    def __call__(self) -> Float[Tensor, ""]:
        """Clears the gradients of the model, fills them in micro-batches and returns the mean loss."""
        return add_gradients(self.model, self._forward(), self.num_examples, self.meter, self.scaler)

    @torch.no_grad()
    def value(self) -> Float[Tensor, ""]:
        """The mean loss without a graph."""
        return self.values().mean()

    @torch.no_grad()
    def values(self) -> Float[Tensor, "B"]:
        """The losses of the single examples without a graph."""
        return torch.cat(list(self._forward()))

    def narrow(self, count: int) -> "BatchObjective":
        """The objective of the first `count` rows, in one forward pass."""
        return BatchObjective(
            self.model,
            {name: rows[:count] for name, rows in self.batch.items()},
            self.loss,
            dropout_seed=self.dropout_seed,
            meter=self.meter,
        )

    def share(self, team: Team) -> SharedObjective:
        """The same objective, each process with its part of the rows."""
        return SharedObjective(self, team)

    def scaled(self, scaler: LossScaler) -> "BatchObjective":
        """The same objective, its gradient computed from a multiple of the loss."""
        other = copy.copy(self)
        other.scaler = scaler
        return other

    def _forward(self) -> Generator[Tensor, None, None]:
        rows = self.micro_batch or self.num_examples
        with seeded_random(self.dropout_seed, next(iter(self.batch.values())).device):
            for start in range(0, self.num_examples, rows):
                self.window = range(start, min(start + rows, self.num_examples))
                part = {name: tensor[self.window.start : self.window.stop] for name, tensor in self.batch.items()}
                losses = one_per_row(self.loss(self.model, part), len(self.window))
                count_forward(self.meter, part, len(self.window))
                yield losses
