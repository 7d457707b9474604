"""The gradient of an objective, scaled down to a norm."""

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor, nn

from featherlight.objective.protocols import Objective, ScalableObjective, ShareableObjective, Team
from featherlight.precision import LossScaler


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

    def scaled(self, scaler: LossScaler) -> "ClipGradient":
        """Clips the gradient after it was divided by the scale."""
        if not isinstance(self.objective, ScalableObjective):
            raise ValueError(
                f"{type(self.objective).__name__} cannot be computed at a loss scale: it has no `scaled(scaler)`."
            )
        return ClipGradient(self.objective.scaled(scaler), self.parameters, self.max_norm)
