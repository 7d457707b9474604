"""The network of an image classifier: fresh, taken over from another run, or read back; and which of it is trained."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherlight.data import ImageSet
from featherlight.nn.models import SmallConvNet
from featherlight.objective import seeded_random
from featherlight.recipes.classify.architectures import ImageClassifier
from featherlight.recipes.classify.config import ClassifyConfig
from featherlight.recipes.model_files import ModelKind, read_model, write_model
from featherlight.recipes.parameter_names import matching
from featherlight.trainer import weights_digest

Model = SmallConvNet | ImageClassifier
"""The kinds of network there are; both have `settings`, `blocks` and a `head`."""

_KINDS: dict[str, type[SmallConvNet] | type[ImageClassifier]] = {
    "SmallConvNet": SmallConvNet,
    "ImageClassifier": ImageClassifier,
}
_KIND = ModelKind(architectures=tuple(_KINDS), name="an image classifier", recipe="classify/mnist_base")
_LAST = re.compile(r"last:(\d+)")


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network before its first step.

    Attributes:
        model: the network.
        classes: names of its outputs.
        has_fresh_head: whether its head is random.
    """

    model: Model
    classes: tuple[str, ...]
    has_fresh_head: bool

    def start(self, *, with_head: bool) -> dict[str, Tensor]:
        """Its parameters and running statistics by name, with those of the head or without."""
        return {n: t for n, t in self.model.state_dict().items() if with_head or not n.startswith("head.")}


def build_network(config: ClassifyConfig, train: ImageSet) -> Network:
    """The network that a config starts from, on the CPU, normalizing images as the training images want it.

    Raises:
        ValueError: `initial` cannot be read or takes other images, or `trainable` fits nothing.
    """
    channels = train.images.shape[1]
    known = None if config.initial is None else read_network(Path(config.initial))
    if known is not None and known.model.settings["in_channels"] != channels:
        raise ValueError(
            f"the network in {config.initial} takes images of {known.model.settings['in_channels']} channels, but those of "
            f"{config.data} have {channels}. Start from one that was trained on images of the same kind."
        )
    mean, std = train.channel_statistics()
    settings = _settings(config, train) if known is None else known.model.settings
    own = {"in_channels": channels, "num_classes": len(train.classes), "dropout": config.dropout}
    with seeded_random(config.seed, torch.device("cpu")):
        model = model_of({**settings, **own, "mean": mean, "std": std})
    has_fresh_head = known is None or known.classes != train.classes
    if known is not None:
        model.load_state_dict(known.start(with_head=not has_fresh_head), strict=False)
    select_trainable(model, config.trainable)
    return Network(model=model, classes=train.classes, has_fresh_head=has_fresh_head)


def model_of(settings: Mapping[str, Any]) -> Model:
    """The network of some settings, with fresh weights."""
    return ImageClassifier(**settings) if "network" in settings else SmallConvNet(**settings)


def _settings(config: ClassifyConfig, train: ImageSet) -> dict[str, Any]:
    """Those of a fresh network that the images do not say by themselves."""
    if config.network == "small":
        return {"channels": config.channels, "norm_groups": config.norm_groups, "pool": config.pool}
    height, side = train.images.shape[-2:]
    if height != side:
        raise ValueError(
            f"the network `{config.network}` takes square images, and those of {config.data} have {height}x{side} pixels. Cut or "
            "resize them, or take the network `small`."
        )
    names = ("network", "norm", "norm_groups", "width")
    return {name: getattr(config, name) for name in names} | {"side": side}


def select_trainable(model: Model, choice: str) -> None:
    """Sets `requires_grad` of every parameter by "all", "last:N" or a regular expression of names.

    Raises:
        ValueError: the choice fits no parameter, or asks for more convolutions than there are.
    """
    names = dict(model.named_parameters())
    chosen = set(names)
    if match := _LAST.fullmatch(choice):
        count, blocks = int(match[1]), model.blocks
        if not 1 <= count <= len(blocks):
            raise ValueError(
                f"`trainable` {choice} asks for {count} convolutions, but the network has {len(blocks)}; take 1 to "
                f'{len(blocks)}, or "head".'
            )
        frozen = {id(p) for block in blocks[:-count] for p in block.parameters()}
        chosen = {name for name, parameter in names.items() if id(parameter) not in frozen}
    elif choice != "all":
        chosen = matching(choice, names)
    for name, parameter in names.items():
        parameter.requires_grad_(name in chosen)


def write_network(path: Path, model: Model, classes: tuple[str, ...]) -> None:
    """Weights as safetensors, and what it takes to build the network as JSON."""
    about = {"architecture": type(model).__name__, "classes": list(classes)} | model.settings
    write_model(path, model.state_dict(), about)


def read_network(path: Path) -> Network:
    """The network of a run directory, or of a model directory, in evaluation mode.

    Raises:
        ValueError: there is none, or it is damaged or of another kind.
    """
    with read_model(path, _KIND) as (about, weights):
        classes, kind = tuple(about["classes"]), _KINDS[about["architecture"]]
        model = kind(**{k: v for k, v in about.items() if k not in ("architecture", "classes")})
        model.load_state_dict(weights)
    return Network(model=model.eval(), classes=classes, has_fresh_head=False)


def base_digest(network: Network) -> str:
    """Digest of what a network starts from, so that a journal is not replayed on another.

    The head is left out: a journal holds the one it starts from, as a fit of it may differ between machines.
    """
    return weights_digest(network.start(with_head=False))


def head_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Those of the head, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if name.startswith("head.")}
