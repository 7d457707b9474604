"""The net of a run: inputs, layers, chains; how it is written and read.

Legend of shapes: B images, C channels, V pixels, L labels.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.data import ImageSet
from featherlight.nn.models import (
    BinaryUnits,
    ContrastiveDivergence,
    DeepBeliefNet,
    GaussianUnits,
    NegativePhase,
    PersistentChains,
    RestrictedBoltzmannMachine,
)
from featherlight.recipes.dbn.config import DbnConfig
from featherlight.recipes.model_files import ModelKind, read_model, write_model

_KIND = ModelKind(architectures=("DeepBeliefNet",), name="a deep belief net", recipe="dbn/digits")
_UNITS = {"binary": BinaryUnits(), "gaussian": GaussianUnits()}
_CHUNK = 4096


class ImageNet(nn.Module):
    """A deep belief net and how images become its visible units.

    Args:
        net: the net.
        shift_V: is subtracted from pixels in [0, 1].
        scale: what they are then divided by.
        chains: those that persist, by the number of the machine, or "up_down".

    Attributes:
        net: as given.
        chains: as given.
    """

    shift_V: Tensor
    scale: Tensor

    def __init__(self, net: DeepBeliefNet, shift_V: Tensor, scale: Tensor, chains: nn.ModuleDict) -> None:
        super().__init__()
        self.net = net
        self.chains = chains
        self.register_buffer("shift_V", shift_V)
        self.register_buffer("scale", scale)

    def pixels(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B V"]:
        """Visible units of images in [0, 1]."""
        return (images.flatten(1) - self.shift_V) / self.scale

    def images(self, v_BV: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """The reverse, cut to [0, 1]."""
        return (v_BV * self.scale + self.shift_V).clamp(0, 1)

    def forward(self, v_BV: Float[Tensor, "B V"]) -> Float[Tensor, "B L"]:
        """Logits of the classifier."""
        return self.net(v_BV)

    def negative_phase(self, name: str, steps: int) -> NegativePhase:
        """The chains of a name where they persist, else chains that start at the data. They are where they were afterwards.

        `move` moves them on for good.
        """
        if name not in self.chains:
            return ContrastiveDivergence(steps=steps)
        chains = self.chains[name]
        assert isinstance(chains, PersistentChains)

        def look_ahead(machine: RestrictedBoltzmannMachine, v_BV: Tensor, generator: torch.Generator) -> Tensor:
            before_NV = chains.v_NV
            after_NV = chains(machine, v_BV, generator)
            chains.v_NV = before_NV
            return after_NV

        return look_ahead

    def move(self, name: str, v_NV: Tensor) -> None:
        """Moves the chains of a name to where a negative phase said."""
        self.chains[name].v_NV = v_NV


def build_network(config: DbnConfig, train: ImageSet) -> ImageNet:
    """The net before its first step, on the CPU."""
    generator = torch.Generator().manual_seed(config.seed)
    num_pixels = math.prod(train.images.shape[1:])
    backprop = config.backprop
    net = DeepBeliefNet(
        (num_pixels, *config.hidden),
        len(train.classes),
        generator=generator,
        visible=_UNITS[config.visible],
        dropout=(0.0, 0.0) if backprop is None else (backprop.dropout_inputs, backprop.dropout_hidden),
    )
    shift_V, scale = torch.zeros(num_pixels), torch.ones(())
    if config.visible == "gaussian":
        shift_V, scale = _statistics(train)
    return ImageNet(net, shift_V, scale, _persistent(config, net, min(config.batch, len(train)), generator))


def _persistent(config: DbnConfig, net: DeepBeliefNet, count: int, generator: torch.Generator) -> nn.ModuleDict:
    """The chains that a config asks to persist, `count` of each."""
    wanted: dict[str, tuple[int, int]] = {}
    last = len(net.machines) - 1
    if config.pretraining.chains == "persistent":
        wanted |= {str(number): (number, config.pretraining.steps) for number in range(last + 1)}
    if config.up_down is not None and config.up_down.chains == "persistent":
        wanted["up_down"] = (last, config.up_down.steps)
    return nn.ModuleDict(
        {
            name: PersistentChains(count, net.machine(number).weight.shape[1], generator=generator, steps=steps)
            for name, (number, steps) in wanted.items()
        }
    )


def write_network(path: Path, model: ImageNet, config: DbnConfig, images: ImageSet) -> None:
    """Weights as safetensors, and what it takes to build the net as JSON."""
    (architecture,) = _KIND.architectures
    about = {
        "architecture": architecture,
        "shape": list(images.images.shape[1:]),
        "hidden": list(config.hidden),
        "visible": config.visible,
        "classes": list(images.classes),
    }
    write_model(path, {n: t for n, t in model.state_dict().items() if not n.startswith("chains.")}, about)


def read_network(path: Path) -> tuple[ImageNet, Mapping[str, Any]]:
    """The net of a run directory or of its model, in evaluation mode, and its config.json.

    Raises:
        ValueError: there is none, or it is damaged or of another kind.
    """
    with read_model(path, _KIND) as (about, weights):
        pixels = math.prod(about["shape"])
        generator = torch.Generator().manual_seed(0)
        sizes = (pixels, *about["hidden"])
        net = DeepBeliefNet(sizes, len(about["classes"]), generator=generator, visible=_UNITS[about["visible"]])
        model = ImageNet(net, torch.zeros(pixels), torch.ones(()), nn.ModuleDict())
        model.load_state_dict(weights)
    return model.eval(), about


def _statistics(train: ImageSet) -> tuple[Tensor, Tensor]:
    """Mean of each pixel, and the root of the mean variance of all."""
    parts = [train.floats(slice(start, start + _CHUNK)).flatten(1).double() for start in range(0, len(train), _CHUNK)]
    mean_V = sum(part.sum(0) for part in parts) / len(train)
    assert isinstance(mean_V, Tensor)
    variance = sum(float((part - mean_V).square().sum()) for part in parts) / (len(train) * len(mean_V))
    return mean_V.float(), torch.tensor(max(variance, 1e-8) ** 0.5)
