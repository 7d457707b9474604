"""A small convolutional network for images of a few dozen pixels.

Legend of shapes: B images, C channels, H rows, W columns.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class SmallConvNet(nn.Module):
    """Normalized 3x3 convolutions, each with a halving of the size; a linear layer on their mean.

    Args:
        in_channels: of the images.
        num_classes: outputs.
        channels: of the convolutions.
        dropout: before the linear layer.
        norm_groups: groups of channels that are normalized together, in each image by itself; None normalizes over the
            batch.
        pool: whether each convolution is followed by max pooling that halves the size. Without it the convolutions skip
            every other place themselves, which takes a fraction of the time on a CPU.
        mean: of each channel of the images, which is taken off them first; empty leaves them as they are.
        std: standard deviations, by which they are then divided.

    Attributes:
        settings: the arguments by name, JSON; `SmallConvNet(**settings)` is the same network with fresh weights.
        features: the convolutions, (B, in_channels, H, W) to (B, channels[-1], h, w), each halving rounded up.
        head: the linear layer.
        blocks: the parts of `features`, one for each convolution.

    Raises:
        ValueError: groups that do not divide the channels, or statistics that are not one for each channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        channels: Sequence[int] = (32, 64),
        dropout: float = 0.0,
        norm_groups: int | None = None,
        pool: bool = True,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        super().__init__()
        _check(in_channels, channels, norm_groups, mean, std)
        self.settings: dict[str, Any] = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "channels": list(channels),
            "dropout": dropout,
            "norm_groups": norm_groups,
            "pool": pool,
            "mean": list(mean),
            "std": list(std),
        }
        parts, width = [], in_channels
        for out in channels:
            parts += [
                nn.Conv2d(width, out, 3, padding=1, stride=1 if pool else 2, bias=False),
                nn.BatchNorm2d(out) if norm_groups is None else nn.GroupNorm(norm_groups, out),
                nn.ReLU(),
                *([nn.MaxPool2d(2, ceil_mode=True)] if pool else []),
            ]
            width = out
        self.features = nn.Sequential(*parts)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)
        self.register_buffer("mean", torch.tensor(list(mean) or [0.0]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std) or [1.0]).view(-1, 1, 1), persistent=False)

    @property
    def blocks(self) -> list[nn.Sequential]:
        """Convolution, normalization, rectifier and any pooling, in the order in which they run."""
        parts, count = list(self.features), len(self.settings["channels"])
        size = len(parts) // count
        return [nn.Sequential(*parts[number * size : (number + 1) * size]) for number in range(count)]

    def forward(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        """The logits of images of any size, with values in [0, 1] where the network has statistics of such."""
        x = (images_BCHW - self.mean) / self.std
        return self.head(self.dropout(self.features(x).mean((-2, -1))))


def _check(
    in_channels: int, channels: Sequence[int], norm_groups: int | None, mean: Sequence[float], std: Sequence[float]
) -> None:
    if norm_groups is not None and (norm_groups < 1 or any(width % norm_groups for width in channels)):
        raise ValueError(
            f"`norm_groups` must divide each number of channels, or the groups would be uneven; got {norm_groups} for "
            f"{list(channels)}. Take a common divisor, or None to normalize over the batch."
        )
    if len(mean) != len(std) or len(mean) not in (0, in_channels) or any(one <= 0 for one in std):
        raise ValueError(
            f"`mean` and `std` must have a number for each of {in_channels} channels, `std` above 0, or both be empty; got "
            f"{list(mean)} and {list(std)}."
        )
