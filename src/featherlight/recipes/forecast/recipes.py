"""Recipes of forecasters."""

from dataclasses import replace

from featherlight.recipes.catalogue import recipe
from featherlight.recipes.forecast.config import ForecastConfig

_DATA = "system-id/ in the folder FEATHERLIGHT_DATA; data=FILE.npz takes any record"
_SILVERBOX = ForecastConfig()
_TANKS = ForecastConfig(data="tanks", window=150, washout=40, steps=1500, width=24)


@recipe(cost="an estimated 5 minutes on 1 core", data=_DATA)
def silverbox() -> ForecastConfig:
    """An LSTM tells the output of an electronic oscillator (Silverbox), beside a linear model."""
    return _SILVERBOX


@recipe(cost="an estimated 5 minutes on 1 core", data=_DATA)
def silverbox_rnn() -> ForecastConfig:
    """The same with a plain recurrent network."""
    return replace(_SILVERBOX, kind="rnn", optimizer=replace(_SILVERBOX.optimizer, lr=1e-3))


@recipe(cost="an estimated 2 minutes on 1 core", data=_DATA)
def tanks() -> ForecastConfig:
    """An LSTM tells the level of two tanks, one below the other, beside a linear model."""
    return _TANKS
