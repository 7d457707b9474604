"""The configs of autoencoders with a vector quantizer. They import no torch, so that listing recipes is quick."""

from dataclasses import field
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from featherlight.recipes.vq.quantizer_config import QuantizerConfig

if TYPE_CHECKING:
    from featherlight.trainer import Experiment, Workspace

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class NetworkConfig:
    """Encoder and decoder, which mirror each other.

    Args:
        strides: by how much each strided convolution shrinks the sizes; even numbers.
        width: channels of the residual blocks.
        blocks: residual blocks.
        block_width: channels inside them.
        dilations: of the residual blocks in turn.
    """

    strides: tuple[int, ...] = (2, 2)
    width: int = 64
    blocks: int = 2
    block_width: int = 32
    dilations: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "block_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"`network.{name}` must be at least 1; got {getattr(self, name)}.")
        if any(stride < 2 or stride % 2 for stride in self.strides):
            raise ValueError(f"`network.strides` must be even numbers from 2; got {list(self.strides)}.")
        if not self.dilations or min(self.dilations) < 1:
            raise ValueError(f"`network.dilations` must be one or more numbers from 1; got {list(self.dilations)}.")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class AdversaryConfig:
    """A discriminator of patches that learns beside the autoencoder, which learns to deceive it.

    Args:
        weight: of the adversarial term in the autoencoder's loss.
        start: share of the steps after which the autoencoder heeds it; it learns from the first step on.
        width: channels of its first convolution.
        halvings: of the size, by its convolutions.
        lr_scale: its learning rate over that of the autoencoder.
    """

    weight: float = 0.1
    start: float = 0.3
    width: int = 32
    halvings: int = 2
    lr_scale: float = 1.0

    def __post_init__(self) -> None:
        if not (self.weight > 0 and self.lr_scale > 0):
            raise ValueError(
                f"`adversary.weight` and `adversary.lr_scale` must be positive; got {self.weight} and {self.lr_scale}. To train "
                "without an adversary, set `adversary` to none."
            )
        if not 0 <= self.start < 1:
            raise ValueError(f"`adversary.start` is a share of the steps and must lie in [0, 1); got {self.start}.")
        if min(self.width, self.halvings) < 1:
            raise ValueError(
                f"`adversary.width` and `adversary.halvings` must be at least 1; got {self.width} and {self.halvings}."
            )


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PriorConfig:
    """A causal Transformer that learns the codes when the autoencoder has been trained.

    Args:
        epochs: passes over the training data.
        steps: budget in steps, which takes the place of `epochs`; None counts by epochs.
        width: features of a token.
        blocks: attention and feed-forward layers.
        heads: of the attention.
        dropout: share of features that is dropped.
        lr: learning rate, which falls to zero along a cosine.
        samples: how many images or sounds it makes for the report.
        temperature: of the samples; below 1 likely codes become likelier.
    """

    epochs: int = 10
    steps: int | None = None
    width: int = 128
    blocks: int = 3
    heads: int = 4
    dropout: float = 0.1
    lr: float = 1e-3
    samples: int = 32
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "width", "blocks", "heads", "samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`prior.{name}` must be at least 1; got {value}.")
        if self.width % self.heads:
            raise ValueError(f"`prior.heads` must divide `prior.width`; got {self.heads} and {self.width}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`prior.dropout` must lie in [0, 1); got {self.dropout}.")
        if not (0 < self.lr < float("inf") and 0 < self.temperature < float("inf")):
            raise ValueError(
                f"`prior.lr` and `prior.temperature` must be finite and positive; got {self.lr} and {self.temperature}."
            )


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class AdamWConfig:
    """How the weights are moved: by AdamW.

    Args:
        lr: learning rate.
        weight_decay: decoupled; the quantizer has none.
        schedule: "constant", or "linear" or "cosine" to zero over the budget.
        clip: largest norm of the gradient; None does not clip.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    clip: float | None = None

    def __post_init__(self) -> None:
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"`optimizer.{name}` must be a finite positive number; got {value}.")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"`optimizer.weight_decay` must be finite and at least 0; got {self.weight_decay}.")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainingConfig:
    """What all autoencoders have in common.

    Args:
        quantizer: what stands between encoder and decoder.
        network: encoder and decoder.
        prior: learns the codes in a second stage; None has no such stage. It is left out, too, where codes are mixed in
            shares that cannot be counted.
        valid_fraction: share of the training data that is split off where there are no validation data.
        epochs: passes over the training data.
        steps: budget in steps, which takes the place of `epochs`; None counts by epochs.
        batch: examples a step.
        micro_batch: examples a forward pass; None runs the batch at once.
        evaluations: how often the validation data are looked at in a run.
        evaluated: validation examples that are looked at.
        seed: of weights, order, crops and all else that is drawn.
        device: "auto", "cpu", "cuda" or "mps".
        optimizer: how the weights are moved.
    """

    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    prior: PriorConfig | None = field(default_factory=PriorConfig)
    valid_fraction: float = 0.1
    epochs: int = 10
    steps: int | None = None
    batch: int = 64
    micro_batch: int | None = None
    evaluations: int = 10
    evaluated: int = 1000
    seed: int = 0
    device: str = "auto"
    optimizer: AdamWConfig = field(default_factory=AdamWConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch", "micro_batch", "evaluations", "evaluated"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}.")
        if not 0 < self.valid_fraction < 1:
            raise ValueError(f"`valid_fraction` must lie between 0 and 1; got {self.valid_fraction}.")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"`seed` must be in [0, 2**63); got {self.seed}.")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ImageVqConfig(TrainingConfig):
    """An autoencoder of images.

    Args:
        data: "digits", "mnist", "cifar10", "gtsrb" or "bsds"; the path of a NumPy archive (.npz), of a folder with a
            subfolder of images for each class, or with `crop` of any folder of images.
        crop: side in pixels of the squares that are cut at random from images of any size; None takes images whole, which
            must then be of one size.
        short_side: photographs are shrunk first so that their shorter side has so many pixels; None takes them as they are.
        gradients: weight of the differences between neighbouring pixels, at three sizes, in the loss; stands for a
            perceptual term, and needs no pretrained network.
        adversary: a discriminator that learns beside the autoencoder; None has none.
    """

    data: str = "digits"
    crop: int | None = None
    short_side: int | None = None
    gradients: float = 0.0
    adversary: AdversaryConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop is not None and self.crop < 1:
            raise ValueError(f"`crop` must be at least 1 pixel; got {self.crop}.")
        if self.short_side is not None and (self.crop is None or self.short_side < self.crop):
            raise ValueError(
                f"`short_side` is what photographs are shrunk to before squares of `crop` pixels are cut from them, so it must "
                f"be at least `crop`; got {self.short_side} and {self.crop}."
            )
        if not 0 <= self.gradients < float("inf"):
            raise ValueError(f"`gradients` must be finite and at least 0; got {self.gradients}.")

    def experiment(self, workspace: "Workspace") -> "Experiment":
        """Loads the images and builds the networks."""
        from featherlight.recipes.vq.experiment import build_experiment
        from featherlight.recipes.vq.images import image_task

        return build_experiment(self, image_task(self, workspace.display), workspace)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class AudioVqConfig(TrainingConfig):
    """An autoencoder of sound.

    Args:
        data: "tones", which are synthesized and no recordings; or the path of a folder of wav files of one rate.
        length: samples of a window.
        spectra: weight of the differences of spectra, at three lengths of window, in the loss.
    """

    data: str = "tones"
    length: int = 4096
    spectra: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 1:
            raise ValueError(f"`length` must be at least 1 sample; got {self.length}.")
        if not 0 <= self.spectra < float("inf"):
            raise ValueError(f"`spectra` must be finite and at least 0; got {self.spectra}.")

    def experiment(self, workspace: "Workspace") -> "Experiment":
        """Loads the recordings and builds the networks."""
        from featherlight.recipes.vq.experiment import build_experiment
        from featherlight.recipes.vq.sounds import sound_task

        return build_experiment(self, sound_task(self, workspace.display), workspace)
