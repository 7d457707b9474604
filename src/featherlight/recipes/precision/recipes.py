"""Recipes in number formats."""

from dataclasses import replace

from featherlight.recipes.catalogue import recipe
from featherlight.recipes.classify.config import ClassifyConfig
from featherlight.recipes.optimizer_config import OptimizerConfig
from featherlight.recipes.precision.config import LossScalingConfig, PrecisionConfig

_ADAMW = OptimizerConfig(lr=3e-3, weight_decay=0.01, schedule="cosine")
_DIGITS = ClassifyConfig(optimizer=_ADAMW)
_DIGITS_DATA = "scikit-learn's digits, installed with featherlight[digits]"


@recipe(cost="15 s on 1 core", data=_DIGITS_DATA)
def digits() -> PrecisionConfig:
    """A small network on 8x8 digits; --set format=fp32,bf16,fp16,fp8 puts formats beside each other."""
    return PrecisionConfig(classify=_DIGITS)


@recipe(cost="minutes on 1 core", data="mnist/ in the folder FEATHERLIGHT_DATA")
def mnist() -> PrecisionConfig:
    """LeNet-5 on MNIST in a number format, as precision/digits."""
    mnist = ClassifyConfig(
        data="mnist", valid_fraction=0.05, network="lenet5", dropout=0.0, epochs=2, evaluations=4, optimizer=_ADAMW
    )
    return PrecisionConfig(classify=mnist)


@recipe(cost="a minute on 1 core", data=_DIGITS_DATA)
def study() -> PrecisionConfig:
    """Formats of four bits in emulation: weights, activations and gradients in NVFP4, and what each format loses."""
    return PrecisionConfig(classify=_DIGITS, format="nvfp4")


@recipe(cost="15 s on 1 core", data=_DIGITS_DATA)
def loss_scaling() -> LossScalingConfig:
    """Gradients near 2**-27 in fp16; --set scaling=true,false shows what loss scaling is for."""
    return LossScalingConfig(classify=replace(_DIGITS, norm_groups=4, dropout=0.0))
