"""Several objectives that are taken in turn within one step, each by an optimizer of its own."""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from featherlight.objective.protocols import Objective


class ObjectivesInTurn:
    """Objectives of several players, such as a generator and a discriminator; `OptimizersInTurn` steps on them.

    To whoever takes it for a single objective, it is the first of them: its value is the run's loss.

    Args:
        parts: make the objectives, each when its turn comes, so that it can be of what the ones before it have done. They
            are of different parameters.

    Attributes:
        parts: as given.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, parts: Sequence[Callable[[], Objective]]) -> None:
        if not parts:
            raise ValueError("`parts` is empty, so there would be no loss. Give a function for each objective.")
        self.parts = tuple(parts)

    def __call__(self) -> Float[Tensor, ""]:
        """Fills the gradients of all parts in turn, with no step between them, and returns the loss of the first."""
        losses = [part()() for part in self.parts]
        return losses[0]

    def value(self) -> Float[Tensor, ""]:
        """That of the first part."""
        return self.parts[0]().value()

    def values(self) -> Float[Tensor, "B"]:
        """Those of the first part."""
        return self.parts[0]().values()
