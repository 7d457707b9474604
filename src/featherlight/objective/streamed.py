"""The mean loss over a set that is too large to be held: chunks are made when they are asked for."""

import copy
from collections.abc import Generator, Iterable, Iterator
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.meter import Meter
from featherlight.objective.passes import add_gradients, count_forward, num_rows, one_per_row, seeded_random
from featherlight.objective.protocols import Batch, PerExampleLoss
from featherlight.precision import LossScaler


class StreamedObjective:
    """The mean loss of a model over a whole set, one forward pass for each chunk; for MeZOSVRG's anchors, say.

    Args:
        model: any module; its training flags are used as they are.
        source: the chunks, each a batch; is gone through anew for every evaluation, and must give the same rows in the same
            order each time. A DataLoader is one, a generator is not.
        loss: `loss(model, batch) -> (B,)`, the losses of the single examples of a chunk.
        num_examples: N, the rows of all chunks together.
        dropout_seed: as for BatchObjective; chunks are made within its random state too, so one that is drawn from torch's
            default generator is the same in each evaluation.
        meter: counts forward and backward examples and tokens.

    Attributes:
        num_examples: N.
        window: the rows that are in the forward pass being run right now.
        scaler: by whose scale the gradient is computed; None without loss scaling.

    Raises:
        ValueError: `source` can be gone through once only, or (when it is) has another number of rows.

    Memory: one chunk and its forward pass, and N losses.
    """

    def __init__(
        self,
        model: nn.Module,
        source: Iterable[Batch],
        loss: PerExampleLoss,
        *,
        num_examples: int,
        dropout_seed: int = 0,
        meter: Meter | None = None,
    ) -> None:
        if isinstance(source, Iterator):
            raise ValueError(
                f"`source` can be gone through once only (it is a {type(source).__name__}), but each evaluation goes through "
                "it anew. Pass a list, a DataLoader, or an object whose `__iter__` begins again."
            )
        if num_examples < 1:
            raise ValueError(f"`num_examples` must be at least 1 row in all chunks together; got {num_examples}.")
        self.model = model
        self.source = source
        self.loss = loss
        self.num_examples = num_examples
        self.dropout_seed = dropout_seed
        self.meter = meter if meter is not None else Meter()
        self.window = range(num_examples)
        self.scaler: LossScaler | None = None

    def __call__(self) -> Float[Tensor, ""]:
        """Clears the gradients of the model, fills them chunk by chunk and returns the mean loss."""
        return add_gradients(self.model, self._forward(), self.num_examples, self.meter, self.scaler)

    @torch.no_grad()
    def value(self) -> Float[Tensor, ""]:
        """The mean loss without a graph."""
        return self.values().mean()

    @torch.no_grad()
    def values(self) -> Float[Tensor, "N"]:
        """The losses of the single examples without a graph."""
        return torch.cat(list(self._forward()))

    def narrow(self, count: int) -> "StreamedObjective":
        """The objective of the first `count` rows, in one forward pass.

        Raises:
            ValueError: they are in several chunks of different shapes.
        """
        rows = min(count, self.num_examples)
        first = self._first_rows(rows)
        return StreamedObjective(
            self.model, [first], self.loss, num_examples=rows, dropout_seed=self.dropout_seed, meter=self.meter
        )

    def scaled(self, scaler: LossScaler) -> "StreamedObjective":
        """The same objective, its gradient computed from a multiple of the loss."""
        other = copy.copy(self)
        other.scaler = scaler
        return other

    def _forward(self) -> Generator[Tensor, None, None]:
        with seeded_random(self.dropout_seed, _device(self.model)):
            start, chunks = 0, iter(self.source)
            while (batch := next(chunks, None)) is not None:
                stop = start + num_rows(batch)
                if stop > self.num_examples:
                    raise self._other_length(f"at least {stop}")
                self.window = range(start, stop)
                losses = one_per_row(self.loss(self.model, batch), len(self.window))
                count_forward(self.meter, batch, len(self.window))
                del batch
                yield losses
                del losses
                start = stop
            if start != self.num_examples:
                raise self._other_length(str(start))

    def _other_length(self, rows: str) -> ValueError:
        return ValueError(
            f"`source` has {rows} rows, but `num_examples` is {self.num_examples}; the mean and the directions of examples "
            "are by that number. Pass the number of rows of one way through the source."
        )

    def _first_rows(self, count: int) -> Batch:
        parts: list[Batch] = []
        missing = count
        with seeded_random(self.dropout_seed, _device(self.model)):
            for batch in self.source:
                parts.append({name: rows[:missing] for name, rows in batch.items()})
                missing -= min(missing, num_rows(batch))
                if not missing:
                    break
        if missing:
            raise self._other_length(str(count - missing))
        if len(parts) == 1:
            return parts[0]
        shapes = [{name: tuple(rows.shape[1:]) for name, rows in part.items()} for part in parts]
        if any(one != shapes[0] for one in shapes):
            raise ValueError(
                f"the first {count} rows of `source` are in chunks of different shapes ({shapes[0]} and others), which no "
                f"single forward pass can hold. Let its first chunk have at least {count} rows."
            )
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _device(model: nn.Module) -> torch.device:
    return next(chain(model.parameters(), model.buffers()), torch.zeros(())).device
