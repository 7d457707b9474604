"""The configs of runs in number formats. They import no torch, so that listing recipes is quick."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from featherlight.recipes.classify.config import ClassifyConfig

if TYPE_CHECKING:
    from featherlight.trainer import Experiment, Workspace

FormatName = Literal["fp32", "bf16", "fp16", "fp8", "fp8_torchao", "mxfp8", "mxfp4", "nvfp4"]
"""Number formats by the names that configs use; the first three and fp8_torchao are computed in, the others emulated."""

Part = Literal["weights", "activations", "gradients"]
"""What of a layer is rounded."""


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """An image classifier that is trained in a number format, and what that format loses.

    Args:
        classify: network, images and training; its `precision`, `seed` and `device` are those below.
        format: "fp32"; "bf16" or "fp16" by autocast, the latter with loss scaling; or in emulation "fp8" (E4M3, and E5M2 for
            gradients, each with a scale for the tensor), "mxfp8", "mxfp4" or "nvfp4". "fp8_torchao" hands linear layers to the
            kernels of torchao, which is to be installed.
        rounded: what an emulated format is for; all else is float32.
        seed: of everything random.
        device: "auto", "cpu", "cuda" or "mps".
    """

    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    format: FormatName = "fp32"
    rounded: tuple[Part, ...] = ("weights", "activations", "gradients")
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.rounded:
            raise ValueError('`rounded` is empty, so nothing would be rounded. Take `format` "fp32" instead.')
        if self.classify.precision != "fp32":
            raise ValueError(
                f"`classify.precision` is {self.classify.precision}, but `format` says in which format this recipe computes. "
                f'Set `format={self.classify.precision}` and leave the other at "fp32".'
            )

    def experiment(self, workspace: "Workspace") -> "Experiment":
        """Loads the images and builds the network."""
        from featherlight.recipes.precision.experiment import build_experiment

        return build_experiment(self, workspace)


@dataclass(frozen=True, kw_only=True)
class LossScalingConfig:
    """An image classifier whose loss has so small a weight that its gradients underflow in float16 without loss scaling.

    Args:
        classify: network, images and training, by AdamW whose step does not depend on the loss's weight; its `precision`,
            `seed` and `device` are those below.
        loss_weight: what the loss is multiplied by; at 2**-20 and 64 images a step, gradients begin near 2**-27.
        precision: "fp32", "bf16" or "fp16".
        scaling: whether fp16 scales the loss.
        seed: of everything random.
        device: "auto", "cpu", "cuda" or "mps".
    """

    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    loss_weight: float = 2.0**-20
    precision: Literal["fp32", "bf16", "fp16"] = "fp16"
    scaling: bool = True
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.loss_weight < float("inf"):
            raise ValueError(f"`loss_weight` must be a finite positive number; got {self.loss_weight}.")
        if self.classify.method != "adamw" or self.classify.optimizer.clip is not None:
            raise ValueError(
                f"the proof is made with AdamW and without clipping, neither of which minds the loss's weight; got "
                f"`classify.method` {self.classify.method} and `classify.optimizer.clip` {self.classify.optimizer.clip}."
            )

    def experiment(self, workspace: "Workspace") -> "Experiment":
        """Loads the images and builds the network."""
        from featherlight.recipes.precision.small_loss import build_experiment

        return build_experiment(self, workspace)
