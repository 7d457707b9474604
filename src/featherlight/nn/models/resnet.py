"""Residual networks: ResNet-8 and ResNet-20 for small images, ResNet-18 for large ones, with or without pre-activation.

Legend of shapes: B images, C channels, H rows, W columns, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from featherlight.nn.models.norms import BatchNorm, Norm, needs_bias


class Shortcut(Protocol):
    """What a residual block adds its branch to where the number of channels or the size changes."""

    def layer(self, before: int, after: int, stride: int, norm: Norm) -> nn.Module:
        """From `before` channels to `after` at every `stride`-th place."""
        ...


@dataclass(frozen=True)
class ZeroPadding:
    """Every `stride`-th place, and channels of zeros: no parameters. Option A of He et al. 2016a, section 4.1."""

    def layer(self, before: int, after: int, stride: int, norm: Norm) -> nn.Module:
        """The layer; raises ValueError where channels become fewer."""
        if after < before:
            raise ValueError(
                f"channels can be padded up but not down; got {before} and then {after}. Take Projection()."
            )
        return _Padded(before, after, stride)


@dataclass(frozen=True)
class Projection:
    """A convolution of 1x1 and a norm. Option B of He et al. 2016a, section 3.3."""

    def layer(self, before: int, after: int, stride: int, norm: Norm) -> nn.Module:
        """The layer."""
        convolution = nn.Conv2d(before, after, 1, stride=stride, bias=needs_bias(norm))
        return nn.Sequential(convolution, norm.maps(after))


@dataclass(frozen=True, kw_only=True)
class Stem:
    """The first convolution.

    Args:
        size: of its kernels.
        stride: of it.
        pool: whether max pooling of 3x3 halves the size after it.
    """

    size: int = 3
    stride: int = 1
    pool: bool = False

    def layers(self, in_channels: int, width: int, norm: Norm, *, activate: bool) -> nn.Sequential:
        """The convolution, with norm and rectifier unless the blocks begin with them."""
        padding = self.size // 2
        parts: list[nn.Module] = [
            nn.Conv2d(in_channels, width, self.size, stride=self.stride, padding=padding, bias=needs_bias(norm))
        ]
        parts += [norm.maps(width), nn.ReLU()] if activate else []
        return nn.Sequential(*parts, *([nn.MaxPool2d(3, 2, padding=1)] if self.pool else []))


SMALL_STEM = Stem()
"""For images of a few dozen pixels: 3x3 at every place."""

LARGE_STEM = Stem(size=7, stride=2, pool=True)
"""For images of some hundred pixels: a quarter of their size."""


class ResNet(nn.Module):
    """A stem, stages of residual blocks, each stage but the first at half the size, and a linear layer on the mean.

    Args:
        num_classes: K.
        in_channels: C.
        widths: channels of each stage.
        blocks: how many each stage has.
        stem: the first convolution.
        shortcut: where channels or sizes change.
        pre_activation: whether norm and rectifier come before the convolutions of a block, not after them.
        norm: after each convolution, or before it.
        dropout: share of features that is dropped before the linear layer.

    Attributes:
        features: stem and stages.
        head: the linear layer.

    Raises:
        ValueError: not as many widths as numbers of blocks, or one below 1.

    Source: He, Zhang, Ren and Sun 2016a (CVPR), sections 3 and 4.2; pre-activation: 2016b (ECCV). Convolutions start as He et al.
    2015 have it.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        widths: Sequence[int],
        blocks: Sequence[int],
        stem: Stem = SMALL_STEM,
        shortcut: Shortcut = ZeroPadding(),
        pre_activation: bool = False,
        norm: Norm = BatchNorm(),  # noqa: B008
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks) or not widths or min(*widths, *blocks, num_classes) < 1:
            raise ValueError(
                "`widths` and `blocks` must have a number of at least 1 for each stage; got "
                f"{list(widths)} and {list(blocks)}, with {num_classes} classes."
            )
        kind = PreActivationBlock if pre_activation else ResidualBlock
        parts: list[nn.Module] = [stem.layers(in_channels, widths[0], norm, activate=not pre_activation)]
        width = widths[0]
        for stage, (after, count) in enumerate(zip(widths, blocks, strict=True)):
            for number in range(count):
                stride = 2 if stage and not number else 1
                parts.append(kind(width, after, stride=stride, shortcut=shortcut, norm=norm))
                width = after
        parts += [norm.maps(width), nn.ReLU()] if pre_activation else []
        self.features = nn.Sequential(*parts)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """The logits of images of any size."""
        return self.head(self.dropout(self.features(images_BCHW).mean((-2, -1))))


