"""Labelled images in memory, and the built-in digits.

Images are held as bytes and turned into floats a batch at a time.

Legend of shapes: N images, C channels, H rows, W columns.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from featherlight.data._suggest import did_you_mean, listing
from featherlight.data.splits import split_rows

_WHITE = 255
_CHUNK_IMAGES = 4096


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images with their classes.

    Attributes:
        images: (N, C, H, W), bytes.
        labels: (N,), numbers of classes.
        classes: their names.
    """

    images: UInt8[Tensor, "N C H W"]
    labels: Int[Tensor, "N"]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or len(self.images) != len(self.labels) or self.images.dtype != torch.uint8:
            raise ValueError(
                "`images` must be bytes of shape (N, C, H, W) with a label each; got "
                f"{str(self.images.dtype).removeprefix('torch.')} of shape {tuple(self.images.shape)} and "
                f"{len(self.labels)} labels."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Int[Tensor, "n"]) -> "ImageSet":
        """Some of the images, in the order of `rows`."""
        return replace(self, images=self.images[rows], labels=self.labels[rows])

    def to(self, device: torch.device) -> "ImageSet":
        """The same on a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def floats(self, rows: Int[Tensor, "n"] | slice) -> Float[Tensor, "n C H W"]:
        """Some of the images as floats in [0, 1], in the order of `rows`."""
        return self.images[rows].float().div_(_WHITE)

    def only(self, classes: Sequence[str]) -> "ImageSet":
        """The images of some classes, which are numbered anew in the order given.

        Raises:
            ValueError: a class there is not, one that is named twice, or fewer than two.
        """
        for name in classes:
            if name not in self.classes:
                raise ValueError(
                    f"there is no class {name!r}; there are {listing(self.classes)}.{did_you_mean(name, self.classes)}"
                )
        if len(set(classes)) != len(classes) or len(classes) < 2:
            raise ValueError(
                f"`classes` must name two or more different classes, or there is nothing to tell apart; got {listing(classes)}."
            )
        number = torch.full((len(self.classes),), -1, dtype=torch.int64, device=self.labels.device)
        number[[self.classes.index(name) for name in classes]] = torch.arange(len(classes), device=number.device)
        kept = (number[self.labels] >= 0).nonzero().squeeze(1)
        return ImageSet(images=self.images[kept], labels=number[self.labels[kept]], classes=tuple(classes))

    def channel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, of values in [0, 1]; 1 where a channel does not vary.

        The sums are of integers, and so exact.
        """
        total = torch.zeros(self.images.shape[1], dtype=torch.int64)
        squares = torch.zeros_like(total)
        for part in self.images.split(_CHUNK_IMAGES):
            values = part.int()
            total += values.sum((0, 2, 3)).cpu()
            squares += values.square().sum((0, 2, 3)).cpu()
        count = self.images[:, 0].numel()
        mean = total.double() / count
        spread = (squares.double() / count - mean.square()).clamp(min=0).sqrt()
        spread[spread == 0] = _WHITE
        return tuple((mean / _WHITE).tolist()), tuple((spread / _WHITE).tolist())

    def digest(self) -> str:
        """SHA-256 of images and labels."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.classes)).encode())
        for part in self.images.split(_CHUNK_IMAGES):
            digest.update(part.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class ImageSplits:
    """The parts of a set of images, all with the same classes and images of one shape.

    Attributes:
        train: to learn from.
        valid: to choose by; None where the set has no such part.
        test: to report on; None where the set has no such part.
    """

    train: ImageSet
    valid: ImageSet | None = None
    test: ImageSet | None = None

    def only(self, classes: Sequence[str]) -> "ImageSplits":
        """The images of some classes in each part; raises ValueError as `ImageSet.only` does."""
        valid, test = (part if part is None else part.only(classes) for part in (self.valid, self.test))
        return ImageSplits(train=self.train.only(classes), valid=valid, test=test)

    def to(self, device: torch.device) -> "ImageSplits":
        """The same on a device."""
        valid, test = (part if part is None else part.to(device) for part in (self.valid, self.test))
        return ImageSplits(train=self.train.to(device), valid=valid, test=test)

    def with_valid(self, fraction: float) -> "ImageSplits":
        """The same with a share of the training images split off to validate, unless there is such a part already.

        Which ones is the same for every seed of a run. Raises ValueError as `split_rows` does.
        """
        if self.valid is not None:
            return self
        parts = split_rows(self.train.labels, valid_fraction=fraction, seed=0, stratify=True)
        train, valid = (self.train.take(part) for part in parts)
        return ImageSplits(train=train, valid=valid, test=self.test)


def load_digits() -> ImageSet:
    """1,797 handwritten digits of 8x8 pixels that come with scikit-learn; its 16 shades are spread over 0 to 240.

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
        images=torch.tensor(found.images).mul_(15).to(torch.uint8).unsqueeze_(1),
        labels=torch.tensor(found.target, dtype=torch.int64),
        classes=tuple(str(digit) for digit in range(10)),
    )
