"""Convolutional encoder and decoder for images or signals: strided convolutions and residual blocks.

Legend of shapes: B examples, C channels, F features of a position, S sizes (rows and columns, or time).
"""

import math
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from featherlight.nn.models.norms import NoNorm, Norm

_CONVOLUTIONS: dict[int, tuple[type[nn.Module], type[nn.Module]]] = {
    1: (nn.Conv1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d),
}


class ResidualBlock(nn.Module):
    """`x + W1 relu(W3 relu(x))`, a wide convolution and then one of single places.

    Args:
        channels: in and out.
        hidden: between the two convolutions.
        num_axes: 1 for signals, 2 for images.
        dilation: distance of the places that the wide convolution looks at.
        norm: after the wide convolution.
        dropout: share of what is added that is dropped in training.

    Attributes:
        branch: what is added to the input.

    Source: van den Oord, Vinyals and Kavukcuoglu 2017, section 4.1.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        num_axes: int = 2,
        dilation: int = 1,
        norm: Norm = NoNorm(),  # noqa: B008
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        convolution, _ = _CONVOLUTIONS[num_axes]
        self.branch = nn.Sequential(
            nn.ReLU(),
            convolution(channels, hidden, 3, padding=dilation, dilation=dilation),
            *_normed(norm, hidden, num_axes),
            nn.ReLU(),
            convolution(hidden, channels, 1),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        return x + self.branch(x)


class ConvEncoder(nn.Module):
    """From images or signals to features at fewer places.

    Strided convolutions whose widths grow to `width`, a convolution of 3 places, residual blocks, and a linear map of each
    place to `dim` features. With two strides of 2 and two blocks it has the shape of the encoder of VQ-VAE.

    Args:
        in_channels: C.
        dim: F.
        strides: by how much each strided convolution shrinks the sizes; even numbers.
        width: channels of the residual blocks; the strided convolutions before the last have half of it.
        num_blocks: residual blocks.
        block_width: channels inside them.
        num_axes: 1 for signals, 2 for images.
        dilations: of the residual blocks in turn, again from the start where there are more blocks.
        norm: after each strided convolution and in each residual block.
        dropout: share of what residual blocks add that is dropped in training.

    Attributes:
        layers: in the order in which they run.
        factor: by how much the sizes shrink.

    Raises:
        ValueError: a stride that is not even, or a number below 1.

    Source: van den Oord et al. 2017, section 4.1. There all convolutions have 256 channels.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        dim: int,
        strides: Sequence[int] = (2, 2),
        width: int = 64,
        num_blocks: int = 2,
        block_width: int = 32,
        num_axes: int = 2,
        dilations: Sequence[int] = (1,),
        norm: Norm = NoNorm(),  # noqa: B008
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check(strides, width, num_axes)
        convolution, _ = _CONVOLUTIONS[num_axes]
        widths = _widths(strides, width)
        parts: list[nn.Module] = []
        for before, after, stride in zip([in_channels, *widths], widths, strides, strict=False):
            parts.append(convolution(before, after, 2 * stride, stride=stride, padding=stride // 2))
            parts += [*_normed(norm, after, num_axes), nn.ReLU()]
        parts += [convolution(width if strides else in_channels, width, 3, padding=1)]
        parts += _blocks(num_blocks, width, block_width, num_axes, dilations, norm=norm, dropout=dropout)
        self.layers = nn.Sequential(*parts, nn.ReLU(), convolution(width, dim, 1))
        self.factor = math.prod(strides)

    def forward(self, x: Float[Tensor, "B C *S"]) -> Float[Tensor, "B F *s"]:
        """The features; `S` must be multiples of `factor`, or what is left over is cut off."""
        return self.layers(x)


class ConvDecoder(nn.Module):
    """From features back to images or signals: the mirror image of `ConvEncoder`, with the same arguments.

    Args:
        out_channels: C.
        dim: F.
        strides: those of the encoder, in its order.
        width: channels of the residual blocks.
        num_blocks: residual blocks.
        block_width: channels inside them.
        num_axes: 1 for signals, 2 for images.
        dilations: of the residual blocks in turn.
        norm: in each residual block, and after each strided convolution but the last.
        dropout: share of what residual blocks add that is dropped in training.

    Attributes:
        layers: in the order in which they run.

    Raises:
        ValueError: as for `ConvEncoder`.

    Source: van den Oord et al. 2017, section 4.1.
    """

    def __init__(
        self,
        *,
        out_channels: int,
        dim: int,
        strides: Sequence[int] = (2, 2),
        width: int = 64,
        num_blocks: int = 2,
        block_width: int = 32,
        num_axes: int = 2,
        dilations: Sequence[int] = (1,),
        norm: Norm = NoNorm(),  # noqa: B008
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check(strides, width, num_axes)
        convolution, transposed = _CONVOLUTIONS[num_axes]
        widths = _widths(strides, width)[::-1]
        parts: list[nn.Module] = [convolution(dim, width, 3, padding=1)]
        parts += [*_blocks(num_blocks, width, block_width, num_axes, dilations, norm=norm, dropout=dropout), nn.ReLU()]
        ends = [*widths[1:], out_channels]
        for number, (before, after, stride) in enumerate(zip(widths, ends, reversed(strides), strict=False)):
            parts += [*_normed(norm, before, num_axes), nn.ReLU()] if number else []
            parts += [transposed(before, after, 2 * stride, stride=stride, padding=stride // 2)]
        if not strides:
            parts += [convolution(width, out_channels, 1)]
        self.layers = nn.Sequential(*parts)

    def forward(self, x: Float[Tensor, "B F *s"]) -> Float[Tensor, "B C *S"]:
        """What the features stand for."""
        return self.layers(x)


def _widths(strides: Sequence[int], width: int) -> list[int]:
    """Channels after each strided convolution."""
    return [max(1, width // 2)] * (len(strides) - 1) + [width] * min(1, len(strides))


def _blocks(
    count: int, width: int, hidden: int, num_axes: int, dilations: Sequence[int], *, norm: Norm, dropout: float
) -> list[nn.Module]:
    parts: dict[str, Any] = {"num_axes": num_axes, "norm": norm, "dropout": dropout}
    return [
        ResidualBlock(width, hidden, dilation=dilations[number % len(dilations)], **parts) for number in range(count)
    ]


def _normed(norm: Norm, channels: int, num_axes: int) -> list[nn.Module]:
    """The layer, or none, so that layers keep their numbers where nothing is normalized."""
    layer = norm.maps(channels, num_axes)
    return [] if isinstance(layer, nn.Identity) else [layer]


def _check(strides: Sequence[int], width: int, num_axes: int) -> None:
    if num_axes not in _CONVOLUTIONS:
        raise ValueError(f"`num_axes` must be 1 (signals) or 2 (images); got {num_axes}.")
    if any(stride < 2 or stride % 2 for stride in strides):
        raise ValueError(
            f"`strides` must be even numbers from 2, so that places of input and output line up; got {list(strides)}. Leave "
            "a stride of 1 out."
        )
    if width < 1:
        raise ValueError(f"`width` must be at least 1 channel; got {width}.")
