"""The networks of text by the names that configs use, and models of text as directories."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherlight.nn.models import (
    BatchNorm,
    BlockShape,
    EncoderDecoder,
    Gpt,
    GroupNorm,
    LayerNorm,
    LearnedPositions,
    LstmCell,
    NoNorm,
    Norm,
    PlainCell,
    Positions,
    RecurrentLanguageModel,
    RecurrentShape,
    Rotary,
    Sinusoidal,
)
from featherlight.objective import seeded_random
from featherlight.recipes import by_gradients, model_files
from featherlight.recipes.config import from_mapping, to_mapping
from featherlight.recipes.optimizer_config import OptimizerConfig
from featherlight.recipes.text.config import TextNetworkConfig, TextTrainingConfig
from featherlight.recipes.text.vocabulary import Vocabulary

_LANGUAGE = model_files.ModelKind(architectures=("LanguageModel",), name="a model of text", recipe="text/shakespeare")
_TRANSLATOR = model_files.ModelKind(architectures=("EncoderDecoder",), name="a model of text", recipe="text/reverse")

LEARNING_RATES = {"adamw": 1e-3, "muon": 1e-3, "schedule_free": 1e-3}
"""Of each method where the config has none, and the method has another for pretrained models."""

NORMS: dict[str, Norm] = {"batch": BatchNorm(), "layer": LayerNorm(), "group": GroupNorm(), "none": NoNorm()}
"""Normalizations by the names that configs use."""

POSITIONS: dict[str, Positions] = {
    "learned": LearnedPositions(),
    "sinusoidal": Sinusoidal(),
    "rotary": Rotary(),
}
"""Positions by the names that configs use."""

CELLS = {"lstm": LstmCell(), "rnn": PlainCell()}
"""Recurrent layers by the names that configs use."""


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """A model of a language, and what its tokens stand for.

    Attributes:
        model: the network, in evaluation mode.
        vocabulary: of its tokens.
    """

    model: Gpt | RecurrentLanguageModel
    vocabulary: Vocabulary


def language_network(
    config: TextNetworkConfig, num_tokens: int, context: int, seed: int
) -> Gpt | RecurrentLanguageModel:
    """A network with weights from the seed, on the CPU."""
    with seeded_random(seed, torch.device("cpu")):
        if config.kind == "gpt":
            parts: dict[str, Any] = {"positions": POSITIONS[config.positions], "tied": config.tied}
            return Gpt(num_tokens, context=context, shape=_block_shape(config), num_blocks=config.blocks, **parts)
        shape = RecurrentShape(
            width=config.width,
            num_layers=config.blocks,
            cell=CELLS[config.kind],
            norm=NORMS[config.norm or "none"],
            dropout=config.dropout,
        )
        return RecurrentLanguageModel(num_tokens, shape=shape, tied=config.tied)


def translation_network(config: TextNetworkConfig, num_tokens: int, max_length: int, seed: int) -> EncoderDecoder:
    """Encoder and decoder with weights from the seed, on the CPU."""
    with seeded_random(seed, torch.device("cpu")):
        return EncoderDecoder(
            num_tokens,
            max_length=max_length,
            shape=_block_shape(config),
            num_blocks=config.blocks,
            positions=POSITIONS[config.positions],
            tied=config.tied,
        )


def settled(config: TextTrainingConfig) -> OptimizerConfig:
    """How the weights are moved, with every choice made; raises ValueError unless the method needs no journal."""
    return by_gradients.settled(config, "models of text", LEARNING_RATES)


def write_model(path: Path, model: nn.Module, about: dict[str, Any]) -> None:
    """Weights as safetensors, tied ones once, and what it takes to build the network as JSON."""
    model_files.write_model(path, _once(model), about)


def about_language(config: TextNetworkConfig, vocabulary: Vocabulary, context: int) -> dict[str, Any]:
    """What it takes to build a model of a language; JSON."""
    return {
        "architecture": "LanguageModel",
        "network": to_mapping(config),
        "vocabulary": vocabulary.characters,
        "context": context,
    }


def read_language_model(path: Path) -> LanguageModel:
    """The model of a run directory, or of a model directory.

    Raises:
        ValueError: there is none, or it is damaged or of another kind.
    """
    with model_files.read_model(path, _LANGUAGE) as (about, weights):
        vocabulary = Vocabulary(characters=about["vocabulary"])
        model = language_network(_network_config(about, path), len(vocabulary), about["context"], seed=0)
        _load(model, weights)
    return LanguageModel(model=model.eval(), vocabulary=vocabulary)


def read_translator(path: Path) -> EncoderDecoder:
    """The encoder and decoder of a run directory, or of a model directory, in evaluation mode.

    Raises:
        ValueError: there is none, or it is damaged or of another kind.
    """
    with model_files.read_model(path, _TRANSLATOR) as (about, weights):
        model = translation_network(_network_config(about, path), about["num_tokens"], about["max_length"], seed=0)
        _load(model, weights)
    return model.eval()


def _network_config(about: Mapping[str, Any], path: Path) -> TextNetworkConfig:
    return from_mapping(TextNetworkConfig, about["network"], source=str(path))


def _load(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Puts weights that `_once` gave into a model."""
    if strange := _once(model).keys() ^ weights.keys():
        raise ValueError(
            f"the weights {', '.join(sorted(strange)[:3])} are there and not wanted, or the other way round"
        )
    model.load_state_dict(weights, strict=False)


def _once(model: nn.Module) -> dict[str, Tensor]:
    """Weights by name, tied ones under the first of their names."""
    kept = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    return {name: tensor for name, tensor in model.state_dict().items() if name in kept}


def _block_shape(config: TextNetworkConfig) -> BlockShape:
    norm = NORMS[config.norm or "layer"]
    return BlockShape(width=config.width, num_heads=config.heads, norm=norm, dropout=config.dropout)
