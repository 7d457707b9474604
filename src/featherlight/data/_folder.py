"""Files of the folder that FEATHERLIGHT_DATA names."""

import os
from collections.abc import Sequence
from pathlib import Path

from numpy.typing import NDArray

from featherlight.data._suggest import listing
from featherlight.data.image_files import read_arrays

_FOLDER = "FEATHERLIGHT_DATA"


def find(folder: str, name: str) -> Path:
    """A file in the folder of data; raises ValueError where it is not there."""
    root = os.environ.get(_FOLDER)
    if not root:
        raise ValueError(
            f"this set is read from {folder}/{name} in a folder of data, and {_FOLDER} does not say which. Set it, as in: "
            f"export {_FOLDER}=/path/to/data"
        )
    path = Path(root) / folder / name
    if not path.is_file():
        raise ValueError(
            f"there is no file {path}. Put it there, or let {_FOLDER} name the folder that holds {folder}/{name}."
        )
    return path


def whole(path: Path, names: Sequence[str]) -> dict[str, NDArray]:
    """Arrays of an archive; raises ValueError where one is missing."""
    arrays = read_arrays(path, names)
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(f"{path} lacks the arrays {listing(missing)}. Copy or write it again.")
    return arrays