class ResidualBlock(nn.Module):
    """`relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))`.

    Args:
        before: channels in.
        after: channels out.
        stride: of the first convolution.
        shortcut: where channels or the size change.
        norm: after each convolution.

    Attributes:
        branch: what is added.
        shortcut: what it is added to.

    Source: He et al. 2016a, figure 2.
    """

    def __init__(self, before: int, after: int, *, stride: int, shortcut: Shortcut, norm: Norm) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _conv(before, after, stride, norm),
            norm.maps(after),
            nn.ReLU(),
            _conv(after, after, 1, norm),
            norm.maps(after),
        )
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else shortcut.layer(before, after, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, h, w)."""
        return (self.shortcut(x) + self.branch(x)).relu()


class PreActivationBlock(nn.Module):
    """`shortcut(x) + conv(relu(norm(conv(relu(norm(x))))))`; a shortcut that changes shapes is taken after the first rectifier.

    Args:
        before: channels in.
        after: channels out.
        stride: of the first convolution.
        shortcut: where channels or the size change.
        norm: before each convolution.

    Attributes:
        first: norm and rectifier.
        branch: the rest of what is added.
        shortcut: what it is added to; None is the input itself.

    Source: He et al. 2016b, figure 1b and section 4.
    """

    def __init__(self, before: int, after: int, *, stride: int, shortcut: Shortcut, norm: Norm) -> None:
        super().__init__()
        self.first = nn.Sequential(norm.maps(before), nn.ReLU())
        self.branch = nn.Sequential(
            _conv(before, after, stride, norm), norm.maps(after), nn.ReLU(), _conv(after, after, 1, norm)
        )
        same = before == after and stride == 1
        self.shortcut = None if same else shortcut.layer(before, after, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, h, w)."""
        first = self.first(x)
        return (x if self.shortcut is None else self.shortcut(first)) + self.branch(first)


def resnet8(num_classes: int = 10, **parts: Any) -> ResNet:
    """One block for each of three stages, for 32x32; 75,290 parameters. `parts` as for `ResNet`."""
    return ResNet(num_classes, widths=(16, 32, 64), blocks=(1, 1, 1), **parts)


def resnet20(num_classes: int = 10, **parts: Any) -> ResNet:
    """Three blocks for each of three stages, for 32x32; 269,722 parameters. `parts` as for `ResNet`.

    Source: He et al. 2016a, section 4.2 and table 6.
    """
    return ResNet(num_classes, widths=(16, 32, 64), blocks=(3, 3, 3), **parts)


def resnet18(
    num_classes: int = 1000, *, stem: Stem = LARGE_STEM, shortcut: Shortcut = Projection(), **parts: Any
) -> ResNet:
    """Two blocks for each of four stages; 11,689,512 parameters with 1,000 classes.

    Args:
        num_classes: outputs.
        stem: the first convolution; `SMALL_STEM` is for images of 32x32.
        shortcut: where channels or sizes change.
        parts: as for `ResNet`.

    Source: He et al. 2016a, table 1.
    """
    made: dict[str, Any] = {"stem": stem, "shortcut": shortcut} | parts
    return ResNet(num_classes, widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2), **made)


class _Padded(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.more = after - before
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        kept = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(kept, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))


def _conv(before: int, after: int, stride: int, norm: Norm) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=needs_bias(norm))
