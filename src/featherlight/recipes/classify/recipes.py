"""Recipes of image classifiers."""

from featherlight.recipes.catalogue import recipe
from featherlight.recipes.classify.config import ClassifyConfig


@recipe(cost="10 s on 2 cores", data="scikit-learn's digits, installed with featherlight[digits]")
def digits() -> ClassifyConfig:
    """A small convolutional network on 8x8 digits, with AdamW."""
    return ClassifyConfig()
