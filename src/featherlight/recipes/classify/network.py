"""The network of an image classifier: fresh, taken over from another run, or read back; and which of it is trained."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherlight.data import ImageSet
from featherlight.nn.models import SmallConvNet
from featherlight.objective import seeded_random
from featherlight.recipes.classify.config import ClassifyConfig
from featherlight.recipes.model_files import ModelKind, read_model, write_model
from featherlight.recipes.parameter_names import matching
from featherlight.trainer import weights_digest

_KIND = ModelKind(architectures=("SmallConvNet",), name="an image classifier", recipe="classify/mnist_base")
_LAST = re.compile(r"last:(\d+)")


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network before its first step.

    Attributes:
        model: the network.
        classes: names of its outputs.
        has_fresh_head: whether its head is random.
    """

    model: SmallConvNet
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
    mean, std = train.channel_statistics()
    channels = train.images.shape[1]
    shape: dict[str, Any] = {"channels": config.channels, "norm_groups": config.norm_groups, "pool": config.pool}
    known: Network | None = None
    if config.initial is not None:
        known = read_network(Path(config.initial))
        shape = {name: known.model.settings[name] for name in shape}
        if known.model.settings["in_channels"] != channels:
            raise ValueError(
                f"the network in {config.initial} takes images of {known.model.settings['in_channels']} channels, but those of "
                f"{config.data} have {channels}. Start from one that was trained on images of the same kind."
            )
    with seeded_random(config.seed, torch.device("cpu")):
        model = SmallConvNet(
            in_channels=channels,
            num_classes=len(train.classes),
            dropout=config.dropout,
            mean=mean,
            std=std,
            **shape,
        )
    has_fresh_head = known is None or known.classes != train.classes
    if known is not None:
        model.load_state_dict(known.start(with_head=not has_fresh_head), strict=False)
    select_trainable(model, config.trainable)
    return Network(model=model, classes=train.classes, has_fresh_head=has_fresh_head)


def select_trainable(model: SmallConvNet, choice: str) -> None:
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


def write_network(path: Path, model: SmallConvNet, classes: tuple[str, ...]) -> None:
    """Weights as safetensors, and what it takes to build the network as JSON."""
    (architecture,) = _KIND.architectures
    write_model(path, model.state_dict(), {"architecture": architecture, "classes": list(classes)} | model.settings)


def read_network(path: Path) -> Network:
    """The network of a run directory, or of a model directory, in evaluation mode.

    Raises:
        ValueError: there is none, or it is damaged or of another kind.
    """
    with read_model(path, _KIND) as (about, weights):
        classes = tuple(about["classes"])
        model = SmallConvNet(**{k: v for k, v in about.items() if k not in ("architecture", "classes")})
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
