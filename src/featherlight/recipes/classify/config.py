"""The config of an image classifier. It imports no torch, so that listing recipes is quick."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from featherlight.planner.sizes import parse_size
from featherlight.recipes.arithmetic import PrecisionName
from featherlight.recipes.config import from_mapping, split_toml
from featherlight.recipes.optimizer_config import OptimizerConfig

if TYPE_CHECKING:
    from featherlight.trainer import Experiment, Workspace

RECIPE = "classify/digits"
"""The recipe that a config without one is taken to be a variant of; they share their keys."""


NetworkName = Literal[
    "small", "lenet300", "lenet5", "caffe-lenet", "alexnet", "resnet8", "resnet20", "resnet18", "mobilenet", "vit"
]
"""Networks by the names that configs use."""

NormName = Literal["batch", "instance", "layer", "group", "none"]
"""Normalizations by the names that configs use."""

_SCALED = ("alexnet", "resnet8", "resnet20", "resnet18", "mobilenet")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training images are changed, anew each time they are looked at.

    Args:
        shift: an image is moved by up to so many pixels each way; what comes in from outside is black.
        flip: whether half of the images are mirrored, left to right. Not where that makes another class of them, as with
            digits and traffic signs.
    """

    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ValueError(f"`shift` must be at least 0 pixels; got {self.shift}.")


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """One image classifier.

    Args:
        data: "digits", the 8x8 digits of scikit-learn; "mnist" or "cifar10"; the path of a NumPy archive (.npz) or of a folder.
        classes: the only ones that are learned; empty learns all.
        valid_fraction: share of the training images that is split off where the data have no validation images.
        initial: directory of a run, or of its model, whose network is taken over, with a fresh head if the classes differ;
            None starts from random weights.
        network: "small", three or so convolutions, or one of the classics, which are built for the size of the images;
            `initial` brings its own, as it does all that follow up to `pool`.
        norm: of a classic; None is its own. "small" has `norm_groups`.
        width: what the numbers of channels of "alexnet", "resnet..." and "mobilenet" are multiplied by.
        channels: of the convolutions of "small", each at half the size of the one before.
        norm_groups: groups of channels that are normalized together, in each image by itself; None normalizes over the
            batch. For "small", and for the norm "group" of a classic, where None is 8.
        pool: whether "small" halves sizes by max pooling; else by the convolutions themselves, which is quicker.
        dropout: share of features that is dropped before the last layer.
        method: by gradients "adamw", "prodigy", "muon" or "schedule_free"; by forward passes "zo", "fzoo", "lozo", "conmezo",
            "agzo" or "mezo".
        augment: how training images are changed; None leaves them as they are.
        trainable: "all", "last:N" (convolutions, and the head), or a regular expression of parameter names, such as "head".
        head_start: whether the head is first fitted in closed form to the features of the network as it starts.
        epochs: passes over the training images.
        steps: budget in steps, which takes the place of `epochs`; None counts by epochs.
        batch: images a step.
        micro_batch: images a forward pass; None runs the batch at once.
        activation_memory: most that activations and gradients of a step may take, such as "64MiB"; what does not fit is
            computed again in the backward pass, by the schedule that takes the least time. None keeps everything.
        evaluations: how often the validation images are looked at in a run.
        seed: of weights, order, directions and dropout.
        device: "auto", "cpu", "cuda" or "mps".
        precision: in which steps are computed, "fp32", "bf16" or "fp16", the last with dynamic loss scaling; weights stay in
            float32.
        optimizer: how the weights are moved.
    """

    data: str = "digits"
    classes: tuple[str, ...] = ()
    valid_fraction: float = 0.2
    initial: str | None = None
    network: NetworkName = "small"
    norm: NormName | None = None
    width: float = 1.0
    channels: tuple[int, ...] = (32, 64)
    norm_groups: int | None = None
    pool: bool = True
    dropout: float = 0.2
    method: Literal["adamw", "prodigy", "muon", "schedule_free", "zo", "fzoo", "lozo", "conmezo", "agzo", "mezo"] = (
        "adamw"
    )
    augment: AugmentConfig | None = None
    trainable: str = "all"
    head_start: bool = False
    epochs: int = 20
    steps: int | None = None
    batch: int = 64
    micro_batch: int | None = None
    activation_memory: str | None = None
    evaluations: int = 10
    seed: int = 0
    device: str = "auto"
    precision: PrecisionName = "fp32"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch", "micro_batch", "evaluations", "norm_groups"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}.")
        if self.activation_memory is not None:
            parse_size(self.activation_memory)
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"`channels` must be one or more positive numbers; got {list(self.channels)}.")
        if not 0 < self.width < float("inf"):
            raise ValueError(f"`width` must be a finite positive number; got {self.width}.")
        if self.width != 1 and self.network not in _SCALED:
            raise ValueError(
                f"`width` is of {', '.join(_SCALED)}, and the network is `{self.network}`, which has one size; got "
                f"{self.width}. Leave it at 1, or take another `network`."
            )
        if self.network == "small" and self.norm is not None:
            raise ValueError(
                f"`norm` is of the classics, and the network is `small`; got {self.norm!r}. Set "
                "`norm_groups`, or another `network`."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must lie in [0, 1); got {self.dropout}.")
        if not 0 < self.valid_fraction < 1:
            raise ValueError(f"`valid_fraction` must lie between 0 and 1; got {self.valid_fraction}.")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"`seed` must be in [0, 2**63); got {self.seed}.")

    def experiment(self, workspace: "Workspace") -> "Experiment":
        """Loads the images and builds the network."""
        from featherlight.recipes.classify.experiment import build_experiment

        return build_experiment(self, workspace)


def config_from_text(text: str, *, source: str) -> ClassifyConfig:
    """The config of an image classifier from TOML, such as the one in a journal.

    Raises:
        ValueError: the text is damaged, or is of a run of something else.
    """
    recipe, values = split_toml(text, source=source)
    if "channels" not in values:
        raise ValueError(f"{source} is of a run of {recipe or 'something else'}, which is no image classifier.")
    return from_mapping(ClassifyConfig, values, source=source)
