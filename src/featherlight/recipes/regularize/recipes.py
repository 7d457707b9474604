"""Recipes of studies of what regularizes."""

from featherlight.recipes.catalogue import recipe
from featherlight.recipes.regularize.config import DecayConfig, DropoutConfig, NormsConfig, ProdigyConfig, StylizeConfig

_MNIST = {"data": "mnist", "valid_fraction": 0.03, "evaluations": 5}
_MNIST_DATA = "mnist/ in the folder FEATHERLIGHT_DATA"


@recipe(cost="an estimated 30 s on 1 core", data=_MNIST_DATA)
def dropout() -> DropoutConfig:
    """Dropout at several shares, where there are few images."""
    return DropoutConfig(**_MNIST, images=1000, epochs=100)


@recipe(cost="an estimated 3 minutes on 1 core", data="scikit-learn's digits, installed with featherlight[digits]")
def norms() -> NormsConfig:
    """Batch, instance, layer and group normalization at batches of 2, 16 and 128."""
    return NormsConfig(epochs=4, lr=3e-3)


@recipe(cost="an estimated 2 minutes on 1 core", data=_MNIST_DATA)
def decay() -> DecayConfig:
    """Weight decay: decoupled (AdamW) beside a penalty on squares (Adam)."""
    return DecayConfig(**_MNIST, images=1000, epochs=40)


@recipe(cost="an estimated 1 minute on 1 core", data=_MNIST_DATA)
def prodigy() -> ProdigyConfig:
    """Prodigy beside a grid of rates of AdamW, on data that stay and on data that change."""
    return ProdigyConfig(**_MNIST, images=5000, epochs=12)


@recipe(
    cost="an estimated 2 minutes on 1 core",
    data="bsds500-half/ in the folder FEATHERLIGHT_DATA; data=FOLDER takes any photographs",
)
def stylize() -> StylizeConfig:
    """Normalizations in a small network that makes drawings of photographs, where each one's own contrast matters."""
    return StylizeConfig()
