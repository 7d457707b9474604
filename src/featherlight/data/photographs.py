"""Photographs of any size: random squares of them, drawn by their place in an endless stream.

Legend of shapes: N crops, C channels, H rows, W columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from featherlight.data._suggest import listing
from featherlight.data.image_files import decode_image, image_files
from featherlight.data.sampler import IndexPermutation
from featherlight.data.splits import split_rows

_PARTS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """Images of different sizes, decoded when they are asked for.

    Attributes:
        files: where each is, or its encoded bytes.
        names: for messages, and for the digest.
        grey: whether they are read as one channel; else as three.
        short_side: images are shrunk so that their shorter side has so many pixels; None, or a shorter one, leaves them.
    """

    files: Sequence[Path | bytes]
    names: Sequence[str]
    grey: bool = False
    short_side: int | None = None

    def __post_init__(self) -> None:
        if not self.files or len(self.files) != len(self.names):
            raise ValueError(f"photographs need a name each; got {len(self.files)} of {len(self.names)} names.")
        if self.short_side is not None and self.short_side < 1:
            raise ValueError(f"`short_side` must be at least 1 pixel; got {self.short_side}.")

    def __len__(self) -> int:
        return len(self.files)

    def read(self, number: int) -> UInt8[NDArray[np.uint8], "H W C"]:
        """The pixels of one photograph; raises ValueError where it cannot be read."""
        return decode_image(
            self.files[number], "L" if self.grey else "RGB", self.names[number], short_side=self.short_side
        )

    def take(self, rows: Sequence[int]) -> Photographs:
        """Some of them, in the order of `rows`."""
        return replace(self, files=[self.files[i] for i in rows], names=[self.names[i] for i in rows])

    def split(self, fraction: float) -> tuple[Photographs, Photographs]:
        """A part to train on and a part to validate on, the same each time; raises ValueError as `split_rows` does."""
        parts = split_rows(torch.zeros(len(self)), valid_fraction=fraction, seed=0, stratify=False)
        train, valid = (self.take(part.tolist()) for part in parts)
        return train, valid

    def centres(self, side: int, most: int) -> UInt8[Tensor, "N C side side"]:
        """The square in the middle of each of the first `most`."""
        chosen = range(min(most, len(self)))
        return torch.stack([self._crop(number, side, 0.5, 0.5) for number in chosen])

    def digest(self) -> str:
        """SHA-256 of names and sizes in bytes; pixels are not looked at, since there may be millions of files."""
        sizes = [len(one) if isinstance(one, bytes) else one.stat().st_size for one in self.files]
        return hashlib.sha256(repr((list(self.names), sizes, self.grey, self.short_side)).encode()).hexdigest()

    def _crop(self, number: int, side: int, down: float, right: float) -> UInt8[Tensor, "C side side"]:
        """A square whose place is given as shares, in [0, 1), of the places there are."""
        pixels = self.read(number)
        rows, columns = pixels.shape[0] - side, pixels.shape[1] - side
        if min(rows, columns) < 0:
            raise ValueError(
                f"{self.names[number]} is {pixels.shape[1]}x{pixels.shape[0]} pixels, so no square of {side} can be cut from "
                "it. Take a smaller `crop`, or the small images out."
            )
        top, left = int(down * (rows + 1)), int(right * (columns + 1))
        square = pixels[top : top + side, left : left + side].transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(square))


@dataclass(frozen=True)
class RandomCrops:
    """An endless stream of squares: each epoch takes one from every photograph, at a place of its own.

    Args:
        photographs: what they are cut from.
        side: their size in pixels.
        seed: of order and places.

    Raises:
        ValueError: a side below 1.

    Cost: a photograph is decoded for each crop; memory is that of one, whatever the number of files.
    """

    photographs: Photographs
    side: int
    seed: int
    _order: IndexPermutation = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"`side` must be at least 1 pixel; got {self.side}.")
        object.__setattr__(self, "_order", IndexPermutation(len(self.photographs), self.seed))

    def rows(self, start: int, count: int) -> list[int]:
        """Which photographs the crops at these places are from."""
        return self._order.indices(start, count)

    def take(self, start: int, count: int) -> UInt8[Tensor, "count C side side"]:
        """The crops at places `start` to `start + count` of the stream, the same whenever they are asked for."""
        rows = self.rows(start, count)
        squares = []
        for place, row in zip(range(start, start + count), rows, strict=True):
            down, right = np.random.Generator(np.random.Philox(key=[self.seed, place])).random(2)
            squares.append(self.photographs._crop(row, self.side, down, right))
        return torch.stack(squares)


@dataclass(frozen=True, kw_only=True)
class PhotographSplits:
    """The parts of a set of photographs.

    Attributes:
        train: to learn from.
        valid: to choose by.
        test: to report on; None where the set has no such part.
    """

    train: Photographs
    valid: Photographs
    test: Photographs | None = None


def load_photograph_folder(path: Path, *, valid_fraction: float, short_side: int | None = None) -> PhotographSplits:
    """All images in a folder and the folders in it, of any sizes; their names and folders say nothing else.

    Where there are folders `train` and `valid` (and `test`), these are the parts; else a share is split off to validate.
    Images are grey if the first is, else RGB. They are decoded when they are asked for, so there may be millions of them.

    Args:
        path: of the folder.
        valid_fraction: share that is split off.
        short_side: as for `Photographs`.

    Raises:
        ValueError: no images, or too few to split.
    """
    parts = {part: path / part for part in _PARTS if (path / part).is_dir()}
    folders = parts if {"train", "valid"} <= parts.keys() else {"train": path}
    found = {part: image_files(folder) for part, folder in folders.items()}
    if missing := [str(folders[part]) for part, files in found.items() if not files]:
        raise ValueError(f"there are no images in {listing(missing)}. Put some there, or correct the path.")
    grey = decode_image(found["train"][0], None, str(found["train"][0])).shape[2] == 1
    sets = {
        part: Photographs(
            files=files, names=[str(file.relative_to(path)) for file in files], grey=grey, short_side=short_side
        )
        for part, files in found.items()
    }
    if "valid" in sets:
        return PhotographSplits(train=sets["train"], valid=sets["valid"], test=sets.get("test"))
    train, valid = sets["train"].split(valid_fraction)
    return PhotographSplits(train=train, valid=valid)
