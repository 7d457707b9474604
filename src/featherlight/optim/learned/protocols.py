"""What the optimizer, meta-training and the parts of a rule ask of each other."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from featherlight.optim.learned.inverses import Inverse, MirrorInverse

Tensors = tuple[Tensor, ...]
"""One tensor for each parameter, in order."""


@runtime_checkable
class UpdateRule(Protocol):
    """A step from gradients and what is remembered of the past: two pure functions of tensors.

    Both are differentiable in the rule's own tensors and in all that they are handed, so a rule can be unrolled, and they
    write nothing in place and look at no values, so it can be run by `torch.func.vmap` over a batch of tasks. The state is a
    NamedTuple, or another nesting of tuples, of tensors only.
    """

    def init(self, points: Tensors) -> Any:
        """The state before the first step.

        Args:
            points: the parameters, of which shapes, dtypes, devices and values may be used.

        Raises:
            ValueError: the rule is made for tensors of other shapes.
        """
        ...

    def update(self, gradients: Tensors, state: Any, points: Tensors) -> tuple[Tensors, Any]:
        """The steps, which are to be added to the points, and the next state.

        Args:
            gradients: at the points, of their shapes.
            state: of `init` or the update before.
            points: the parameters as they are now. Between two updates they may have moved by something else than the
                step; what a rule remembers of past steps, it takes from the points.
        """
        ...


@runtime_checkable
class DescribedRule(UpdateRule, Protocol):
    """A rule that can be saved: a module that says what it is built of."""

    def description(self) -> dict[str, Any]:
        """The options that it is built from, as JSON has them, or parts with a description of their own."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """All that it has learned, as torch modules have it."""
        ...


class Terms(NamedTuple):
    """What the memory of a rule makes of a gradient: the program's linear term, and where its metric is centred.

    Attributes:
        linear: m of `min m'd + |d - drift|^2_M / 2`.
        drift: the step that is taken where m is 0; None is no step.
    """

    linear: Tensors
    drift: Tensors | None = None


@runtime_checkable
class MemoryPart(Protocol):
    """What of the past goes into a step."""

    def init(self, points: Tensors) -> Any:
        """The state before the first step."""
        ...

    def update(self, gradients: Tensors, state: Any, points: Tensors) -> tuple[Terms, Any]:
        """The linear term and drift of this step's program, and the next state."""
        ...

    def description(self) -> dict[str, Any]:
        """The options that it is built from, as JSON has them."""
        ...


@runtime_checkable
class MetricPart(Protocol):
    """How far a step goes in which direction."""

    def init(self, points: Tensors) -> Any:
        """The state before the first step; raises ValueError for tensors of other shapes than it is made for."""
        ...

    def update(
        self, gradients: Tensors, state: Any, points: Tensors
    ) -> tuple[tuple[Inverse | MirrorInverse, ...], Any]:
        """The inverse metric of each tensor, and the next state."""
        ...

    def description(self) -> dict[str, Any]:
        """The options that it is built from, as JSON has them."""
        ...


def wide(tensors: Sequence[Tensor]) -> Tensors:
    """The tensors in at least float32, which a rule computes in."""
    return tuple(one.to(torch.promote_types(one.dtype, torch.float32)) for one in tensors)
