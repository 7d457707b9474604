"""A tensor as levels, for a coding to go through as often as it likes, in blocks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featherlight.archive.codebook import Codebook
from featherlight.archive.elements import BLOCK, blocks

_WIDEST = 1 << 14
_SPLIT = 1 << 10
_AT_ONCE = 1 << 13
ZERO = 1 << 12
"""What is added to levels, so that they count from 0."""


def num_columns(shape: tuple[int, ...]) -> int:
    """Columns of the matrix that a tensor is read as: its first axis by all others; a long vector is cut into rows."""
    if len(shape) < 2:
        columns = math.prod(shape)
        return columns if columns <= _SPLIT else _SPLIT
    columns = math.prod(shape[1:])
    return max(columns, 1) if columns <= _WIDEST else _SPLIT


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Levels of a tensor that is in memory.

    Attributes:
        elements: bits of the tensor's elements.
        codebook: all of their values.
        shape: of the tensor.
    """

    elements: NDArray[np.unsignedinteger]
    codebook: Codebook
    shape: tuple[int, ...]

    def blocks(self, size: int = BLOCK) -> Iterator[NDArray[np.int16]]:
        """So many levels each in reading order, the last of fewer; each a new array."""
        known, level = self.codebook.level_table()
        for block in blocks(self.elements, size):
            found = np.empty(len(block), dtype=np.int16)
            for start in range(0, len(block), _AT_ONCE):
                part = slice(start, start + _AT_ONCE)
                found[part] = level[np.searchsorted(known, block[part])]
            yield found

    def period(self) -> int:
        """How far apart columns are that are most alike in how full they are: the width of an image, places of a kernel.

        0 where none stands out. What a tensor of images says of itself, found by the correlation of its columns' fullness.
        """
        columns = num_columns(self.shape)
        if len(self.elements) < 4 * columns or columns < 8:
            return 0
        full = np.zeros(columns)
        offset = 0
        for block in self.blocks():
            places = (offset + np.flatnonzero(block)) % columns
            full += np.bincount(places, minlength=columns)
            offset += len(block)
        full -= full.mean()
        power = np.abs(np.fft.rfft(full, 2 * columns)) ** 2
        alike = np.fft.irfft(power)[: columns // 2 + 1] / np.arange(columns, columns - columns // 2 - 1, -1)
        lags = np.arange(3, min(columns // 2, 120))
        if not len(lags) or alike[0] <= 0:
            return 0
        peaks = lags[(alike[lags] > alike[lags - 1]) & (alike[lags] >= alike[lags + 1])]
        return int(peaks[np.argmax(alike[peaks])]) if len(peaks) else 0


def gaps_of(block: NDArray[np.int16], longest: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Levels that are not zero, moved up by `ZERO`, and the zeros in front of each.

    A zero is put in among them after every `longest` zeros, so that no gap is longer.
    """
    places = _with_fillers(np.flatnonzero(block), longest)
    return block[places].astype(np.int64) + ZERO, np.diff(places, prepend=-1) - 1


def _with_fillers(places: NDArray[np.int64], longest: int) -> NDArray[np.int64]:
    """Places of nonzeros, and of zeros that are put in where more than `longest` zeros stand between."""
    gaps = np.diff(places, prepend=-1) - 1
    extra = gaps // (longest + 1)
    if not extra.any():
        return places
    starts = np.repeat(places - gaps - 1, extra + 1)
    index = np.arange(len(starts)) - np.repeat(np.cumsum(extra + 1) - extra - 1, extra + 1)
    filled = starts + (index + 1) * (longest + 1)
    filled[np.cumsum(extra + 1) - 1] = places
    return filled
