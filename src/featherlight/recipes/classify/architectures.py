"""The classics by name, built for the images of a set. The table at the end is the one place where their names stand.

Legend of shapes: B images, C channels, H rows, W columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.nn.models import (
    LARGE_STEM,
    SMALL_STEM,
    AlexNet,
    BatchNorm,
    BlockShape,
    CaffeLeNet,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    LeNet5,
    LeNet300,
    MobileNet,
    NoNorm,
    Norm,
    Projection,
    ResNet,
    VisionTransformer,
)
from featherlight.nn.models.alexnet import WIDTHS
from featherlight.nn.models.mobile_net import SMALL


class ImageClassifier(nn.Module):
    """A classic that takes images in [0, 1] and standardizes them, its last layer beside the rest.

    Args:
        network: key of `ARCHITECTURES`.
        in_channels: of the images.
        num_classes: outputs.
        side: rows and columns of the images.
        norm: key of `NORMS`; None is the network's own.
        norm_groups: of the norm "group"; None is 8.
        width: what numbers of channels are multiplied by.
        dropout: share of features that is dropped.
        mean: of each channel, taken off first.
        std: standard deviations, by which is then divided.

    Attributes:
        settings: the arguments by name, JSON; `ImageClassifier(**settings)` is the same network with fresh weights.
        body: all but the last layer.
        head: the last layer.

    Raises:
        ValueError: there is no such network or norm, or it does not take such images.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        network: str,
        in_channels: int,
        num_classes: int,
        side: int,
        norm: str | None = None,
        norm_groups: int | None = None,
        width: float = 1.0,
        dropout: float = 0.0,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "network": network,
            "in_channels": in_channels,
            "num_classes": num_classes,
            "side": side,
            "norm": norm,
            "norm_groups": norm_groups,
            "width": width,
            "dropout": dropout,
            "mean": list(mean),
            "std": list(std),
        }
        if network not in ARCHITECTURES or (norm is not None and norm not in NORMS):
            raise ValueError(
                f"`network` must be one of {', '.join(ARCHITECTURES)} and `norm` one of {', '.join(NORMS)}, or None; got "
                f"{network!r} and {norm!r}."
            )
        made = None if norm is None else GroupNorm(groups=norm_groups or 8) if norm == "group" else NORMS[norm]
        self.body = ARCHITECTURES[network](
            Wanted(in_channels=in_channels, num_classes=num_classes, side=side, norm=made, width=width, dropout=dropout)
        )
        self.head: nn.Module = self.body.get_submodule("head")
        self.body.head = nn.Identity()
        self.register_buffer("mean", torch.tensor(list(mean)).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(-1, 1, 1), persistent=False)

    @property
    def blocks(self) -> list[nn.Module]:
        """The parts of the body that have parameters, in the order in which they run."""
        found: list[nn.Module] = []
        for child in self.body.children():
            found += list(child) if isinstance(child, (nn.Sequential, nn.ModuleList)) else [child]
        return [one for one in found if any(True for _ in one.parameters())]

    def forward(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        """The logits of images with values in [0, 1]."""
        return self.head(self.body((images_BCHW - self.mean) / self.std))


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a network is built for.

    Attributes:
        in_channels: of the images.
        num_classes: outputs.
        side: rows and columns of the images.
        norm: None is the network's own.
        width: what numbers of channels are multiplied by.
        dropout: share of features that is dropped.
    """

    in_channels: int
    num_classes: int
    side: int
    norm: Norm | None
    width: float
    dropout: float

    def parts(self) -> dict[str, Any]:
        """Arguments that networks of convolutions share; a norm only where one is asked for."""
        shared = {"in_channels": self.in_channels, "dropout": self.dropout}
        return shared if self.norm is None else shared | {"norm": self.norm}


def _lenet300(wanted: Wanted) -> nn.Module:
    parts = {name: value for name, value in wanted.parts().items() if name != "in_channels"}
    return LeNet300(wanted.num_classes, num_pixels=wanted.in_channels * wanted.side**2, **parts)


def _lenet5(wanted: Wanted) -> nn.Module:
    if not 0 <= (margin := 32 - wanted.side) <= 8 or margin % 2:
        raise ValueError(
            f"lenet5 takes images of 32x32 pixels, or an even number smaller by up to 8; got {wanted.side}x{wanted.side}. Take "
            "caffe-lenet or resnet20, which take other sizes."
        )
    return LeNet5(wanted.num_classes, margin=margin // 2, **wanted.parts())


def _alexnet(wanted: Wanted) -> nn.Module:
    widths = [2 * max(1, round(width * wanted.width / 2)) for width in WIDTHS]
    return AlexNet(
        wanted.num_classes,
        small_images=wanted.side < 64,
        widths=widths,
        hidden=max(1, round(4096 * wanted.width)),
        **wanted.parts(),
    )


def _resnet(blocks: int) -> Callable[[Wanted], nn.Module]:
    def build(wanted: Wanted) -> nn.Module:
        widths = [max(1, round(width * wanted.width)) for width in (16, 32, 64)]
        return ResNet(wanted.num_classes, widths=widths, blocks=[blocks] * 3, **wanted.parts())

    return build


def _resnet18(wanted: Wanted) -> nn.Module:
    widths = [max(1, round(width * wanted.width)) for width in (64, 128, 256, 512)]
    stem = SMALL_STEM if wanted.side < 64 else LARGE_STEM
    made: dict[str, Any] = {"stem": stem, "shortcut": Projection()} | wanted.parts()
    return ResNet(wanted.num_classes, widths=widths, blocks=(2, 2, 2, 2), **made)


def _mobilenet(wanted: Wanted) -> nn.Module:
    small: dict[str, Any] = {"stem": SMALL_STEM, "blocks": SMALL} if wanted.side < 64 else {}
    return MobileNet(wanted.num_classes, multiplier=wanted.width, **small, **wanted.parts())


def _vit(wanted: Wanted) -> nn.Module:
    """Width 192 with 3 heads, as DeiT-Ti, and 6 blocks; patches are an eighth of the side."""
    shape = BlockShape(width=192, num_heads=3, dropout=wanted.dropout, norm=wanted.norm or LayerNorm())
    patch = max(1, wanted.side // 8)
    return VisionTransformer(
        wanted.num_classes, in_channels=wanted.in_channels, side=wanted.side, patch=patch, shape=shape, num_blocks=6
    )


NORMS: dict[str, Norm] = {
    "batch": BatchNorm(),
    "instance": InstanceNorm(),
    "layer": LayerNorm(),
    "group": GroupNorm(),
    "none": NoNorm(),
}
"""Normalizations by the names that configs use."""

ARCHITECTURES: dict[str, Callable[[Wanted], nn.Module]] = {
    "lenet300": _lenet300,
    "lenet5": _lenet5,
    "caffe-lenet": lambda wanted: CaffeLeNet(wanted.num_classes, side=wanted.side, **wanted.parts()),
    "alexnet": _alexnet,
    "resnet8": _resnet(1),
    "resnet20": _resnet(3),
    "resnet18": _resnet18,
    "mobilenet": _mobilenet,
    "vit": _vit,
}
"""Networks by the names that configs use."""
