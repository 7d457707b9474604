"""Reads a `.feather` file, tensor by tensor."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from featherlight.archive.elements import DTYPES, blocks, empty
from featherlight.archive.header import MAGIC, MOST_HEADER_BYTES, TRAILER, Entry, Header, read_header
from featherlight.archive.sections import Section
from featherlight.archive.tensor_bytes import read_elements

_AT_ONCE = 1 << 16


class Archive:
    """The tensors of a file, each decoded when it is asked for.

    The file's own digest is checked before anything that it says is believed, then the header, then each decoded tensor's.

    Args:
        path: of the file.
        check: reads the whole file once for its digest; without, only what is decoded is checked.

    Attributes:
        path: of the file.
        num_bytes: of the file.
        num_header_bytes: of the header as it stands in the file, with its length.

    Raises:
        ValueError: it is no such file, or it is damaged.
    """

    def __init__(self, path: Path, *, check: bool = True) -> None:
        self.path = path
        if not path.is_file():
            raise ValueError(f"there is no file {path}. Name a .feather file, as `featherlight compress` writes it.")
        with path.open("rb") as file:
            self.num_bytes = file.seek(0, 2)
            try:
                self._header, size = _read_header(file, self.num_bytes, check)
            except ValueError as error:
                raise _damaged(path, error) from None
        self.num_header_bytes = size + 4
        self._entries = {one.name: one for one in self._header.entries}

    @property
    def entries(self) -> Mapping[str, Entry]:
        """What is told of each tensor, by name, in the order of the file."""
        return self._entries

    @property
    def metadata(self) -> Mapping[str, str]:
        """Short texts that were written with the tensors."""
        return self._header.metadata

    @property
    def padding(self) -> int:
        """Bytes that stand for nothing."""
        return self._header.padding

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU.

        Raises:
            ValueError: there is none of the name, or its bytes are damaged.

        Memory: the tensor and 1 MiB.
        """
        if name not in self._entries:
            raise ValueError(f"{self.path} has no tensor {name!r}; it has {', '.join(list(self._entries)[:20])}.")
        entry = self._entries[name]
        stored = entry if entry.same is None else self._entries[entry.same]
        with self.path.open("rb") as file:
            try:
                return _decoded(file, stored)
            except ValueError as error:
                raise _damaged(self.path, error, f" in the tensor {name!r}") from None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors in the order of the file; one is held at a time.

        Raises:
            ValueError: one of them is damaged.
        """
        for name in self._entries:
            yield name, self.read(name)

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors; those that were stored once share their memory.

        Raises:
            ValueError: one of them is damaged.
        """
        found: dict[str, Tensor] = {}
        for name, entry in self._entries.items():
            found[name] = self.read(name) if entry.same is None else found[entry.same]
        return found


def is_archive(path: Path) -> bool:
    """Whether a file begins as a `.feather` file does."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _read_header(file: BinaryIO, num_bytes: int, check: bool) -> tuple[Header, int]:
    if num_bytes < len(MAGIC) + TRAILER:
        raise ValueError(f"it has {num_bytes} bytes, fewer than any has.")
    file.seek(0)
    if file.read(len(MAGIC)) != MAGIC:
        raise ValueError("it does not begin as such a file does.")
    if check and _digest(file, num_bytes - 32) != _tail(file, num_bytes, 32):
        raise ValueError("its SHA-256 is not the one that stands in it: it was cut off or changed. Copy it again.")
    size = int.from_bytes(_tail(file, num_bytes, TRAILER)[:4], "little")
    if size > min(num_bytes - len(MAGIC) - TRAILER, MOST_HEADER_BYTES):
        raise ValueError(f"a header of {size} bytes is told, and there is no room for it.")
    file.seek(num_bytes - TRAILER - size)
    return read_header(file.read(size), file_bytes=num_bytes), size


def _decoded(file: BinaryIO, entry: Entry) -> Tensor:
    dtype = DTYPES[entry.dtype]
    tensor, elements = empty(entry.shape, dtype)
    section = Section(file, entry.start, entry.num_bytes - entry.num_digest)
    read_elements(entry.coding, section, entry.shape, dtype, elements)
    digest = hashlib.sha256()
    for block in blocks(elements):
        digest.update(block.data)
    if file.read(entry.num_digest) != digest.digest()[: entry.num_digest]:
        raise ValueError("what was decoded has another SHA-256 than what was written.")
    return tensor


def _digest(file: BinaryIO, size: int) -> bytes:
    file.seek(0)
    digest = hashlib.sha256()
    while size > 0:
        content = file.read(min(_AT_ONCE, size))
        digest.update(content)
        size -= len(content) or size
    return digest.digest()


def _tail(file: BinaryIO, num_bytes: int, size: int) -> bytes:
    file.seek(num_bytes - size)
    return file.read(size)


def _damaged(path: Path, error: ValueError, where: str = "") -> ValueError:
    return ValueError(f"{path} is not a whole .feather file{where}: {error}")
