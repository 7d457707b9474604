"""A small convolutional network for images of a few dozen pixels.

Legend of shapes: B images, C channels, H rows, W columns.
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


class SmallConvNet(nn.Module):
    """3x3 convolutions with batch normalization, each followed by a halving of the size; a linear layer on their mean.

    Args:
        in_channels: of the images.
        num_classes: outputs.
        channels: of the convolutions.
        dropout: before the linear layer.

    Attributes:
        settings: the arguments by name, JSON; `SmallConvNet(**settings)` is the same network with fresh weights.
        features: the convolutions, (B, in_channels, H, W) to (B, channels[-1], h, w), each halving rounded up.
        head: the linear layer.
    """

    def __init__(
        self, *, in_channels: int, num_classes: int, channels: Sequence[int] = (32, 64), dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "channels": list(channels),
            "dropout": dropout,
        }
        blocks, width = [], in_channels
        for out in channels:
            blocks += [
                nn.Conv2d(width, out, 3, padding=1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
            width = out
        self.features = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        """The logits of images of any size."""
        return self.head(self.dropout(self.features(images_BCHW).mean((-2, -1))))
