"""The networks of the first digit readers: LeNet-300-100, LeNet-5 as published, and LeNet-5 as Caffe has it.

Legend of shapes: B images, C channels, H rows, W columns, K classes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.nn.models.lenet_codes import DIGIT_CODES
from featherlight.nn.models.lenet_layers import (
    CodeDistances,
    PartialConv,
    ScaledTanh,
    TrainableAveraging,
    start_as_1998,
)
from featherlight.nn.models.norms import NoNorm, Norm

_CONNECTIONS = (
    *((i, (i + 1) % 6, (i + 2) % 6) for i in range(6)),
    *((i, (i + 1) % 6, (i + 2) % 6, (i + 3) % 6) for i in range(6)),
    *((i, (i + 1) % 6, (i + 3) % 6, (i + 4) % 6) for i in range(3)),
    (0, 1, 2, 3, 4, 5),
)
"""Which of the 6 maps of S2 each of the 16 of C3 sees: Table I of the paper."""


class LeNet300(nn.Module):
    """Two hidden layers on all pixels: 784-300-100-10 has 266,610 parameters.

    Args:
        num_classes: K.
        num_pixels: C * H * W.
        hidden: their widths.
        norm: after each hidden layer, before its rectifier.
        dropout: share of the features that is dropped after each.

    Attributes:
        features: from images to the last hidden layer.
        head: the last layer.

    Raises:
        ValueError: a number below 1, or a norm that needs places.

    Source: LeCun, Bottou, Bengio and Haffner 1998, section III.C.4. There the units are scaled hyperbolic tangents.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        num_pixels: int = 784,
        hidden: Sequence[int] = (300, 100),
        norm: Norm = NoNorm(),  # noqa: B008
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not hidden or min(num_classes, num_pixels, *hidden) < 1:
            raise ValueError(
                f"`num_classes`, `num_pixels` and `hidden` must be at least 1; got {num_classes}, {num_pixels} and "
                f"{list(hidden)}."
            )
        parts: list[nn.Module] = [nn.Flatten()]
        for before, after in zip([num_pixels, *hidden], hidden, strict=False):
            parts += [nn.Linear(before, after), norm.maps(after, 0), nn.ReLU(), nn.Dropout(dropout)]
        self.features = nn.Sequential(*parts)
        self.head = nn.Linear(hidden[-1], num_classes)

    def forward(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """The logits."""
        return self.head(self.features(images_BCHW))


class LeNet5(nn.Module):
    """LeNet-5 as published, with its 60,000 trainable parameters for grey images of 32x32 pixels, or 28x28 and a margin.

    Convolution, trainable averaging, a convolution whose maps each see some of the maps before, averaging, convolution, a full
    layer of 84 units, and the squared distance of their values from a fixed pattern for each class.

    Args:
        num_classes: K.
        in_channels: C.
        margin: pixels that are added on each side: 2 for images of 28x28, 0 for 32x32.
        codes: patterns of -1 and 1, (K, 84); None takes those of the paper for 10 classes, which are the digits as drawn in 7x12
            pixels, and orthogonal ones for another number of classes up to 84.
        norm: after each convolution but the last, which leaves one place, before the unit.
        dropout: share of the features that is dropped before the full layer.

    Attributes:
        features: from images to the 84 units.
        head: distances from the patterns; it has no parameters.

    Raises:
        ValueError: codes of another shape, or too many classes to have codes of their own.

    Source: LeCun, Bottou, Bengio and Haffner 1998, section II.B. The maps of grouped inputs and the scaled hyperbolic tangent
    1.7159 tanh(2x/3) are as there. Logits are minus the distances; the loss is the user's own.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 1,
        margin: int = 2,
        codes: Float[Tensor, "K 84"] | None = None,
        norm: Norm = NoNorm(),  # noqa: B008
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5, padding=margin),
            norm.maps(6),
            ScaledTanh(),
            TrainableAveraging(6),
            ScaledTanh(),
            PartialConv(_CONNECTIONS, 5),
            norm.maps(16),
            ScaledTanh(),
            TrainableAveraging(16),
            ScaledTanh(),
            nn.Conv2d(16, 120, 5),
            ScaledTanh(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(120, 84),
            ScaledTanh(),
        )
        start_as_1998(self.features)
        self.head = CodeDistances(_codes(num_classes) if codes is None else codes)
        if len(self.head.codes) != num_classes or self.head.codes.shape[1] != 84:
            raise ValueError(
                f"`codes` must have a row of 84 numbers for each of {num_classes} classes; got the shape "
                f"{tuple(self.head.codes.shape)}."
            )

    def forward(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """The logits of images of 32x32 pixels with their margin."""
        _check_size(images_BCHW, 32 - 2 * self.features[0].padding[0])  # pyright: ignore
        return self.head(self.features(images_BCHW))


class CaffeLeNet(nn.Module):
    """LeNet-5 as Caffe has it, and most who prune networks: 430,500 weights and 580 biases for grey images of 28x28 pixels.

    Args:
        num_classes: K.
        in_channels: C.
        side: H and W.
        norm: after each convolution.
        dropout: share of the features that is dropped before the last layer.

    Attributes:
        features: two convolutions with pooling, and the hidden layer of 500.
        head: the last layer.

    Raises:
        ValueError: images too small for the two convolutions.

    Source: Jia et al. 2014, `lenet.prototxt`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 1,
        side: int = 28,
        norm: Norm = NoNorm(),  # noqa: B008
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        last = ((side - 4) // 2 - 4) // 2
        if last < 1:
            raise ValueError(f"`side` must be at least 16 pixels for two convolutions of 5x5 with pooling; got {side}.")
        self._side = side
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 20, 5),
            norm.maps(20),
            nn.MaxPool2d(2),
            nn.Conv2d(20, 50, 5),
            norm.maps(50),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(50 * last * last, 500),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.head = nn.Linear(500, num_classes)

    def forward(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """The logits."""
        _check_size(images_BCHW, self._side)
        return self.head(self.features(images_BCHW))


def _codes(num_classes: int) -> Tensor:
    if num_classes == len(DIGIT_CODES):
        return torch.tensor(DIGIT_CODES, dtype=torch.float32)
    if not 2 <= num_classes <= 84:
        raise ValueError(
            f"`num_classes` is {num_classes}, but there are patterns of their own for 2 to 84 classes. Hand in `codes`, or take "
            "a network with a linear head, such as CaffeLeNet."
        )
    rows = torch.ones(1, 1)
    while len(rows) < 128:
        rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
    return rows[1 : num_classes + 1, :84]


def _check_size(images_BCHW: Tensor, side: int) -> None:
    if tuple(images_BCHW.shape[-2:]) != (side, side):
        raise ValueError(
            f"the network takes images of {side}x{side} pixels; got the shape {tuple(images_BCHW.shape)}. Resize them, or build "
            "the network for their size."
        )
