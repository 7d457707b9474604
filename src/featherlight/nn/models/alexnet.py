"""AlexNet of 2012, with grouped convolutions and local response normalization, and the same for images of 32x32.

Legend of shapes: B images, C channels, H rows, W columns, K classes.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from featherlight.nn.models.norms import Norm

WIDTHS = (96, 256, 384, 384, 256)
"""Channels of the five convolutions as published."""


class AlexNet(nn.Module):
    """Five convolutions, three of them in two groups, and three full layers: 60,965,224 parameters for 1,000 classes.

    Args:
        num_classes: K.
        in_channels: C.
        small_images: False takes images of 224x224 (or 227x227 and the like) and is the published network. True takes 32x32: a
            first convolution of 5x5 at every place in the place of 11x11 at every fourth.
        widths: channels of the convolutions, even numbers.
        hidden: of the two full layers before the last.
        norm: after every convolution, before its rectifier; None is local response normalization after the first two, as
            published.
        dropout: share of the features that is dropped before each of those two layers.

    Attributes:
        features: the convolutions, and the full layers but the last.
        head: the last layer.

    Raises:
        ValueError: widths that are not five even numbers.

    Source: Krizhevsky, Sutskever and Hinton 2012, section 3. torch divides `alpha` by the number of neighbours, so that 1e-4
    there is 5e-4 here.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        in_channels: int = 3,
        small_images: bool = False,
        widths: Sequence[int] = WIDTHS,
        hidden: int = 4096,
        norm: Norm | None = None,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if len(widths) != 5 or any(width < 2 or width % 2 for width in widths):
            raise ValueError(
                f"`widths` must be five even numbers, since three convolutions are in two groups; got {list(widths)}."
            )
        self._sides = (32, 32) if small_images else (224, 231)
        first: tuple[int, int, int] = (5, 1, 2) if small_images else (11, 4, 2)
        one, two, three, four, five = widths
        last = 3 if small_images else 6
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, one, first[0], stride=first[1], padding=first[2]),
            *_unit(norm, one, responds=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(one, two, 5, padding=2, groups=2),
            *_unit(norm, two, responds=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(two, three, 3, padding=1),
            *_unit(norm, three),
            nn.Conv2d(three, four, 3, padding=1, groups=2),
            *_unit(norm, four),
            nn.Conv2d(four, five, 3, padding=1, groups=2),
            *_unit(norm, five),
            nn.MaxPool2d(3, 2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(five * last * last, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
        )
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """The logits."""
        low, high = self._sides
        if any(not low <= side <= high for side in images_BCHW.shape[-2:]):
            raise ValueError(
                f"the network takes images of {low}x{low} pixels{'' if low == high else f' to {high}x{high}'}; got the shape "
                f"{tuple(images_BCHW.shape)}. Resize them, or change `small_images`."
            )
        return self.head(self.features(images_BCHW))


def _unit(norm: Norm | None, width: int, *, responds: bool = False) -> list[nn.Module]:
    """A rectifier with what is normalized before or after it."""
    if norm is not None:
        return [norm.maps(width), nn.ReLU()]
    return [nn.ReLU(), nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)] if responds else [nn.ReLU()]
