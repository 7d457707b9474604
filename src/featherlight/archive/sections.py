"""Bytes of a part of the file: written piece by piece, and read no further than they go."""

from collections.abc import Callable
from typing import BinaryIO

Sink = Callable[[bytes], None]
"""Takes the next bytes of what is written."""

MOST_AT_ONCE = 1 << 19
"""No piece with a length of its own is longer."""


class Counted:
    """Counts bytes that are written, and hands them on where there is a sink.

    Args:
        sink: None counts alone, to see how long something would be.

    Attributes:
        num_bytes: so far.
    """

    def __init__(self, sink: Sink | None = None) -> None:
        self._sink = sink
        self.num_bytes = 0

    def __call__(self, content: bytes) -> None:
        """Takes the next bytes."""
        self.num_bytes += len(content)
        if self._sink is not None:
            self._sink(content)


class Section:
    """A run of bytes of a file, read in order.

    Args:
        file: at any place; it is moved.
        start: first byte.
        size: number of bytes.

    Attributes:
        left: bytes that have not been read.
    """

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        file.seek(start)
        self._file = file
        self.left = size

    def read(self, size: int) -> bytes:
        """The next bytes.

        Raises:
            ValueError: there are not so many left, or more than may be asked for at once.
        """
        if not 0 <= size <= min(self.left, MOST_AT_ONCE):
            raise ValueError(f"a part of {size} bytes was told where {self.left} are left.")
        content = self._file.read(size)
        if len(content) != size:
            raise ValueError(f"{size} bytes were expected, and the file ended after {len(content)}.")
        self.left -= size
        return content

    def number(self) -> int:
        """A whole number from 0 on, seven bits a byte, the lowest first; below 2**49."""
        value = 0
        for shift in range(0, 49, 7):
            byte = self.read(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number of more than seven bytes was told.")

    def piece(self) -> bytes:
        """Bytes with their number in front."""
        return self.read(self.number())


def number(value: int) -> bytes:
    """What `Section.number` reads."""
    content = bytearray()
    while value > 127:
        content.append(128 | value & 127)
        value >>= 7
    return bytes([*content, value])


def piece(content: bytes) -> bytes:
    """What `Section.piece` reads."""
    assert len(content) <= MOST_AT_ONCE
    return number(len(content)) + content
