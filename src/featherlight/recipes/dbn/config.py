"""The config of a deep belief net. It imports no torch, so that listing recipes is quick."""

from dataclasses import field
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

if TYPE_CHECKING:
    from featherlight.trainer import Experiment, Workspace

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PretrainingConfig:
    """How each layer learns by itself.

    Args:
        epochs: passes over the training images for each layer.
        lr: learning rate, which falls to zero.
        momentum: of the steps.
        weight_decay: of the weights, as a penalty on their squares; biases have none.
        chains: "data" starts the chains of a step at its images, "persistent" where they were.
        steps: rounds of Gibbs sampling a step.
    """

    epochs: int = 20
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 2e-4
    chains: Literal["data", "persistent"] = "data"
    steps: int = 1

    def __post_init__(self) -> None:
        _check_counts("pretraining", epochs=self.epochs, steps=self.steps)
        _check_rates("pretraining", self.lr, self.weight_decay)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"`pretraining.momentum` must lie in [0, 1); got {self.momentum}.")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class UpDownConfig:
    """Fine-tuning of all layers as a generative model, by contrastive wake-sleep.

    Args:
        epochs: passes over the training images.
        lr: learning rate, which falls to zero.
        momentum: of the steps.
        chains: of the memory; "persistent" lets them go on where they were, which makes what it draws look like data, and
            "data" starts them at the images of the step.
        steps: rounds of Gibbs sampling in the memory.
    """

    epochs: int = 10
    lr: float = 0.01
    momentum: float = 0.9
    chains: Literal["data", "persistent"] = "persistent"
    steps: int = 3

    def __post_init__(self) -> None:
        _check_counts("up_down", epochs=self.epochs, steps=self.steps)
        _check_rates("up_down", self.lr, 0.0)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"`up_down.momentum` must lie in [0, 1); got {self.momentum}.")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class BackpropConfig:
    """Fine-tuning of a copy of the way up as a classifier, by AdamW.

    Args:
        epochs: passes over the training images.
        lr: learning rate, which falls to zero along a cosine.
        weight_decay: decoupled.
        dropout_inputs: share of pixels that is dropped.
        dropout_hidden: share of hidden units that is dropped.
    """

    epochs: int = 40
    lr: float = 5e-4
    weight_decay: float = 0.0
    dropout_inputs: float = 0.2
    dropout_hidden: float = 0.4

    def __post_init__(self) -> None:
        _check_counts("backprop", epochs=self.epochs)
        _check_rates("backprop", self.lr, self.weight_decay)
        for name in ("dropout_inputs", "dropout_hidden"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`backprop.{name}` must lie in [0, 1); got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DbnConfig:
    """One deep belief net of images.

    Args:
        data: "digits", "mnist", "cifar10" or "gtsrb"; the path of a NumPy archive (.npz) or of a folder of images.
        valid_fraction: share of the training images that is split off where the data have no validation images.
        hidden: units of the hidden layers, two or more.
        visible: "binary" takes grey values as probabilities; "gaussian" brings pixels to mean 0 and variance 1.
        pretraining: of each layer by itself.
        up_down: fine-tunes the generative model; None leaves it as the layers learned it.
        backprop: fine-tunes a classifier; None has none, and labels are told by the memory.
        batch: images a step.
        evaluations: how often the validation images are looked at in a stage.
        samples: images of each label that the report shows.
        sample_steps: rounds of Gibbs sampling for them.
        seed: of weights, order, units and dropout.
        device: "auto", "cpu", "cuda" or "mps".
    """

    data: str = "mnist"
    valid_fraction: float = 0.02
    hidden: tuple[int, ...] = (500, 500, 2000)
    visible: Literal["binary", "gaussian"] = "binary"
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    up_down: UpDownConfig | None = field(default_factory=UpDownConfig)
    backprop: BackpropConfig | None = field(default_factory=BackpropConfig)
    batch: int = 100
    evaluations: int = 4
    samples: int = 6
    sample_steps: int = 1000
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("batch", "evaluations", "samples", "sample_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}.")
        if len(self.hidden) < 2 or min(self.hidden) < 1:
            raise ValueError(f"`hidden` must be two or more positive numbers of units; got {list(self.hidden)}.")
        if not 0 < self.valid_fraction < 1:
            raise ValueError(f"`valid_fraction` must lie between 0 and 1; got {self.valid_fraction}.")
        if not 0 <= self.seed < 1 << 62:
            raise ValueError(f"`seed` must be in [0, 2**62); got {self.seed}.")

    def experiment(self, workspace: "Workspace") -> "Experiment":
        """Loads the images and builds the net."""
        from featherlight.recipes.dbn.experiment import build_experiment

        return build_experiment(self, workspace)


def _check_counts(group: str, **counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"`{group}.{name}` must be at least 1; got {value}.")


def _check_rates(group: str, lr: float, weight_decay: float) -> None:
    if not 0 < lr < float("inf"):
        raise ValueError(f"`{group}.lr` must be a finite positive number; got {lr}.")
    if not 0 <= weight_decay < float("inf"):
        raise ValueError(f"`{group}.weight_decay` must be finite and at least 0; got {weight_decay}.")
