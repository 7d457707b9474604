"""Which normalization a network is built with: parts that make torch's own layers.

Legend of shapes: B examples, C channels, S sizes (rows and columns, or time), D features.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

_BATCH = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
_INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d}


class Norm(Protocol):
    """Makes the normalization layers of a network, which do not change shapes."""

    def maps(self, channels: int, num_axes: int = 2) -> nn.Module:
        """A layer for (B, C, *S).

        Args:
            channels: C.
            num_axes: how many sizes there are: 2 for images, 1 for signals, 0 for plain features.
        """
        ...

    def features(self, width: int, *, causal: bool = False) -> nn.Module:
        """A layer for the features of positions, (B, ..., D), the features last.

        Args:
            width: D.
            causal: whether a position may not know of later ones.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class BatchNorm:
    """Each channel over all examples and places; running statistics in evaluation. Weak where batches are small.

    Args:
        momentum: how far running statistics move towards those of a batch.
        eps: guards the division.

    Source: Ioffe and Szegedy 2015.
    """

    momentum: float = 0.1
    eps: float = 1e-5

    def maps(self, channels: int, num_axes: int = 2) -> nn.Module:
        """`BatchNorm1d` or `BatchNorm2d`."""
        return _BATCH[num_axes](channels, eps=self.eps, momentum=self.momentum)

    def features(self, width: int, *, causal: bool = False) -> nn.Module:
        """`BatchNorm1d` over examples and positions alike; in training a position so knows of the statistics of all."""
        return _EachPosition(self.maps(width, 0))


@dataclass(frozen=True, kw_only=True)
class InstanceNorm:
    """Each channel of each example over its places alone, which takes the contrast of an image off.

    Args:
        eps: guards the division.

    Source: Ulyanov, Vedaldi and Lempitsky 2016.
    """

    eps: float = 1e-5

    def maps(self, channels: int, num_axes: int = 2) -> nn.Module:
        """`InstanceNorm1d` or `InstanceNorm2d` with a scale and a shift; raises ValueError where there are no places."""
        if num_axes == 0:
            raise ValueError(
                "instance normalization is over the places of an image or signal, and plain features have none, so that all "
                "would become 0. Take LayerNorm() or BatchNorm()."
            )
        return _INSTANCE[num_axes](channels, eps=self.eps, affine=True)

    def features(self, width: int, *, causal: bool = False) -> nn.Module:
        """`InstanceNorm1d` over positions; raises ValueError where a position may not know of later ones."""
        if causal:
            raise ValueError(
                "instance normalization is over all positions of a sequence, so that a causal network would see the tokens it "
                "is to predict. Take LayerNorm()."
            )
        return _OverPositions(self.maps(width, 1))


@dataclass(frozen=True, kw_only=True)
class LayerNorm:
    """All channels and places of an example together; of positions, the features of each by itself.

    Args:
        eps: guards the division.

    Source: Ba, Kiros and Hinton 2016.
    """

    eps: float = 1e-5

    def maps(self, channels: int, num_axes: int = 2) -> nn.Module:
        """`GroupNorm` with one group, which is layer normalization that takes images of any size."""
        return nn.GroupNorm(1, channels, eps=self.eps) if num_axes else nn.LayerNorm(channels, eps=self.eps)

    def features(self, width: int, *, causal: bool = False) -> nn.Module:
        """`LayerNorm`."""
        return nn.LayerNorm(width, eps=self.eps)


@dataclass(frozen=True, kw_only=True)
class GroupNorm:
    """Groups of channels of an example, with all places.

    Args:
        groups: how many, a divisor of all numbers of channels.
        eps: guards the division.

    Source: Wu and He 2018.
    """

    groups: int = 8
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ValueError(f"`groups` must be at least 1; got {self.groups}. 1 is layer normalization.")

    def maps(self, channels: int, num_axes: int = 2) -> nn.Module:
        """`GroupNorm`; raises ValueError where the groups do not divide the channels."""
        if channels % self.groups:
            raise ValueError(
                f"`groups` must divide the channels, or groups would be uneven; got {self.groups} for {channels} channels. Take "
                "a common divisor of all layers, or LayerNorm(), which has one group."
            )
        return nn.GroupNorm(self.groups, channels, eps=self.eps)

    def features(self, width: int, *, causal: bool = False) -> nn.Module:
        """`GroupNorm` of each position by itself."""
        return _EachPosition(self.maps(width, 0))


@dataclass(frozen=True, kw_only=True)
class NoNorm:
    """None: values go through as they are."""

    def maps(self, channels: int, num_axes: int = 2) -> nn.Module:
        """`Identity`."""
        return nn.Identity()

    def features(self, width: int, *, causal: bool = False) -> nn.Module:
        """`Identity`."""
        return nn.Identity()


def needs_bias(norm: Norm) -> bool:
    """Whether the layer before a normalization should have a bias, since the normalization adds none."""
    return isinstance(norm, NoNorm)


class _EachPosition(nn.Module):
    """A layer for (N, D), on each of all positions."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.layer(x_BTD.flatten(0, -2)).view_as(x_BTD)


class _OverPositions(nn.Module):
    """A layer for (B, D, T), on (B, T, D)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.layer(x_BTD.movedim(-1, 1)).movedim(1, -1)
