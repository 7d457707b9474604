"""Training images changed at random, the same way whenever a step is taken again.

Legend of shapes: B images, C channels, H rows, W columns.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad


def augmented(
    images_BCHW: Float[Tensor, "B C H W"], *, shift: int, flip: bool, key: tuple[int, int]
) -> Float[Tensor, "B C H W"]:
    """Moves each image by whole pixels, and mirrors half of them.

    Args:
        images_BCHW: the images.
        shift: the most pixels each way; zeros come in from outside.
        flip: whether images are mirrored left to right.
        key: seed and step, which say what is drawn.

    Source: He et al. 2016, section 4.2 (4 pixels and mirroring).
    """
    count, channels, height, width = images_BCHW.shape
    generator = np.random.Generator(np.random.Philox(key=list(key)))
    moves = torch.from_numpy(generator.integers(0, 2 * shift + 1, (2, count, 1)))
    mirrored = torch.from_numpy(generator.random((count, 1)) < 0.5) & flip
    rows_BH = moves[0] + torch.arange(height)
    columns_BW = torch.arange(width).expand(count, width)
    columns_BW = moves[1] + torch.where(mirrored, width - 1 - columns_BW, columns_BW)
    device = images_BCHW.device
    return pad(images_BCHW, (shift,) * 4)[
        torch.arange(count, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[:, None, None],
        rows_BH.to(device)[:, None, :, None],
        columns_BW.to(device)[:, None, None, :],
    ]
