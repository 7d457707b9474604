"""Recipes of deep compression."""

from dataclasses import replace

from featherlight.recipes.catalogue import recipe
from featherlight.recipes.classify.config import AugmentConfig, ClassifyConfig
from featherlight.recipes.compress.config import CompressConfig, PruneConfig, ShareConfig
from featherlight.recipes.optimizer_config import OptimizerConfig

_MNIST_DATA = "mnist/ in the folder FEATHERLIGHT_DATA"
_LENET300 = ClassifyConfig(
    data="mnist",
    valid_fraction=0.05,
    network="lenet300",
    dropout=0.0,
    augment=AugmentConfig(shift=1),
    epochs=40,
    batch=128,
    optimizer=OptimizerConfig(lr=2e-3, weight_decay=0.01, schedule="cosine"),
)


@recipe(cost="8 minutes on 1 core", data=_MNIST_DATA)
def lenet300() -> CompressConfig:
    """LeNet-300-100 on MNIST, pruned, shared and coded into a file of some kilobytes."""
    return CompressConfig(
        classify=_LENET300,
        prune=PruneConfig(sparsity=0.955, updates=40, epochs=16),
        share=ShareConfig(rate=0.005, epochs=8),
    )


@recipe(cost="an estimated 40 minutes on 1 core", data=_MNIST_DATA)
def lenet5() -> CompressConfig:
    """LeNet-5 as Caffe has it on MNIST, pruned, shared and coded into a file of some kilobytes."""
    return CompressConfig(
        classify=replace(_LENET300, network="caffe-lenet", epochs=6),
        prune=PruneConfig(sparsity=0.985, updates=40, epochs=12),
        share=ShareConfig(rate=0.005, epochs=6),
    )


@recipe(cost="an estimated 4 hours on 1 core", data="cifar10-jpeg/ in the folder FEATHERLIGHT_DATA")
def resnet20() -> CompressConfig:
    """ResNet-20 on CIFAR-10 (as JPEG), pruned, shared and coded."""
    return CompressConfig(
        classify=replace(
            _LENET300,
            data="cifar10",
            network="resnet20",
            augment=AugmentConfig(shift=4, flip=True),
            epochs=30,
            optimizer=OptimizerConfig(lr=3e-3, weight_decay=0.05, schedule="cosine"),
        ),
        prune=PruneConfig(sparsity=0.85, epochs=20),
        share=ShareConfig(codes=15, rate=0.005, epochs=8),
        augment=AugmentConfig(shift=4, flip=True),
    )
