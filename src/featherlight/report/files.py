"""A file that is the old one or the new one, whatever happens in between."""

import os
from pathlib import Path


def replace_file(target: Path, data: bytes) -> None:
    """Write beside `target`, flush to the disk, then rename over it.

    Args:
        target: the file; its folder must exist.
        data: all of its new bytes.

    Raises:
        OSError: the disk refused; `target` is as it was, and nothing is left beside it.
    """
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
