"""What optimizers and objectives ask of each other: the loss at one batch, with or without a gradient."""

from collections.abc import Callable, Mapping
from typing import Protocol, Self, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from featherlight.precision import LossScaler

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


@runtime_checkable
class ScalableObjective(Objective, Protocol):
    """An Objective whose gradient can be computed from a multiple of the loss, so that small entries survive float16."""

    def scaled(self, scaler: LossScaler) -> Objective:
        """The same objective: same loss and gradient, the latter by way of the scaler, which is told if it overflowed."""
        ...
