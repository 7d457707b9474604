"""How the weights are moved, as configs of every family say it. It imports no torch, so that listing recipes is quick."""

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class OptimizerConfig:
    """How the weights are moved.

    Args:
        lr: learning rate; None takes the method's default.
        sigma: scale of the perturbation of forward-only methods.
        directions: directions a batch; None is one for each example. For `zo`.
        head_scale: how much further a head is perturbed and moved than the rest of the model. For `zo`.
        normalize: whether a step is divided by the spread of the slopes, which makes `lr` a distance. For `zo`.
        weight_decay: decoupled.
        schedule: "constant", or "linear" or "cosine" to zero over the budget.
        clip: largest norm of the gradient; None does not clip. For `adamw`.
        shaping: "raw" goes by the losses of both points of a pair, "ranks" by their ranks in the batch. For `zo`.
    """

    lr: float | None = None
    sigma: float = 1e-3
    directions: int | None = None
    head_scale: float = 10.0
    normalize: bool = True
    weight_decay: float = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    clip: float | None = None
    shaping: Literal["raw", "ranks"] = "raw"

    def __post_init__(self) -> None:
        for name in ("lr", "sigma", "head_scale", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"`{name}` must be a finite positive number; got {value}.")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"`weight_decay` must be a finite number of at least 0; got {self.weight_decay}.")
        if self.directions is not None and not 1 <= self.directions <= 4096:
            raise ValueError(f"`directions` must be between 1 and 4096 a batch; got {self.directions}.")
