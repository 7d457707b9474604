"""The config of a compressed image classifier. It imports no torch, so that listing recipes is quick."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from featherlight.recipes.classify.config import AugmentConfig, ClassifyConfig

if TYPE_CHECKING:
    from featherlight.trainer import Experiment, Workspace


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How the small network learns from the dense one.

    Args:
        temperature: what logits are divided by.
        share: of the loss that comes from the dense network.
    """

    temperature: float = 3.0
    share: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf") or not 0 <= self.share <= 1:
            raise ValueError(
                f"`temperature` must be a finite positive number and `share` lie in [0, 1]; got {self.temperature} and "
                f"{self.share}."
            )


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """How weights are pruned.

    Args:
        sparsity: share of the weights that goes.
        allocation: "layers" weighs each layer by what it has left (layer-adaptive magnitude), "global" is one threshold.
        end: share of the stage after which the masks stay.
        updates: of the masks until then.
        regrow: whether pruned weights can come back until then.
        epochs: passes over the training images.
        lr: learning rate, which falls to zero along a cosine.
    """

    sparsity: float = 0.97
    allocation: Literal["layers", "global"] = "layers"
    end: float = 0.7
    updates: int = 100
    regrow: bool = False
    epochs: int = 30
    lr: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"`sparsity` must lie in [0, 1); got {self.sparsity}.")
        _check_training(self.epochs, self.lr)


@dataclass(frozen=True, kw_only=True)
class ShareConfig:
    """How weights are made to share values, and how bits count in it.

    Args:
        codes: values of each codebook beside zero.
        bias_codes: of each bias.
        rate: what a bit costs when codes are chosen; 0 takes the nearest.
        penalty: what a bit a weight is worth in the loss; 0 leaves it out.
        updates: how often codes are chosen anew.
        end: share of the stage after which codes stay and the codebooks alone are trained.
        epochs: passes over the training images.
        lr: learning rate of weights, which falls to zero along a cosine.
        codebook_lr: of the codebooks.
    """

    codes: int = 10
    bias_codes: int = 6
    rate: float = 0.01
    penalty: float = 0.0
    updates: int = 20
    end: float = 0.6
    epochs: int = 15
    lr: float = 3e-4
    codebook_lr: float = 3e-4

    def __post_init__(self) -> None:
        if min(self.codes, self.bias_codes) < 1:
            raise ValueError(f"`codes` and `bias_codes` must be at least 1; got {self.codes} and {self.bias_codes}.")
        if not min(self.rate, self.penalty) >= 0:
            raise ValueError(f"`rate` and `penalty` must be at least 0; got {self.rate} and {self.penalty}.")
        _check_training(self.epochs, self.lr)
        _check_training(self.epochs, self.codebook_lr)


@dataclass(frozen=True, kw_only=True)
class CompressConfig:
    """One image classifier that is trained, pruned, quantized to codebooks and written as a file of few bytes.

    Args:
        classify: data, network and dense training; with `initial` that network is taken over and not trained further first.
        distill: from the dense network.
        prune: the second stage.
        share: the third stage.
        augment: how training images are changed in the second and third stage; None leaves them as they are, which suits a
            network that has little left to fit them with.
        seed: of everything random; takes the place of that of `classify`.
    """

    classify: ClassifyConfig
    distill: DistillConfig = field(default_factory=DistillConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    share: ShareConfig = field(default_factory=ShareConfig)
    augment: AugmentConfig | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.classify.method != "adamw":
            raise ValueError(
                f"`classify.method` must be adamw, since masks and codebooks are trained by gradients; got "
                f"{self.classify.method!r}."
            )

    def experiment(self, workspace: "Workspace") -> "Experiment":
        """Loads the images and builds the network."""
        from featherlight.recipes.compress.experiment import build_experiment

        return build_experiment(self, workspace)


def _check_training(epochs: int, lr: float) -> None:
    if epochs < 1 or not 0 < lr < float("inf"):
        raise ValueError(f"`epochs` must be at least 1 and `lr` a finite positive number; got {epochs} and {lr}.")
