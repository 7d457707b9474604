"""The networks of a run with a vector quantizer: built from a config, written, and read back."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherlight.nn.models import CodePrior, ConvDecoder, ConvEncoder, PatchDiscriminator, QuantizedAutoencoder
from featherlight.objective import seeded_random
from featherlight.recipes.config import from_mapping, to_mapping
from featherlight.recipes.model_files import ModelKind, read_model, write_model
from featherlight.recipes.vq.config import AdversaryConfig, NetworkConfig, PriorConfig
from featherlight.recipes.vq.quantizer_config import QuantizerConfig
from featherlight.recipes.vq.quantizers import QUANTIZERS, Options
from featherlight.recipes.vq.tokens import TokenTable

_KIND = ModelKind(
    architectures=("QuantizedAutoencoder",), name="an autoencoder with a vector quantizer", recipe="vq/digits"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blueprint:
    """All that the networks are built from; JSON but for the configs in it.

    Attributes:
        quantizer: with its defaults put in.
        network: encoder and decoder.
        prior: over the codes; None has none.
        channels: of an example.
        sizes: of an example; the autoencoder takes others as well, the prior draws these.
        shift: mean of the training data.
        scale: their standard deviation.
        low: smallest value of an example.
        high: largest value.
        seed: of weights, and of what the quantizer draws.
        about: what else it takes to use the model.
    """

    quantizer: QuantizerConfig
    network: NetworkConfig
    prior: PriorConfig | None
    channels: int
    sizes: tuple[int, ...]
    shift: float
    scale: float
    low: float
    high: float
    seed: int
    about: Mapping[str, Any]

    @property
    def factor(self) -> int:
        """By how much sizes shrink."""
        return math.prod(self.network.strides)

    @property
    def positions(self) -> tuple[int, ...]:
        """Sizes of a table of codes."""
        return tuple(size // self.factor for size in self.sizes)

    @property
    def options(self) -> Options:
        """Of the quantizer."""
        return Options(channel_axis=1, seed=self.seed, values=self.quantizer.given())

    @property
    def num_codes(self) -> int:
        """Of each codebook."""
        return QUANTIZERS[self.quantizer.kind].num_codes(self.options)

    @property
    def num_stages(self) -> int | None:
        """How many codebooks a position has a code of; None where there is a single one."""
        return QUANTIZERS[self.quantizer.kind].num_stages(self.options)

    def table(self, code_shape: tuple[int, ...]) -> TokenTable | None:
        """How codes are told as tokens; None where their shares cannot be counted."""
        if not QUANTIZERS[self.quantizer.kind].mixed:
            return TokenTable(num_codes=self.num_codes, code_shape=code_shape)
        bits = self.quantizer.weight_bits
        return TokenTable(num_codes=self.num_codes, code_shape=code_shape, units=2**bits - 1) if bits else None


class Networks(nn.Module):
    """Autoencoder, and what learns beside or after it.

    Args:
        blueprint: what they are built from.
        adversary: of the autoencoder; None has none.

    Attributes:
        blueprint: as given.
        table: how codes are told as tokens; None where they cannot be.
        autoencoder: encoder, quantizer, decoder.
        discriminator: judges its output; None where there is no adversary.
        prior: over its codes; None where it is not wanted or the codes cannot be counted.

    Raises:
        ValueError: sizes that the strides do not divide, or options that no quantizer can have.
    """

    def __init__(self, blueprint: Blueprint, adversary: AdversaryConfig | None = None) -> None:
        super().__init__()
        if any(size % blueprint.factor for size in blueprint.sizes):
            raise ValueError(
                f"examples have the sizes {list(blueprint.sizes)}, which strides of {list(blueprint.network.strides)} do not "
                f"divide: they must be multiples of {blueprint.factor}. Change `network.strides`, or the sizes."
            )
        self.blueprint = blueprint
        quantizer = QUANTIZERS[blueprint.quantizer.kind].build(blueprint.options)
        shape: dict[str, Any] = {
            "dim": quantizer.dim,
            "strides": blueprint.network.strides,
            "width": blueprint.network.width,
            "num_blocks": blueprint.network.blocks,
            "block_width": blueprint.network.block_width,
            "dilations": blueprint.network.dilations,
            "num_axes": len(blueprint.sizes),
        }
        self.autoencoder = QuantizedAutoencoder(
            ConvEncoder(in_channels=blueprint.channels, **shape),
            quantizer,
            ConvDecoder(out_channels=blueprint.channels, **shape),
            shift=blueprint.shift,
            scale=blueprint.scale,
        )
        self.discriminator = None
        if adversary is not None:
            self.discriminator = PatchDiscriminator(
                in_channels=blueprint.channels, width=adversary.width, num_halvings=adversary.halvings
            )
        self.table = blueprint.table(quantizer.code_shape)
        self.prior = None
        if blueprint.prior is not None and self.table is not None:
            self.prior = CodePrior(
                slots=self.table.slots,
                num_positions=math.prod(blueprint.positions),
                width=blueprint.prior.width,
                num_blocks=blueprint.prior.blocks,
                num_heads=blueprint.prior.heads,
                dropout=blueprint.prior.dropout,
            )

    def tokens(self, x: Tensor) -> Tensor:
        """The codes of examples as tokens, (B, T, S)."""
        assert self.table is not None, "codes that cannot be told as tokens have no prior"
        with torch.no_grad():
            return self.table.to_tokens(self.autoencoder.encode(x))

    @torch.no_grad()
    def sample(self, count: int, *, seed: int, temperature: float = 1.0) -> Tensor:
        """New examples, drawn by the prior; raises ValueError where there is none."""
        if self.prior is None or self.table is None:
            raise ValueError(
                "this model has no prior over its codes, so it cannot make new examples. Train one with a quantizer whose "
                "codes can be counted, and `prior` not none."
            )
        drawn = self.prior.sample(count, generator=torch.Generator().manual_seed(seed), temperature=temperature)
        return self.limited(self.autoencoder.decode(self.table.to_codes(drawn, self.blueprint.positions)))

    def limited(self, output: Tensor) -> Tensor:
        """Cut to the range of examples."""
        return output.clamp(self.blueprint.low, self.blueprint.high)


def build_networks(blueprint: Blueprint, adversary: AdversaryConfig | None = None) -> Networks:
    """Networks with weights from the seed; raises ValueError as `Networks` does."""
    with seeded_random(blueprint.seed, torch.device("cpu")):
        return Networks(blueprint, adversary)


def write_networks(path: Path, networks: Networks) -> None:
    """Autoencoder and prior as safetensors, and what it takes to build them as JSON; the discriminator is left behind."""
    weights = {n: t for n, t in networks.state_dict().items() if not n.startswith("discriminator.")}
    (architecture,) = _KIND.architectures
    write_model(path, weights, {"architecture": architecture} | to_mapping(networks.blueprint))


def read_networks(path: Path) -> Networks:
    """The networks of a run directory, or of a model directory, in evaluation mode.

    Raises:
        ValueError: there are none, or they are damaged or of another kind.
    """
    with read_model(path, _KIND) as (about, weights):
        values = {name: value for name, value in about.items() if name != "architecture"}
        networks = build_networks(_blueprint(values, str(path)))
        networks.load_state_dict(weights)
    return networks.eval()


def _blueprint(values: dict[str, Any], source: str) -> Blueprint:
    parts: dict[str, Any] = {
        name: None if values.get(name) is None else from_mapping(kind, values[name], source=source)
        for name, kind in (("quantizer", QuantizerConfig), ("network", NetworkConfig), ("prior", PriorConfig))
    }
    rest: dict[str, Any] = {"sizes": tuple(values["sizes"])}
    return Blueprint(**(values | parts | rest))


def train_only(networks: Networks, parts: Sequence[str]) -> None:
    """Lets the parameters of some of the networks be trained, and no others."""
    for name, parameter in networks.named_parameters():
        parameter.requires_grad_(name.partition(".")[0] in parts)
