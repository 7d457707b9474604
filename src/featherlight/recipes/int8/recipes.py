"""Recipes of classifiers for whole numbers."""

from dataclasses import replace
from typing import cast

from featherlight.recipes.catalogue import recipe
from featherlight.recipes.classify import recipes as classify
from featherlight.recipes.classify.config import ClassifyConfig
from featherlight.recipes.int8.config import Int8Config

_LENET5 = cast(ClassifyConfig, classify.caffe_lenet_mnist())
_RESNET20 = cast(ClassifyConfig, classify.resnet20_cifar10())


@recipe(cost="an estimated 12 minutes on 1 core", data="mnist/ in the folder FEATHERLIGHT_DATA")
def lenet5() -> Int8Config:
    """LeNet-5 as Caffe has it, on MNIST, in float and then for whole numbers of 8 bits."""
    return Int8Config(classify=_LENET5, epochs=2)


@recipe(cost="an estimated 3 hours on 1 core", data="cifar10-jpeg/ in the folder FEATHERLIGHT_DATA")
def resnet20() -> Int8Config:
    """ResNet-20 on CIFAR-10 (as JPEG), in float and then for whole numbers of 8 bits."""
    return Int8Config(classify=_RESNET20, epochs=4)


@recipe(cost="an estimated 3 hours on 1 core", data="cifar10-jpeg/ in the folder FEATHERLIGHT_DATA")
def mobile() -> Int8Config:
    """MobileNet for 32x32 at half its width, whose depthwise layers lose most when rounded, on CIFAR-10 (as JPEG)."""
    return Int8Config(classify=replace(_RESNET20, network="mobilenet", width=0.5), epochs=4)
