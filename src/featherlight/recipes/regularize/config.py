"""The configs of studies. They import no torch, so that listing recipes is quick."""

from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

if TYPE_CHECKING:
    from featherlight.trainer import Experiment, Workspace

_STRICT = ConfigDict(extra="forbid")
NormName = Literal["none", "batch", "instance", "layer", "group"]
"""Normalizations that are compared."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class StudyConfig:
    """What all studies have in common.

    Args:
        data: "digits", "mnist", "cifar10" or "gtsrb"; the path of a NumPy archive (.npz) or of a folder of images.
        valid_fraction: share of the training images that is split off where the data have no validation images.
        images: training images that are used; None takes all.
        epochs: passes over them, for each variant.
        batch: images a step.
        lr: learning rate.
        evaluations: how often the validation images are looked at, for each variant.
        seed: of weights, order and dropout; the same for all variants.
        device: "auto", "cpu", "cuda" or "mps".
    """

    data: str = "digits"
    valid_fraction: float = 0.3
    images: int | None = None
    epochs: int = 20
    batch: int = 64
    lr: float = 1e-3
    evaluations: int = 8
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("images", "epochs", "batch", "evaluations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}.")
        if not 0 < self.valid_fraction < 1:
            raise ValueError(f"`valid_fraction` must lie between 0 and 1; got {self.valid_fraction}.")
        _check_positive("lr", (self.lr,))
        if not 0 <= self.seed < 1 << 62:
            raise ValueError(f"`seed` must be in [0, 2**62); got {self.seed}.")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DropoutConfig(StudyConfig):
    """Dropout in a fully connected network with more weights than its few images can hold down.

    Args:
        shares: of hidden units that are dropped, one variant each.
        hidden: widths of the network.
    """

    shares: tuple[float, ...] = (0.0, 0.25, 0.5)
    hidden: tuple[int, ...] = (300, 100)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shares or not all(0 <= share < 1 for share in self.shares):
            raise ValueError(f"`shares` must be one or more numbers in [0, 1); got {list(self.shares)}.")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"`hidden` must be one or more positive widths; got {list(self.hidden)}.")

    def experiment(self, workspace: "Workspace") -> "Experiment":
        """Loads the images and builds the networks."""
        from featherlight.recipes.regularize.experiment import build_experiment
        from featherlight.recipes.regularize.variants import dropout_study

        return build_experiment(self, lambda images: dropout_study(self, images), workspace)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class NormsConfig(StudyConfig):
    """Normalizations in a small residual network at several sizes of the batch; all see the same images equally often.

    Args:
        norms: one row each; "group" has four groups of channels.
        batches: one column each. The learning rate goes with the root of the batch; `lr` is that at 128.
    """

    norms: tuple[NormName, ...] = ("batch", "instance", "layer", "group", "none")
    batches: tuple[int, ...] = (2, 16, 128)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.norms or not self.batches or min(self.batches) < 2:
            raise ValueError(
                f"`norms` and `batches` must not be empty, and batches have 2 images or more, since batch normalization "
                f"needs two; got {list(self.norms)} and {list(self.batches)}."
            )

    def experiment(self, workspace: "Workspace") -> "Experiment":
        """Loads the images and builds the networks."""
        from featherlight.recipes.regularize.experiment import build_experiment
        from featherlight.recipes.regularize.variants import norms_study

        return build_experiment(self, lambda images: norms_study(self, images), workspace)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DecayConfig(StudyConfig):
    """Decoupled weight decay (AdamW) beside a penalty on squares (Adam), on a grid of learning rates and strengths.

    Args:
        rates: learning rates, one column each.
        decays: strengths for AdamW; those of the penalty are `penalty_scale` times these, one row each.
        penalty_scale: brings the strengths of the penalty to where it works.
    """

    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    decays: tuple[float, ...] = (0.0, 0.01, 0.1, 1.0)
    penalty_scale: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive("rates", self.rates)
        _check_positive("penalty_scale", (self.penalty_scale,))
        if not self.decays or min(self.decays) < 0:
            raise ValueError(f"`decays` must be one or more numbers from 0; got {list(self.decays)}.")

    def experiment(self, workspace: "Workspace") -> "Experiment":
        """Loads the images and builds the networks."""
        from featherlight.recipes.regularize.experiment import build_experiment
        from featherlight.recipes.regularize.variants import decay_study

        return build_experiment(self, lambda images: decay_study(self, images), workspace)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ProdigyConfig(StudyConfig):
    """Prodigy as it comes beside AdamW at several rates, on data that stay and on data that change half-way.

    Args:
        rates: of AdamW, one row each.
    """

    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive("rates", self.rates)

    def experiment(self, workspace: "Workspace") -> "Experiment":
        """Loads the images and builds the networks."""
        from featherlight.recipes.regularize.experiment import build_experiment
        from featherlight.recipes.regularize.variants import prodigy_study

        return build_experiment(self, lambda images: prodigy_study(self, images), workspace)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class StylizeConfig:
    """Normalizations in a small network that makes drawings of photographs, each of a contrast of its own.

    Args:
        data: "bsds", or the path of a folder of photographs.
        valid_fraction: share of the photographs of a folder that is held out.
        side: of the squares that are cut, in pixels.
        lowest_contrast: photographs are drawn towards their mean by a factor between this and 1.
        norms: one network each.
        width: channels of its layers.
        steps: for each network.
        batch: photographs a step.
        lr: learning rate.
        evaluations: how often held-out photographs are looked at, for each network.
        seed: of weights, crops and contrasts; the same for all networks.
        device: "auto", "cpu", "cuda" or "mps".
    """

    data: str = "bsds"
    valid_fraction: float = 0.1
    side: int = 48
    lowest_contrast: float = 0.1
    norms: tuple[NormName, ...] = ("none", "batch", "instance", "layer", "group")
    width: int = 16
    steps: int = 400
    batch: int = 8
    lr: float = 3e-3
    evaluations: int = 4
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("width", "steps", "batch", "evaluations"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}.")
        if self.side < 8:
            raise ValueError(f"`side` must be at least 8 pixels, more than a neighbourhood; got {self.side}.")
        if not 0 < self.lowest_contrast < 1:
            raise ValueError(f"`lowest_contrast` must lie between 0 and 1; got {self.lowest_contrast}.")
        if not self.norms or ("group" in self.norms and self.width % 4):
            raise ValueError(
                f"`norms` must not be empty, and four groups need a `width` that 4 divides; got {list(self.norms)} "
                f"and {self.width}."
            )
        _check_positive("lr", (self.lr,))

    def experiment(self, workspace: "Workspace") -> "Experiment":
        """Reads the photographs and builds the networks."""
        from featherlight.recipes.regularize.stylize import build_experiment

        return build_experiment(self, workspace)


def _check_positive(name: str, values: tuple[float, ...]) -> None:
    if not values or not all(0 < value < float("inf") for value in values):
        raise ValueError(f"`{name}` must be finite positive; got {list(values)}.")
