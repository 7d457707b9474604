"""Recipes of autoencoders with a vector quantizer."""

from featherlight.recipes.catalogue import recipe
from featherlight.recipes.vq.config import (
    AdamWConfig,
    AdversaryConfig,
    AudioVqConfig,
    ImageVqConfig,
    NetworkConfig,
    PriorConfig,
)
from featherlight.recipes.vq.quantizer_config import QuantizerConfig

_CIFAR10_DATA = "cifar10-jpeg/ in the folder FEATHERLIGHT_DATA"


@recipe(cost="3 minutes on 1 core", data="scikit-learn's digits, installed with featherlight[digits]")
def digits() -> ImageVqConfig:
    """8x8 digits as codes: a small autoencoder, and a prior that draws new ones."""
    return ImageVqConfig(
        network=NetworkConfig(strides=(2,), width=32, block_width=16), epochs=30, prior=PriorConfig(epochs=20)
    )


@recipe(cost="9 minutes on 1 core", data=_CIFAR10_DATA)
def cifar10() -> ImageVqConfig:
    """CIFAR-10 (JPEG) as codes, with an autoencoder of the shape of VQ-VAE."""
    return ImageVqConfig(data="cifar10", epochs=2, prior=PriorConfig(steps=200))


@recipe(cost="8 minutes on 1 core", data="gtsrb32/ in the folder FEATHERLIGHT_DATA")
def gtsrb() -> ImageVqConfig:
    """Traffic signs as codes."""
    return ImageVqConfig(data="gtsrb", epochs=4, prior=PriorConfig(steps=200))


@recipe(
    cost="6 minutes on 1 core", data="bsds500-half/ in the folder FEATHERLIGHT_DATA; data=FOLDER takes any photographs"
)
def bsds() -> ImageVqConfig:
    """Squares of natural photographs as codes, with a discriminator as in VQGAN."""
    return ImageVqConfig(
        data="bsds",
        crop=64,
        network=NetworkConfig(strides=(2, 2, 2)),
        gradients=0.5,
        adversary=AdversaryConfig(),
        batch=8,
        steps=2500,
        prior=PriorConfig(steps=500, samples=16),
    )


@recipe(cost="4 minutes on 1 core", data="synthesized tones; data=FOLDER takes wav files")
def audio() -> AudioVqConfig:
    """Sound as codes, with a residual quantizer."""
    return AudioVqConfig(
        quantizer=QuantizerConfig(kind="residual"),
        network=NetworkConfig(strides=(4, 4, 4), width=64, blocks=4, block_width=32, dilations=(1, 3, 9)),
        batch=16,
        steps=3000,
        optimizer=AdamWConfig(lr=5e-4),
        prior=PriorConfig(steps=200, samples=4),
    )
