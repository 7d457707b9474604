"""Recipes of image classifiers."""

from dataclasses import replace

from featherlight.recipes.catalogue import recipe
from featherlight.recipes.classify.config import AugmentConfig, ClassifyConfig
from featherlight.recipes.optimizer_config import OptimizerConfig

_ADAMW = OptimizerConfig(lr=3e-3, weight_decay=0.01, schedule="cosine")
_ZO = OptimizerConfig()
_MNIST = ClassifyConfig(
    data="mnist",
    valid_fraction=0.05,
    channels=(16, 32, 64),
    norm_groups=4,
    pool=False,
    dropout=0.0,
    epochs=5,
    optimizer=_ADAMW,
)
_CIFAR10 = replace(_MNIST, data="cifar10", channels=(32, 64, 128), norm_groups=8, epochs=10)
_MNIST_DATA = "mnist/ in the folder FEATHERLIGHT_DATA"
_CIFAR10_DATA = "cifar10-jpeg/ in the folder FEATHERLIGHT_DATA"
_GTSRB_DATA = "gtsrb32/ in the folder FEATHERLIGHT_DATA"
_LENET5 = ClassifyConfig(
    data="mnist",
    valid_fraction=0.05,
    network="lenet5",
    dropout=0.0,
    augment=AugmentConfig(shift=2),
    epochs=30,
    optimizer=_ADAMW,
)
_RESNET20 = ClassifyConfig(
    data="cifar10",
    valid_fraction=0.05,
    network="resnet20",
    dropout=0.0,
    augment=AugmentConfig(shift=4, flip=True),
    epochs=30,
    batch=128,
    optimizer=replace(_ADAMW, weight_decay=0.05),
)
_ALEXNET = replace(_RESNET20, network="alexnet", width=0.5, dropout=0.5, optimizer=replace(_ADAMW, lr=5e-4))
_SIGNS = AugmentConfig(shift=4)


@recipe(cost="10 s on 2 cores", data="scikit-learn's digits, installed with featherlight[digits]")
def digits() -> ClassifyConfig:
    """A small convolutional network on 8x8 digits, with AdamW."""
    return ClassifyConfig(optimizer=_ADAMW)


@recipe(cost="minutes on 1 core", data=_MNIST_DATA)
def mnist() -> ClassifyConfig:
    """A small convolutional network on MNIST, with AdamW."""
    return _MNIST


@recipe(cost="minutes on 1 core", data=_MNIST_DATA)
def mnist_base() -> ClassifyConfig:
    """The same on the digits 0 to 4 alone: what `classify/mnist_zo` starts from."""
    return replace(_MNIST, classes=("0", "1", "2", "3", "4"))


@recipe(cost="minutes on 1 core", data=f"{_MNIST_DATA}, and the run of classify/mnist_base")
def mnist_zo() -> ClassifyConfig:
    """From five digits to all ten: head start, then forward passes alone."""
    return replace(_MNIST, initial="runs/classify-mnist_base", method="zo", head_start=True, steps=1000, optimizer=_ZO)


@recipe(cost="minutes on 1 core", data=_CIFAR10_DATA)
def cifar10() -> ClassifyConfig:
    """A small convolutional network on CIFAR-10, with AdamW."""
    return _CIFAR10


@recipe(cost="minutes on 1 core", data=_CIFAR10_DATA)
def cifar10_base() -> ClassifyConfig:
    """The same on five of the classes: what `classify/cifar10_zo` starts from."""
    return replace(_CIFAR10, classes=("airplane", "automobile", "bird", "cat", "deer"))


@recipe(cost="minutes on 1 core", data=f"{_CIFAR10_DATA}, and the run of classify/cifar10_base")
def cifar10_zo() -> ClassifyConfig:
    """From five classes to all ten: head start, then forward passes alone."""
    return replace(
        _CIFAR10, initial="runs/classify-cifar10_base", method="zo", head_start=True, steps=1000, optimizer=_ZO
    )


@recipe(cost="an estimated 10 minutes on 1 core", data=_MNIST_DATA)
def lenet5_mnist() -> ClassifyConfig:
    """LeNet-5 as published in 1998, on MNIST moved by up to two pixels, with AdamW."""
    return _LENET5


@recipe(cost="5 minutes on 1 core", data=_MNIST_DATA)
def caffe_lenet_mnist() -> ClassifyConfig:
    """LeNet-5 as Caffe has it, with 431,080 parameters, on MNIST moved by up to a pixel, with AdamW."""
    return replace(
        _LENET5,
        network="caffe-lenet",
        augment=AugmentConfig(shift=1),
        epochs=6,
        batch=128,
        optimizer=replace(_ADAMW, lr=2e-3),
    )


@recipe(cost="an estimated 2 hours on 1 core", data=_CIFAR10_DATA)
def resnet20_cifar10() -> ClassifyConfig:
    """ResNet-20 on CIFAR-10 (as JPEG), moved and mirrored, with AdamW."""
    return _RESNET20


@recipe(cost="an estimated 3 hours on 1 core", data=_CIFAR10_DATA)
def alexnet_cifar10() -> ClassifyConfig:
    """AlexNet for 32x32 at half its width on CIFAR-10 (as JPEG), moved and mirrored, with AdamW."""
    return _ALEXNET


@recipe(cost="an estimated 40 minutes on 1 core", data=_GTSRB_DATA)
def resnet20_gtsrb() -> ClassifyConfig:
    """ResNet-20 on traffic signs, moved but never mirrored, with AdamW."""
    return replace(_RESNET20, data="gtsrb", augment=_SIGNS)


@recipe(cost="an estimated hour on 1 core", data=_GTSRB_DATA)
def alexnet_gtsrb() -> ClassifyConfig:
    """AlexNet for 32x32 at half its width on traffic signs, moved but never mirrored, with AdamW."""
    return replace(_ALEXNET, data="gtsrb", augment=_SIGNS)
