"""Labelled images in memory, and the built-in digits.

Legend of shapes: N images, C channels, H rows, W columns.
"""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images with their classes.

    Attributes:
        images: (N, C, H, W), values in [0, 1].
        labels: (N,), numbers of classes.
        classes: their names.
    """

    images: Float[Tensor, "N C H W"]
    labels: Int[Tensor, "N"]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or len(self.images) != len(self.labels):
            raise ValueError(
                f"`images` must be (N, C, H, W) with a label each; got {tuple(self.images.shape)} and {len(self.labels)} labels."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Int[Tensor, "n"]) -> "ImageSet":
        """Some of the images, in the order of `rows`."""
        return replace(self, images=self.images[rows], labels=self.labels[rows])

    def to(self, device: torch.device) -> "ImageSet":
        """The same on a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


def load_digits() -> ImageSet:
    """1,797 handwritten digits of 8x8 pixels that come with scikit-learn.

    Raises:
        ValueError: scikit-learn is not installed.

    Source: Alpaydin and Kaynak 1998, UCI Optical Recognition of Handwritten Digits (its test part).
    """
    if find_spec("sklearn") is None:
        raise ValueError(
            "the digits come with scikit-learn, which is not installed. Run: pip install 'featherlight[digits]'"
        )
    from sklearn.datasets import load_digits as load

    found: Any = load()
    return ImageSet(
        images=torch.tensor(found.images, dtype=torch.float32).div_(16).unsqueeze_(1),
        labels=torch.tensor(found.target, dtype=torch.int64),
        classes=tuple(str(digit) for digit in range(10)),
    )
