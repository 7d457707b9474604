"""A Transformer over the patches of an image.

Legend of shapes: B images, C channels, H rows, W columns, T patches and the class token, D features, K classes.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.nn.models.attention import BlockShape, TransformerBlock
from featherlight.nn.models.positions import LearnedPositions, Positions


class VisionTransformer(nn.Module):
    """Patches as tokens, a token for the class before them, blocks, and a linear layer on that token.

    Args:
        num_classes: K.
        in_channels: C.
        side: H and W, a multiple of `patch`.
        patch: rows and columns of a patch.
        shape: of the blocks.
        num_blocks: how many.
        positions: how patches know where they stand.

    Attributes:
        patches: from an image to its tokens.
        class_token: (D,).
        places: the layer of `positions`.
        dropout: of tokens with their positions.
        blocks: attention and feed-forward layers.
        norm: of what they return.
        head: the linear layer.

    Raises:
        ValueError: a number below 1, or patches that do not fit the image.

    Source: Dosovitskiy et al. 2021; with a width of 768, 12 heads and 12 blocks, patches of 16 and 1,000 classes it is ViT-B/16
    of 86,567,656 parameters.
    Cost: O(T^2 D) time for each image and block.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        side: int = 32,
        patch: int = 4,
        shape: BlockShape,
        num_blocks: int,
        positions: Positions = LearnedPositions(),  # noqa: B008
    ) -> None:
        super().__init__()
        if min(num_classes, in_channels, patch, num_blocks) < 1 or side < patch or side % patch:
            raise ValueError(
                "numbers must be at least 1 and `side` a multiple of `patch`, or pixels at the edge would be left out; got "
                f"{num_classes} classes, {in_channels} channels, {num_blocks} blocks and patches of {patch} for a side of {side}."
            )
        self._side = side
        length = (side // patch) ** 2 + 1
        self.patches = nn.Conv2d(in_channels, shape.width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(shape.width))
        self.places = positions.added(length, shape.width)
        self.dropout = nn.Dropout(shape.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(shape, positions=positions, max_length=length, causal=False) for _ in range(num_blocks)
        )
        self.norm = shape.norm.features(shape.width) if shape.norm_first else nn.Identity()
        self.head = nn.Linear(shape.width, num_classes)

    def forward(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """The logits."""
        if tuple(images_BCHW.shape[-2:]) != (self._side, self._side):
            raise ValueError(
                f"the network takes images of {self._side}x{self._side} pixels; got the shape {tuple(images_BCHW.shape)}. Resize "
                "them, or build it for their size."
            )
        patches_BTD = self.patches(images_BCHW).flatten(2).transpose(1, 2)
        x_BTD = torch.cat([self.class_token.expand(len(patches_BTD), 1, -1), patches_BTD], 1)
        x_BTD = self.dropout(self.places(x_BTD, 0))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(self.norm(x_BTD)[:, 0])
