"""The config of a classifier for whole numbers. It imports no torch, so that listing recipes is quick."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from featherlight.recipes.classify.config import ClassifyConfig
from featherlight.recipes.optimizer_config import BY_GRADIENT

if TYPE_CHECKING:
    from featherlight.trainer import Experiment, Workspace

_METHODS = tuple(method for method in BY_GRADIENT if method != "schedule_free")


@dataclass(frozen=True, kw_only=True)
class Int8Config:
    """A classifier that is trained in float, and then for whole numbers.

    Args:
        classify: data, network and the training in float, which is left out where `classify.initial` names a run.
        epochs: passes over the training images with weights and activations rounded.
        steps: the same in steps, which takes the place of `epochs`; None counts by epochs.
        lr: learning rate of these, which falls to zero along a cosine; there is no weight decay.
        weight_bits: 8 for an integer program; fewer are simulated only.
        weight_scales: "largest" follows the largest weight of a channel, "learned" learns.
        ranges: of activations: "moving" follows batches, "learned" learns.
        calibration: how ranges start: from "min_max", "percentile" or "least_squares" of some training images.
        calibration_images: how many.
        activations_after: share of these steps after which activations are rounded.
        freeze_after: share after which ranges and statistics of BatchNorm stay as they are.
        keep_float: names of layers that stay in float; there is then no integer program.
        seed: of weights, order and dropout, in the place of `classify.seed`.
    """

    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    epochs: int = 2
    steps: int | None = None
    lr: float = 1e-4
    weight_bits: int = 8
    weight_scales: Literal["largest", "learned"] = "largest"
    ranges: Literal["moving", "learned"] = "moving"
    calibration: Literal["min_max", "percentile", "least_squares"] = "least_squares"
    calibration_images: int = 512
    activations_after: float = 0.0
    freeze_after: float = 0.7
    keep_float: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "calibration_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}.")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"`lr` must be a finite positive number; got {self.lr}.")
        if not 2 <= self.weight_bits <= 8:
            raise ValueError(f"`weight_bits` must be from 2 to 8; got {self.weight_bits}.")
        if not 0 <= self.activations_after <= self.freeze_after <= 1:
            raise ValueError(
                "`activations_after` and `freeze_after` must lie in [0, 1], in this order; got "
                f"{self.activations_after} and {self.freeze_after}."
            )
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"`seed` must be in [0, 2**63); got {self.seed}.")
        if self.classify.method not in _METHODS:
            raise ValueError(
                f"`classify.method` must be one of {', '.join(_METHODS)}: rounding is trained through by gradients, and "
                f"statistics stay as they are at the end, while schedule_free would take them anew; got {self.classify.method!r}."
            )

    def experiment(self, workspace: "Workspace") -> "Experiment":
        """Loads the images and builds the network."""
        from featherlight.recipes.int8.experiment import build_experiment

        return build_experiment(self, workspace)
