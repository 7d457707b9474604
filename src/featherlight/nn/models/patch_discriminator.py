"""A discriminator that judges each patch of an image by itself.

Legend of shapes: B images, C channels, H rows, W columns.
"""

from jaxtyping import Float
from torch import Tensor, nn

_SLOPE = 0.2


class PatchDiscriminator(nn.Module):
    """A stack of strided convolutions; each number it returns says of one patch whether it looks real.

    Args:
        in_channels: C.
        width: channels of the first convolution; they double with each that follows, up to 8 times.
        num_halvings: convolutions that halve the size; two more do not.

    Attributes:
        layers: in the order in which they run.

    Raises:
        ValueError: no channels or no halvings.

    Source: Isola et al. 2017, appendix 6.1.2; Esser, Rombach and Ommer 2021. We normalize in groups of channels within each
    image rather than over the batch, so that the judgement of an image does not depend on its neighbours.
    """

    def __init__(self, *, in_channels: int, width: int = 32, num_halvings: int = 2) -> None:
        super().__init__()
        if min(in_channels, width, num_halvings) < 1:
            raise ValueError(
                "`in_channels`, `width` and `num_halvings` must be at least 1; got "
                f"{in_channels}, {width} and {num_halvings}."
            )
        parts: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        before = width
        for number in range(1, num_halvings + 1):
            after = width * min(2**number, 8)
            stride = 2 if number < num_halvings else 1
            parts += [
                nn.Conv2d(before, after, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(1, after),
                nn.LeakyReLU(_SLOPE),
            ]
            before = after
        self.layers = nn.Sequential(*parts, nn.Conv2d(before, 1, 4, padding=1))

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h w"]:
        """A number for each patch: positive where it looks real."""
        return self.layers(images).squeeze(1)
