"""The config of an image classifier. It imports no torch, so that listing recipes is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from featherlight.trainer import Experiment, Workspace


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW and its schedule.

    Args:
        lr: learning rate.
        weight_decay: decoupled.
        schedule: "constant", "linear" or "cosine", to zero over the budget.
        clip: largest norm of the gradient; None does not clip.
    """

    lr: float = 3e-3
    weight_decay: float = 0.01
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    clip: float | None = None

    def __post_init__(self) -> None:
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"`optimizer.{name}` must be a finite positive number; got {value}.")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(
                f"`optimizer.weight_decay` must be a finite number of at least 0; got {self.weight_decay}."
            )


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """One image classifier.

    Args:
        data: "digits", the 8x8 digits of scikit-learn.
        channels: of the convolutions, each at half the size of the one before.
        dropout: share of features that is dropped before the last layer.
        epochs: passes over the training images.
        batch: images a step.
        micro_batch: images a forward pass; None runs the batch at once.
        evaluations: how often the validation images are looked at in a run.
        seed: of weights, order and dropout.
        device: "auto", "cpu", "cuda" or "mps".
        optimizer: how the weights are moved.
    """

    data: Literal["digits"] = "digits"
    channels: tuple[int, ...] = (32, 64)
    dropout: float = 0.2
    epochs: int = 20
    batch: int = 64
    micro_batch: int | None = None
    evaluations: int = 10
    seed: int = 0
    device: str = "auto"
    optimizer: AdamWConfig = field(default_factory=AdamWConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "micro_batch", "evaluations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}.")
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"`channels` must be one or more positive numbers; got {list(self.channels)}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must lie in [0, 1); got {self.dropout}.")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"`seed` must be in [0, 2**63); got {self.seed}.")

    def experiment(self, workspace: Workspace) -> Experiment:
        """Loads the images and builds the network."""
        from featherlight.recipes.classify.experiment import build_experiment

        return build_experiment(self)
