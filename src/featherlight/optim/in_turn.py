"""Several optimizers as one, each with an objective of its own."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from featherlight.objective import Objective, ObjectivesInTurn
from featherlight.optim._several import SeveralOptimizers


class OptimizersInTurn(SeveralOptimizers):
    """Steps with each of several optimizers in turn on its part of a `featherlight.objective.ObjectivesInTurn`.

    Schedulers, saves and loads see one optimizer: the groups of all, in order, and one state.

    Args:
        optimizers: of different parameters, one for each part of the objective; they are not to be used by themselves any
            more.

    Attributes:
        optimizers: as given; they share this one's groups and state.
        replayable: False, whatever they are.

    Raises:
        ValueError: no optimizers, or a parameter that two of them have.

    Source: simultaneous training of adversaries goes back to Goodfellow et al. 2014, algorithm 1 (with one step of each).

    The optimizers keep all they must not lose in `state` and `param_groups`, as torch's do.
    """

    def step(self, closure: Objective) -> Float[Tensor, ""]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of each optimizer; returns the loss of the first.

        Args:
            closure: a `featherlight.objective.ObjectivesInTurn` with a part for each optimizer; of one optimizer, any objective.

        Raises:
            ValueError: it is none, or has another number of parts.
        """
        if not isinstance(closure, Objective):
            seen = "nothing" if closure is None else f"a {type(closure).__name__}"
            raise ValueError(
                f"OptimizersInTurn.step needs an Objective with a part for each of its optimizers; got {seen}."
            )
        parts = closure.parts if isinstance(closure, ObjectivesInTurn) else (lambda: closure,)
        if len(parts) != len(self.optimizers):
            raise ValueError(
                f"OptimizersInTurn.step needs an Objective with a part for each of its {len(self.optimizers)} optimizers; got "
                f"{len(parts)}. Pass featherlight.objective.ObjectivesInTurn([...]) with a function for each."
            )
        losses: list[Any] = [one.step(part()) for one, part in zip(self.optimizers, parts, strict=True)]  # pyright: ignore
        return losses[0]
