"""Recipes of models of text."""

from dataclasses import replace

from featherlight.recipes.catalogue import recipe
from featherlight.recipes.optimizer_config import OptimizerConfig
from featherlight.recipes.text.config import LanguageConfig, TextNetworkConfig, TranslationConfig

_DATA = "tiny-shakespeare/ in the folder FEATHERLIGHT_DATA; data=FILE takes any text"
_ADAMW = OptimizerConfig(lr=1e-3, weight_decay=0.1, schedule="cosine", clip=1.0)
_GPT = LanguageConfig(network=TextNetworkConfig(dropout=0.1), optimizer=_ADAMW)
_RECURRENT = replace(_ADAMW, lr=3e-3, weight_decay=0.01)
_REVERSE = TranslationConfig(
    network=TextNetworkConfig(width=64, blocks=2, heads=4, positions="sinusoidal"),
    steps=1000,
    batch=64,
    optimizer=replace(_ADAMW, lr=2e-3, weight_decay=0.01),
)


@recipe(cost="an estimated 25 minutes on 1 core", data=_DATA)
def shakespeare() -> LanguageConfig:
    """A small GPT on the characters of Shakespeare, with rotary positions."""
    return _GPT


@recipe(cost="an estimated 10 minutes on 1 core", data=_DATA)
def shakespeare_lstm() -> LanguageConfig:
    """An LSTM on the same text."""
    network = TextNetworkConfig(kind="lstm", width=256, blocks=1, dropout=0.1, tied=False)
    return replace(_GPT, network=network, optimizer=_RECURRENT)


@recipe(cost="an estimated 10 minutes on 1 core", data=_DATA)
def shakespeare_rnn() -> LanguageConfig:
    """A plain recurrent network on the same text."""
    network = TextNetworkConfig(kind="rnn", width=256, blocks=1, dropout=0.1, tied=False)
    return replace(_GPT, network=network, optimizer=replace(_RECURRENT, lr=1e-3))


@recipe(cost="a minute on 1 core", data="made as it runs")
def reverse() -> TranslationConfig:
    """An encoder and decoder that writes what it reads from its end to its beginning."""
    return _REVERSE


@recipe(cost="a minute on 1 core", data="made as it runs")
def copy() -> TranslationConfig:
    """An encoder and decoder that writes what it reads."""
    return replace(_REVERSE, task="copy")
