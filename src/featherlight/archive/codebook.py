"""Tensors of few distinct values: the values once, and a level for each element.

Values stand in order; level 0 is the value zero, or the one that occurs most where there is no zero.

Legend of shapes: V values.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from featherlight.archive.elements import bits_of, blocks, dtype_name, floats_of, real_dtype, unsigned
from featherlight.archive.sections import Section, number

MOST_VALUES = 4096
_AT_ONCE = 1 << 13
_MOST_NARROW = 1 << 15
_WHOLE = (torch.int8, torch.int16, torch.int32, torch.int64)
_NARROW = {
    torch.float32: (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16),
    torch.float64: (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16, torch.float32),
    torch.bfloat16: (torch.float8_e4m3fn, torch.float8_e5m2),
    torch.float16: (torch.float8_e4m3fn, torch.float8_e5m2),
    torch.int64: _WHOLE[:3],
    torch.int32: _WHOLE[:2],
    torch.int16: _WHOLE[:1],
}
_STORED = (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16, torch.float32, *_WHOLE)
_AS_IT_IS, _GRID = 255, 254


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """Values of levels.

    Attributes:
        values: bits of those that may occur, in order of level, (V,).
        lowest: level of the first of them, 0 or less.
        dtype: of the tensor.
    """

    values: NDArray[np.unsignedinteger]
    lowest: int
    dtype: torch.dtype

    def level_table(self) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int16]]:
        """Bits in ascending order, and the level of each."""
        order = np.argsort(self.values, kind="stable")
        return self.values[order], (order + self.lowest).astype(np.int16)

    def write(self) -> bytes:
        """The values, as narrow as they can be without a change."""
        whole = number(len(self.values)) + number(-self.lowest)
        if (step := self._grid_step()) is not None:
            return bytes([_GRID]) + whole + step.tobytes()
        if (narrow := _narrowed(self.values, self.dtype)) is not None:
            return bytes([_STORED.index(narrow[0])]) + whole + narrow[1]
        return bytes([_AS_IT_IS]) + whole + self.values.tobytes()

    def _grid_step(self) -> np.floating | None:
        """The float32 that all values are multiples of by their levels, if they are."""
        if real_dtype(self.dtype) is not torch.float32 or len(self.values) < 3:
            return None
        levels = np.arange(len(self.values)) + self.lowest
        floats = floats_of(self.values, self.dtype).astype(np.float32)
        far = int(np.argmax(np.abs(levels)))
        step = np.float32(floats[far] / np.float32(levels[far]))
        return step if np.array_equal(_on_grid(step, levels), self.values) else None


def read_codebook(section: Section, dtype: torch.dtype) -> Codebook:
    """What `Codebook.write` wrote.

    Raises:
        ValueError: it was not written so.
    """
    kind, count, below = section.read(1)[0], section.number(), section.number()
    if not 1 <= count <= MOST_VALUES or below >= count:
        raise ValueError(f"a codebook of {count} values with {below} below zero was told.")
    if kind == _GRID:
        if real_dtype(dtype) is not torch.float32:
            raise ValueError("a grid was told of a tensor that is not float32.")
        step = np.frombuffer(section.read(4), dtype="<f4")[0]
        with np.errstate(all="ignore"):
            values = _on_grid(step, np.arange(count) - below)
    elif kind == _AS_IT_IS:
        values = np.frombuffer(section.read(count * unsigned(dtype)().itemsize), dtype=unsigned(dtype))
    elif kind < len(_STORED):
        values = _widened(section, _STORED[kind], count, dtype)
    else:
        raise ValueError(f"a codebook of the unknown kind {kind} was told.")
    return Codebook(values=values, lowest=-below, dtype=dtype)


def find_codebook(
    elements: NDArray[np.unsignedinteger], dtype: torch.dtype, *, most: int = MOST_VALUES
) -> Codebook | None:
    """The distinct values of a tensor; None if there are more than `most` or than every second element, or none at all."""
    most = min(most, max(len(elements) // 2, 1))
    seen, counts = np.empty(0, elements.dtype), np.empty(0, np.int64)
    for block in blocks(elements, _AT_ONCE):
        new, new_counts = np.unique(block, return_counts=True)
        both = np.concatenate([seen, new])
        seen, inverse = np.unique(both, return_inverse=True)
        counts = np.bincount(inverse, weights=np.concatenate([counts, new_counts])).astype(np.int64)
        if len(seen) > most:
            return None
    if not len(seen):
        return None
    order = np.lexsort((seen, floats_of(seen, dtype)))
    zero = np.flatnonzero(seen[order] == 0)
    lowest = int(zero[0]) if len(zero) else int(np.argmax(counts[order]))
    return Codebook(values=seen[order], lowest=-lowest, dtype=dtype)


def narrow_bytes(elements: NDArray[np.unsignedinteger], dtype: torch.dtype) -> bytes | None:
    """All elements in the narrowest dtype that gives the same bits back; None if there is none."""
    if not 1 < len(elements) <= _MOST_NARROW or (narrow := _narrowed(elements, dtype)) is None:
        return None
    return bytes([_STORED.index(narrow[0])]) + narrow[1]


def read_narrow(section: Section, elements: NDArray[np.unsignedinteger], dtype: torch.dtype) -> None:
    """Fills in what `narrow_bytes` made.

    Raises:
        ValueError: it was not made so.
    """
    kind = section.read(1)[0]
    if kind >= len(_STORED) or len(elements) > _MOST_NARROW:
        raise ValueError(f"elements of the unknown kind {kind} were told.")
    elements[:] = _widened(section, _STORED[kind], len(elements), dtype)


def _widened(section: Section, stored: torch.dtype, count: int, dtype: torch.dtype) -> NDArray[np.unsignedinteger]:
    content = bytearray(section.read(count * stored.itemsize))
    if stored not in _NARROW.get(real_dtype(dtype), ()):
        raise ValueError(f"values of {dtype_name(dtype)} were told as {dtype_name(stored)}.")
    return bits_of(torch.frombuffer(content, dtype=stored).to(real_dtype(dtype)))


def _on_grid(step: np.floating, levels: NDArray[np.int64]) -> NDArray[np.uint32]:
    return (np.float32(step) * levels.astype(np.float32)).view(np.uint32)


def _narrowed(values: NDArray[np.unsignedinteger], dtype: torch.dtype) -> tuple[torch.dtype, bytes] | None:
    """The narrowest dtype that gives the same bits back, and the values in it."""
    real = real_dtype(dtype)
    width = np.dtype(f"i{values.itemsize}") if values.itemsize > 1 else np.dtype(np.uint8)
    exact = torch.from_numpy(values.view(width)).view(real)
    for candidate in _NARROW.get(real, ()):
        narrow = exact.to(candidate)
        if np.array_equal(bits_of(narrow.to(real)), values):
            return candidate, bits_of(narrow).tobytes()
    return None
