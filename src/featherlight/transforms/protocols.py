"""The seam of transforms: what a model is put through while it is trained, and what is left when it is done."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class ModelTransform(Protocol):
    """Changes a model in place, in three steps. Whatever a save must keep of it is a parameter or a buffer of the model.

    A run calls `prepare` before it makes the optimizer and before it loads a save, `update` before each step, and `convert`
    after the last one. Several stack on one model: they are prepared and updated in order, and converted the other way round.
    """

    def prepare(self, model: nn.Module) -> None:
        """Installs what is needed, as parametrizations or wrapped submodules, the same each time.

        Raises:
            ValueError: the model holds something that cannot be transformed.
        """
        ...

    def update(self, model: nn.Module, progress: float) -> None:
        """Follows a schedule.

        Args:
            model: the prepared model.
            progress: the share of the budget that is used up before this step, in [0, 1].
        """
        ...

    def convert(self, model: nn.Module) -> None:
        """Bakes the result into plain modules and tensors, and leaves no trace of the transform."""
        ...


class TransformStack:
    """Several transforms as one.

    Args:
        transforms: in the order in which a weight goes through them.

    Attributes:
        transforms: as given.
    """

    def __init__(self, transforms: Sequence[ModelTransform]) -> None:
        self.transforms = tuple(transforms)

    def prepare(self, model: nn.Module) -> None:
        """Prepares the model for each, in order."""
        for transform in self.transforms:
            transform.prepare(model)

    def update(self, model: nn.Module, progress: float) -> None:
        """Moves each along, in order."""
        for transform in self.transforms:
            transform.update(model, progress)

    def convert(self, model: nn.Module) -> None:
        """Bakes each in, the last one first."""
        for transform in reversed(self.transforms):
            transform.convert(model)
