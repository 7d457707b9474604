"""Floats without any loss: their exponents are entropy-coded, for they are few; signs and mantissas stay as they are.

Of the bits of an element the eight behind the sign are one byte: the exponent of float32 and bfloat16, the exponent and
three bits of float16,
most of the exponent of float64. The sign and all others make the other bytes. In each block, each of these planes is raw or coded
by its own table of odds, whichever is smaller.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from featherlight.archive.elements import BLOCK, blocks, real_dtype
from featherlight.archive.needed import needed
from featherlight.archive.sections import Section, Sink, number, piece

_RAW, _CODED = 0, 1
_WORTH = 0.98
_PART = 1 << 13
_PURPOSE = "code floats without loss"


def fits(dtype: torch.dtype) -> bool:
    """Whether elements are floats of two bytes or more."""
    return real_dtype(dtype).is_floating_point and real_dtype(dtype).itemsize > 1


def write_planes(elements: NDArray[np.unsignedinteger], sink: Sink) -> None:
    """Codes all elements."""
    for block in blocks(elements):
        for plane in _split(block):
            sink(_written(plane))


def read_planes(section: Section, elements: NDArray[np.unsignedinteger]) -> None:
    """Decodes all elements into `elements`.

    Raises:
        ValueError: they were not written so.
    """
    for start in range(0, len(elements), BLOCK):
        block = elements[start : start + BLOCK]
        _join([_read_plane(section, len(block)) for _ in range(block.itemsize)], block)


def _split(block: NDArray[np.unsignedinteger]) -> NDArray[np.uint8]:
    """The byte behind the sign, then the others from the top, a row each."""
    width = 8 * block.itemsize
    kind = block.dtype.type
    planes = np.empty((block.itemsize, len(block)), dtype=np.uint8)
    for start in range(0, len(block), _PART):
        part = block[start : start + _PART]
        sign = part >> kind(width - 1) << kind(width - 9)
        rest = part & kind((1 << (width - 9)) - 1) | sign
        planes[0, start : start + _PART] = (part >> kind(width - 9)).astype(np.uint8)
        for k in range(1, block.itemsize):
            planes[k, start : start + _PART] = (rest >> kind(8 * (block.itemsize - 1 - k))).astype(np.uint8)
    return planes


def _join(planes: list[NDArray[np.uint8]], block: NDArray[np.unsignedinteger]) -> None:
    """Puts a block together in place, one cheap pass a plane."""
    needed("numba", _PURPOSE)
    from featherlight.archive import planes_kernel

    if block.itemsize == 2:
        planes_kernel.join_2(planes[0], planes[1], block)
    elif block.itemsize == 4:
        planes_kernel.join_4(planes[0], planes[1], planes[2], planes[3], block)
    else:
        planes_kernel.join_8(np.stack(planes), block)


def _written(plane: NDArray[np.uint8]) -> bytes:
    needed("numba", _PURPOSE)
    from featherlight.archive import rans

    counts = np.bincount(plane, minlength=256)
    odds = rans.odds_of(counts)
    table = _table(odds)
    if rans.bits_of(counts, odds) / 8 + len(table) + 16 > _WORTH * len(plane):
        return bytes([_RAW]) + plane.tobytes()
    words = np.empty(len(plane) + 16, dtype=np.uint16)
    first = rans.encode(plane, odds, words)
    return bytes([_CODED]) + table + piece(words[first:].astype("<u2").tobytes())


def _read_plane(section: Section, size: int) -> NDArray[np.uint8]:
    from featherlight.archive import rans

    kind = section.read(1)[0]
    if kind == _RAW:
        return np.frombuffer(section.read(size), dtype=np.uint8).copy()
    if kind != _CODED:
        raise ValueError(f"a plane of the unknown kind {kind} was told.")
    odds = _read_table(section)
    words = np.frombuffer(section.piece(), dtype="<u2")
    plane = np.empty(size, dtype=np.uint8)
    rans.decode(words, odds, plane)
    return plane


def _table(odds: NDArray[np.int64]) -> bytes:
    """First and last byte that occur, and the odds of all between."""
    used = np.flatnonzero(odds)
    first, last = int(used[0]), int(used[-1])
    return bytes([first, last]) + b"".join(number(int(one)) for one in odds[first : last + 1])


def _read_table(section: Section) -> NDArray[np.int64]:
    first, last = section.read(2)
    odds = np.zeros(256, dtype=np.int64)
    for byte in range(first, last + 1):
        odds[byte] = section.number()
    if odds.max() > 4096 or odds.sum() != 4096:
        raise ValueError("a table of odds was told that do not sum to 4096.")
    return odds
