"""The loss at one batch, with or without a gradient: a torch closure with two more verbs."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.meter import Meter

_SEED_STRIDE = 0x9E3779B97F4A7C15  # apart the dropout seeds of processes

Batch = Mapping[str, Tensor]
"""Tensors by name, each with one row for each example."""

PerExampleLoss = Callable[[nn.Module, Batch], Tensor]
"""`loss(model, batch) -> (B,)`: the losses of the single examples, averaged over everything but the rows."""


@runtime_checkable
class Objective(Protocol):
    """What every optimizer of this library is handed: `loss = optimizer.step(objective)`."""

    def __call__(self) -> Float[Tensor, ""]:
        """The torch.optim closure: clears the gradients, fills them, returns the loss."""
        ...

    def value(self) -> Float[Tensor, ""]:
        """The same loss without a graph; two calls within a step see the same dropout."""
        ...

    def values(self) -> Float[Tensor, "B"]:
        """The losses of the single examples, without a graph; `value()` is their mean."""
        ...


@runtime_checkable
class PerExampleObjective(Objective, Protocol):
    """An Objective whose examples are independent of each other, so that each can carry a perturbation of its own."""

    @property
    def num_examples(self) -> int:
        """B, the length of what `values()` returns."""
        ...

    @property
    def window(self) -> range:
        """The examples that are in the forward pass being run right now."""
        ...

    def narrow(self, count: int) -> Self:
        """The same objective over the first `count` examples, in one forward pass."""
        ...


class Team(Protocol):
    """Processes that share each batch, and how a gradient is summed over them."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def add_gradient(self, loss: PerExampleLoss, batch: Batch, scale: float, *, last: bool) -> Tensor:
        """Adds the gradient of `scale` times the summed losses of this process's rows, and returns that number, ().

        Args:
            loss: of the rows; a NonFiniteLossError on one process is raised on all.
            batch: this process's rows. All processes call this equally often.
            scale: factor of the losses.
            last: whether this is the last pass of the step, after which the gradients are summed over the processes.
        """
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of one tensor of each process, on all of them."""
        ...


@runtime_checkable
class ShareableObjective(Objective, Protocol):
    """An Objective that several processes can compute together."""

    def share(self, team: Team) -> Objective:
        """The same objective, of which each process computes its part; loss and gradient are those of the whole."""
        ...


class NonFiniteLossError(ValueError):
    """A loss was NaN or infinite; the step was neither recorded nor applied."""


def finite(loss: PerExampleLoss, step: int, rows: Sequence[int]) -> PerExampleLoss:
    """`loss`, which raises NonFiniteLossError where a value is not finite, before a gradient or an update is made of it.

    Args:
        loss: of a batch.
        step: its number, for the message.
        rows: of the data that are in the batch, for the message.
    """

    def checked(model: nn.Module, batch: Batch) -> Tensor:
        losses = loss(model, batch)
        if not torch.isfinite(losses).all():
            some = ", ".join(str(row) for row in rows[:4]) + (", ..." if rows[4:] else "")
            raise NonFiniteLossError(
                f"the loss of step {step} is not finite in the batch of training rows {some}; the step was not applied. "
                "Lower the learning rate or sigma, or look at these rows and at the weights that training starts from."
            )
        return losses

    return checked


class ClipGradient:
    """An Objective whose gradient is scaled down to a norm; wraps another.

    Args:
        objective: the loss.
        parameters: whose gradients are clipped together.
        max_norm: the largest Euclidean norm that is let through.

    Source: Pascanu et al. 2013, algorithm 1; torch.nn.utils.clip_grad_norm_.
    """

    def __init__(self, objective: Objective, parameters: Iterable[nn.Parameter], max_norm: float) -> None:
        if not 0 < max_norm < float("inf"):
            raise ValueError(
                f"`max_norm` must be a finite positive number; got {max_norm}. Leave the wrapper out instead."
            )
        self.objective = objective
        self.parameters = list(parameters)
        self.max_norm = max_norm

    def __call__(self) -> Float[Tensor, ""]:
        """Fills the gradients, clips them and returns the loss."""
        loss = self.objective()
        nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        return loss

    def value(self) -> Float[Tensor, ""]:
        """That of the wrapped objective."""
        return self.objective.value()

    def values(self) -> Float[Tensor, "B"]:
        """Those of the wrapped objective."""
        return self.objective.values()

    def share(self, team: Team) -> "ClipGradient":
        """Clips the gradient that is summed over the processes, by the norm of the whole."""
        if not isinstance(self.objective, ShareableObjective):
            raise ValueError(
                f"{type(self.objective).__name__} cannot be shared by several processes: it has no `share(team)`."
            )
        return ClipGradient(self.objective.share(team), self.parameters, self.max_norm)


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
        sizes = {name: len(rows) for name, rows in batch.items()}
        if not sizes or len(set(sizes.values())) != 1 or 0 in sizes.values():
            raise ValueError(f"`batch` must hold tensors of one common, positive number of rows; got rows {sizes}.")
        if micro_batch is not None and micro_batch < 1:
            raise ValueError(f"`micro_batch` must be at least 1 row; got {micro_batch}. Pass None for the whole batch.")
        self.model = model
        self.batch = batch
        self.loss = loss
        self.micro_batch = micro_batch
        self.dropout_seed = dropout_seed
        self.meter = meter if meter is not None else Meter()
        self.num_examples = next(iter(sizes.values()))
        self.window = range(self.num_examples)

    def __call__(self) -> Float[Tensor, ""]:
        """Clears the gradients of the model, fills them in micro-batches and returns the mean loss."""
        self.model.zero_grad(set_to_none=True)
        total = torch.zeros(())
        with torch.enable_grad(), closing(self._forward()) as forward:
            for losses in forward:
                part = losses.sum() / self.num_examples
                part.backward()
                self.meter.backward_passes += len(losses)
                total = total.to(part.device) + part.detach()
        return total

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

    def share(self, team: Team) -> "SharedObjective":
        """The same objective, each process with its part of the rows."""
        return SharedObjective(self, team)

    def _forward(self) -> Generator[Tensor, None, None]:
        rows = self.micro_batch or self.num_examples
        with seeded_random(self.dropout_seed, next(iter(self.batch.values())).device):
            for start in range(0, self.num_examples, rows):
                self.window = range(start, min(start + rows, self.num_examples))
                part = {name: tensor[self.window.start : self.window.stop] for name, tensor in self.batch.items()}
                losses = _one_per_row(self.loss(self.model, part), len(self.window))
                _count_forward(self.meter, part, len(self.window))
                yield losses


class SharedObjective:
    """The mean loss over a batch of which each of several processes computes a part.

    Loss, gradient and values are those of the whole batch, on every process, up to the rounding of sums. What is not
    the same: batch statistics are those of a process's own rows, and each process draws dropout masks of its own. The
    meter counts the whole batch.

    Args:
        whole: the batch; its micro-batch is the rows of a pass on one process.
        team: the processes.

    Attributes:
        num_examples: B, of the whole batch.
    """

    def __init__(self, whole: BatchObjective, team: Team) -> None:
        self.num_examples = whole.num_examples
        self._whole = whole
        self._team = team
        self._seed = (whole.dropout_seed + team.rank * _SEED_STRIDE) % (1 << 63)
        self._device = next(iter(whole.batch.values())).device
        self._passes = _passes(whole.num_examples, whole.micro_batch, team)

    def __call__(self) -> Float[Tensor, ""]:
        """Clears the gradients, fills them with those of the whole batch and returns its mean loss."""
        self._whole.model.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)
        with torch.enable_grad(), seeded_random(self._seed, self._device):
            for number, (rows, counts) in enumerate(self._passes, 1):
                scale = counts / self.num_examples
                last = number == len(self._passes)
                total = total + self._team.add_gradient(self._losses, self._rows(rows), scale, last=last)
        _count_forward(self._whole.meter, self._whole.batch, self.num_examples)
        self._whole.meter.backward_passes += self.num_examples
        return self._team.sum(total)

    @torch.no_grad()
    def value(self) -> Float[Tensor, ""]:
        """The mean loss without a graph."""
        return self.values().mean()

    @torch.no_grad()
    def values(self) -> Float[Tensor, "B"]:
        """The losses of all examples of the batch, without a graph."""
        found = None
        with seeded_random(self._seed, self._device):
            for rows, counts in self._passes:
                losses = self._losses(self._whole.model, self._rows(rows))
                found = losses.new_zeros(self.num_examples) if found is None else found
                if counts:
                    found[rows.start : rows.stop] = losses
        _count_forward(self._whole.meter, self._whole.batch, self.num_examples)
        assert found is not None, "a batch has at least one pass"
        return self._team.sum(found)

    def share(self, team: Team) -> "SharedObjective":
        """The same batch, shared by other processes."""
        return SharedObjective(self._whole, team)

    def _losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return _one_per_row(self._whole.loss(model, batch), len(next(iter(batch.values()))))

    def _rows(self, rows: range) -> Batch:
        return {name: tensor[rows.start : rows.stop] for name, tensor in self._whole.batch.items()}


def _passes(num_examples: int, micro_batch: int | None, team: Team) -> list[tuple[range, bool]]:
    """Rows of each pass of a process, and whether they count.

    All processes make equally many; one that has run out of rows repeats one, which does not count.
    """
    start, stop = (num_examples * rank // team.size for rank in (team.rank, team.rank + 1))
    longest = -(-num_examples // team.size)
    step = min(micro_batch or longest, longest)
    spare = min(start, num_examples - 1)
    parts = [range(one, min(one + step, stop)) for one in range(start, start + longest, step)]
    return [(part, True) if len(part) else (range(spare, spare + 1), False) for part in parts]


def _one_per_row(losses: Tensor, num_rows: int) -> Tensor:
    if losses.shape != (num_rows,):
        raise ValueError(
            f"`loss` must return one loss per example, shape ({num_rows},); got {tuple(losses.shape)}. "
            "Use reduction='none' and average over everything but the rows."
        )
    return losses


def _count_forward(meter: Meter, batch: Batch, num_rows: int) -> None:
    meter.example_forwards += num_rows
    mask = batch.get("attention_mask")
    meter.tokens += int(mask.sum()) if mask is not None else 0


@contextmanager
def seeded_random(seed: int, device: torch.device) -> Iterator[None]:
    """Inside the block, what reads torch's default generators sees a state made from `seed`; afterwards the old one."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        for one in cuda:
            torch.cuda.set_rng_state(torch.Generator(one).manual_seed(seed).get_state(), one)
        yield
