"""One tensor as bytes of the file, in whichever way takes the fewest."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from featherlight.archive.codebook import MOST_VALUES, Codebook, find_codebook, narrow_bytes, read_codebook, read_narrow
from featherlight.archive.codings import CODINGS
from featherlight.archive.elements import BLOCK, blocks
from featherlight.archive.levels import Levels
from featherlight.archive.needed import needed
from featherlight.archive.planes import fits, read_planes, write_planes
from featherlight.archive.sections import Counted, Section, Sink, piece

_SMALL = 1 << 21
_FEWEST_FLOATS = 1 << 10
_ZSTD_BYTES = 1 << 18
_PART = 1 << 13
_SMALL_BYTES = 1 << 16
_MOST_FLOATS = 1 << 10

Write = Callable[[Sink], None]


def smallest(
    elements: NDArray[np.unsignedinteger], shape: tuple[int, ...], dtype: torch.dtype, coding: str
) -> tuple[str, int, Write]:
    """Name, size and writer of the coding that takes the fewest bytes.

    Args:
        elements: bits of the tensor's elements.
        shape: of the tensor.
        dtype: of the tensor.
        coding: of levels, if there are few distinct values.

    Cost: each coding that may do is run once to see its size.
    """
    codebook = find_codebook(elements, dtype, most=_MOST_FLOATS if fits(dtype) else MOST_VALUES)
    found: list[tuple[str, int, Write]] = [("raw", elements.nbytes, lambda sink: _write_raw(elements, sink))]
    if (narrow := narrow_bytes(elements, dtype)) is not None:
        found.append(("narrow", len(narrow), lambda sink: sink(narrow)))
    candidates: dict[str, Write] = {}
    if codebook is not None:
        candidates[coding] = lambda sink: _write_levels(elements, shape, codebook, coding, sink)
    if fits(dtype) and len(elements) >= _FEWEST_FLOATS:
        candidates["planes"] = lambda sink: write_planes(elements, sink)
    if elements.nbytes and (elements.nbytes < _SMALL_BYTES or not candidates):
        candidates["zstd"] = lambda sink: _write_zstd(elements, sink)
    for name, write in candidates.items():
        counted = Counted()
        try:
            write(counted)
        except OverflowError:
            continue
        found.append((name, counted.num_bytes, write))
    return min(found, key=lambda one: one[1])


def read_elements(coding: str, section: Section, shape: tuple[int, ...], dtype: torch.dtype, elements: NDArray) -> None:
    """Fills in what a writer of `smallest` wrote.

    Raises:
        ValueError: it was not written so.
    """
    if coding == "raw":
        for block in blocks(elements, BLOCK // 2):
            block[:] = np.frombuffer(section.read(block.nbytes), dtype=elements.dtype)
    elif coding == "narrow":
        read_narrow(section, elements, dtype)
    elif coding == "zstd":
        _read_zstd(section, elements)
    elif coding == "planes":
        if not fits(dtype):
            raise ValueError("planes of floats were told of a tensor that is none.")
        read_planes(section, elements)
    else:
        codebook = read_codebook(section, dtype)
        CODINGS[coding].read(section, shape, len(elements), _Filling(elements, codebook))
    if section.left:
        raise ValueError(f"{section.left} bytes are left over.")


class _Filling:
    """Puts values in place of levels, block by block."""

    def __init__(self, elements: NDArray[np.unsignedinteger], codebook: Codebook) -> None:
        self._elements, self._codebook, self._at = elements, codebook, 0

    def __call__(self, levels: NDArray[np.int16]) -> None:
        values, lowest = self._codebook.values, self._codebook.lowest
        if levels.min() < lowest or levels.max() >= lowest + len(values):
            raise ValueError(f"a level was told for which there is none of {len(values)} values.")
        for start in range(0, len(levels), _PART):
            index = levels[start : start + _PART].astype(np.intp) - lowest
            self._elements[self._at : self._at + len(index)] = values[index]
            self._at += len(index)


def _write_raw(elements: NDArray[np.unsignedinteger], sink: Sink) -> None:
    for block in blocks(elements):
        sink(block.tobytes())


def _write_levels(
    elements: NDArray[np.unsignedinteger], shape: tuple[int, ...], codebook: Codebook, coding: str, sink: Sink
) -> None:
    sink(codebook.write())
    CODINGS[coding].write(Levels(elements=elements, codebook=codebook, shape=shape), sink)


def _write_zstd(elements: NDArray[np.unsignedinteger], sink: Sink) -> None:
    package = needed("zstandard", "compress the remainder of an archive")
    packer = package.ZstdCompressor(level=19 if len(elements) < _SMALL else 9, write_content_size=False)
    for block in blocks(elements, _ZSTD_BYTES // elements.itemsize):
        sink(piece(packer.compress(block.tobytes())))


def _read_zstd(section: Section, elements: NDArray[np.unsignedinteger]) -> None:
    package = needed("zstandard", "read the compressed remainder of an archive")
    unpacker = package.ZstdDecompressor(max_window_size=_ZSTD_BYTES * 2)
    for block in blocks(elements, _ZSTD_BYTES // elements.itemsize):
        try:
            content = unpacker.decompress(section.piece(), max_output_size=block.nbytes)
        except package.ZstdError as error:
            raise ValueError(f"a zstandard frame is damaged: {str(error)[:100]}.") from None
        if len(content) != block.nbytes:
            raise ValueError(f"{len(content)} bytes came out of a zstandard frame of {block.nbytes}.")
        block[:] = np.frombuffer(content, dtype=elements.dtype)
