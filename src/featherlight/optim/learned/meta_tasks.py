"""Tasks of a problem class: many problems of one shape, kept as one batch.

Legend of shapes: T tasks. Points are tensors of shape (T, ...), one for each parameter of a task.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from featherlight.optim.learned.protocols import Tensors

TaskLoss = Callable[[Tensors, Mapping[str, Tensor]], Tensor]
"""`loss(points, data) -> ()` of a single task, written without a task axis."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tasks:
    """T tasks: where each starts, its data and its loss.

    Args:
        starts: the parameters before the first step, (T, ...) each.
        loss: of one task, from its points and its data; it is run by `torch.func.vmap`.
        data: tensors by name with a row for each task, (T, ...).
        shared: tensors by name that all tasks read alike.
        best: the lowest loss of each task, (T,); None where it is not known.

    Raises:
        ValueError: there is no task, or tensors have different numbers of tasks.
    """

    starts: Tensors
    loss: TaskLoss
    data: Mapping[str, Tensor] = field(default_factory=dict)
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    best: Float[Tensor, "T"] | None = None

    def __post_init__(self) -> None:
        named = {f"starts[{n}]": one for n, one in enumerate(self.starts)} | dict(self.data)
        named |= {} if self.best is None else {"best": self.best}
        counts = {name: len(one) if one.ndim else 0 for name, one in named.items()}
        if not self.starts or len(set(counts.values())) != 1 or 0 in counts.values():
            raise ValueError(
                f"tasks need `starts`, and all tensors must have one row for each task, of which there is at least one; got "
                f"{counts}. Put what all tasks share into `shared`."
            )

    def __len__(self) -> int:
        return len(self.starts[0])

    def losses(self, points: Tensors) -> Float[Tensor, "T"]:
        """The loss of each task at its own points, with a graph where gradients are on."""
        data = dict(self.data)
        axes = ((0,) * len(points), dict.fromkeys(data, 0), dict.fromkeys(self.shared))
        return torch.func.vmap(self._one_loss, in_dims=axes)(points, data, dict(self.shared))

    def losses_and_gradients(self, points: Tensors) -> tuple[Float[Tensor, "T"], Tensors]:
        """Loss and gradient of each task.

        Both are differentiable in the points where gradients are on and the points have a graph; else they have none.
        """
        keep = torch.is_grad_enabled() and any(p.requires_grad for p in points)
        inputs = tuple(p if keep and p.requires_grad else p.detach().requires_grad_() for p in points)
        with torch.enable_grad():
            losses = self.losses(inputs)
            gradients = torch.autograd.grad(losses.sum(), inputs, create_graph=keep, materialize_grads=True)
        return (losses if keep else losses.detach()), gradients

    def at(self, rows: Int[Tensor, "t"]) -> "Tasks":
        """Some of the tasks."""
        return replace(
            self,
            starts=tuple(p[rows] for p in self.starts),
            data={name: one[rows] for name, one in self.data.items()},
            best=None if self.best is None else self.best[rows],
        )

    def to(self, device: torch.device | str) -> "Tasks":
        """The same tasks on another device."""
        return replace(
            self,
            starts=tuple(p.to(device) for p in self.starts),
            data={name: one.to(device) for name, one in self.data.items()},
            shared={name: one.to(device) for name, one in self.shared.items()},
            best=None if self.best is None else self.best.to(device),
        )

    def _one_loss(self, points: Tensors, data: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> Tensor:
        return self.loss(points, {**data, **shared})


@runtime_checkable
class ProblemClass(Protocol):
    """Problems of one kind, drawn at random: what a rule is learned on."""

    def sample(self, count: int, generator: torch.Generator) -> Tasks:
        """So many tasks; the same for a generator in the same state.

        Args:
            count: how many.
            generator: where all randomness comes from.
        """
        ...
