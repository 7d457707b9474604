"""Networks of separable convolutions: MobileNet, and the same with the residual blocks of Xception.

Legend of shapes: B images, C channels, H rows, W columns, K classes.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from featherlight.nn.models.norms import BatchNorm, Norm, needs_bias
from featherlight.nn.models.resnet import Stem

LARGE: tuple[tuple[int, int], ...] = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)
"""Channels and stride of each block as published, for images of 224x224."""

SMALL: tuple[tuple[int, int], ...] = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1))
"""The same for images of 32x32, with a first convolution at every place."""


class MobileNet(nn.Module):
    """A convolution, separable blocks, and a linear layer on their mean: 4,231,976 parameters as published.

    Args:
        num_classes: K.
        in_channels: C.
        stem: the first convolution; `SMALL_STEM` is for images of 32x32.
        blocks: channels and stride of each block; `SMALL` is for images of 32x32.
        multiplier: of all channels, which are rounded up to multiples of 8.
        residual: whether blocks have the shortcuts of Xception.
        norm: after each convolution.
        dropout: share of features that is dropped before the linear layer.

    Attributes:
        features: the convolutions.
        head: the linear layer.

    Raises:
        ValueError: no blocks, or a number that is not positive.

    Source: Howard et al. 2017, table 1; Chollet 2017.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        in_channels: int = 3,
        stem: Stem = Stem(stride=2),  # noqa: B008
        blocks: Sequence[tuple[int, int]] = LARGE,
        multiplier: float = 1.0,
        residual: bool = False,
        norm: Norm = BatchNorm(),  # noqa: B008
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not blocks or not multiplier > 0 or min(min(block) for block in blocks) < 1:
            raise ValueError(
                "`blocks` must have channels and a stride of at least 1 for each block and `multiplier` be positive; got "
                f"{list(blocks)} and {multiplier}."
            )
        width = _rounded(32 * multiplier)
        parts: list[nn.Module] = [stem.layers(in_channels, width, norm, activate=True)]
        kind = XceptionBlock if residual else SeparableBlock
        for channels, stride in blocks:
            after = _rounded(channels * multiplier)
            parts.append(kind(width, after, stride=stride, norm=norm))
            width = after
        self.features = nn.Sequential(*parts)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """The logits of images of any size."""
        return self.head(self.dropout(self.features(images_BCHW).mean((-2, -1))))


class SeparableBlock(nn.Sequential):
    """A convolution of each channel by itself, one of each place by itself, a norm and a rectifier after both.

    Args:
        before: channels in.
        after: channels out.
        stride: of the first.
        norm: after both.

    Source: Howard et al. 2017, figure 3.
    """

    def __init__(self, before: int, after: int, *, stride: int, norm: Norm) -> None:
        bias = needs_bias(norm)
        super().__init__(
            nn.Conv2d(before, before, 3, stride=stride, padding=1, groups=before, bias=bias),
            norm.maps(before),
            nn.ReLU(),
            nn.Conv2d(before, after, 1, bias=bias),
            norm.maps(after),
            nn.ReLU(),
        )


class XceptionBlock(nn.Module):
    """Twice a rectifier and a separable convolution without anything inside it, pooled, on top of a projection.

    Args:
        before: channels in.
        after: channels out.
        stride: of the pooling at the end; 1 pools nothing.
        norm: after each separable convolution.

    Attributes:
        branch: what is added.
        shortcut: what it is added to.

    Source: Chollet 2017, figure 5.
    """

    def __init__(self, before: int, after: int, *, stride: int, norm: Norm) -> None:
        super().__init__()
        bias = needs_bias(norm)
        parts: list[nn.Module] = []
        for channels in (before, after):
            parts += [
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
                nn.Conv2d(channels, after, 1, bias=bias),
                norm.maps(after),
            ]
        self.branch = nn.Sequential(*parts, *([] if stride == 1 else [nn.MaxPool2d(3, stride, padding=1)]))
        same = before == after and stride == 1
        projection = nn.Conv2d(before, after, 1, stride=stride, bias=bias)
        self.shortcut = nn.Identity() if same else nn.Sequential(projection, norm.maps(after))

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, h, w)."""
        return self.shortcut(x) + self.branch(x)


def _rounded(channels: float) -> int:
    return max(8, -(-round(channels) // 8) * 8)
