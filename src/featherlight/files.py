"""Files that are either the old one or the new one, whatever happens in between."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> int:
    """Writes beside `path`, flushes to disk and renames. Returns the bytes written.

    Args:
        path: of the file; its folder must exist.
        write: is handed the open file.

    Raises:
        OSError: the disk refused; `path` is as it was, and nothing is left beside it.
    """

    def fill(beside: Path) -> None:
        with beside.open("wb") as file:
            write(file)

    return replace_file(path, fill)


def replace_file(path: Path, fill: Callable[[Path], object]) -> int:
    """As `write_atomically`, for writers that want the name of a file: `fill` is handed an empty one beside `path`."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.touch()
        mode = beside.stat().st_mode
        fill(beside)
        size = flush_file(beside, mode)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    sync_directory(path.parent)
    return size


def flush_file(path: Path, mode: int) -> int:
    """Flushes a file to disk. Returns its bytes.

    Args:
        mode: whom it is to be open to at least; safetensors makes files that are their owner's alone, whatever the umask says.
    """
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        if found.st_mode | mode != found.st_mode:
            os.chmod(path, found.st_mode | mode)
        os.fsync(file.fileno())
    return found.st_size


def sync_directory(path: Path) -> None:
    """Flushes the names in a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
