"""How the weights are moved, as configs of every family say it. It imports no torch, so that listing recipes is quick."""

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

BY_GRADIENT = ("adamw", "prodigy", "muon", "schedule_free")
"""The methods that go by gradients; the others run forward passes alone."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class OptimizerConfig:
    """How the weights are moved.

    Args:
        lr: learning rate; None takes the method's default. For `prodigy` a factor on the step size that it finds.
        sigma: scale of the perturbation of forward-only methods; None is 1e-3, or 1e-2 on a metric, which ties below.
        directions: directions a batch; None is one for each example, of the small batches for `svrg`, or 8 for `fzoo`, each of
            which costs it a pass. For forward-only methods but `agzo` and `mezo`, which take one.
        head_scale: how much further a head is perturbed and moved than the rest of the model. For forward-only methods but
            `mezo`.
        normalize: whether a step is divided by the spread of the slopes, which makes `lr` a distance; always for `fzoo`, never
            for `mezo`. For forward-only methods.
        anchor_lr: learning rate of anchor steps, `lr` being that of the others; None is ten times `lr`. For `svrg`.
        anchor_every: steps from one anchor to the next. For `svrg`.
        anchor_batch: examples an anchor is measured on, more than the data has being all; None is all. For `svrg`.
        weight_decay: decoupled.
        schedule: "constant", or "linear" or "cosine" to zero over the budget; `schedule_free` is always constant.
        clip: largest norm of the gradient; None does not clip. For methods that go by gradients.
        shaping: "raw" goes by the losses of both points of a pair, "ranks" by their ranks in the batch. For `zo`.
    """

    lr: float | None = None
    sigma: float | None = None
    directions: int | None = None
    head_scale: float = 10.0
    normalize: bool = True
    anchor_lr: float | None = None
    anchor_every: int = 2
    anchor_batch: int | None = 512
    weight_decay: float = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    clip: float | None = None
    shaping: Literal["raw", "ranks"] = "raw"

    def __post_init__(self) -> None:
        for name in ("lr", "sigma", "head_scale", "anchor_lr", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"`{name}` must be a finite positive number; got {value}.")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"`weight_decay` must be a finite number of at least 0; got {self.weight_decay}.")
        if self.anchor_every < 1:
            raise ValueError(
                f"`anchor_every` must be at least 1 step from one anchor to the next; got {self.anchor_every}. At 1 every step "
                "is one; use the method `zo` to have none."
            )
        if self.anchor_batch is not None and self.anchor_batch < 1:
            raise ValueError(
                f"`anchor_batch` must be at least 1 example; got {self.anchor_batch}. Turn it off (None) to take all training "
                "rows."
            )
        if self.directions is not None and not 1 <= self.directions <= 4096:
            raise ValueError(f"`directions` must be between 1 and 4096 a batch; got {self.directions}.")
