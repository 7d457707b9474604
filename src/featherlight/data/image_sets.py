"""Sets of images by name: the digits that come with scikit-learn, and MNIST and CIFAR-10 from a folder of data."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from featherlight.data._suggest import did_you_mean, listing
from featherlight.data.image_files import load_folder, load_npz, read_arrays
from featherlight.data.images import ImageSet, ImageSplits, load_digits

_FOLDER = "FEATHERLIGHT_DATA"
_CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load_images(data: str) -> ImageSplits:
    """Images by the name of a set, or of a file or folder of one's own.

    Args:
        data: a key of `IMAGE_SETS`, the path of a NumPy archive (.npz), or that of a folder.

    Raises:
        ValueError: there is no such set, file or folder, or its contents are wrong.
    """
    if data in IMAGE_SETS:
        return IMAGE_SETS[data]()
    path = Path(data)
    if path.is_dir():
        return load_folder(path)
    if path.suffix == ".npz":
        return load_npz(path)
    raise ValueError(
        f"`data` is {data!r}, which is neither a set that is known by name ({listing(IMAGE_SETS)}), nor a NumPy archive (.npz), "
        f"nor a folder.{did_you_mean(data, IMAGE_SETS)}"
    )


def load_mnist() -> ImageSplits:
    """60,000 + 10,000 handwritten digits of 28x28 pixels, from `mnist/mnist.npz` in the folder FEATHERLIGHT_DATA.

    Raises:
        ValueError: the folder is not named, or the file is missing or damaged.

    Source: LeCun, Cortes and Burges 1998.
    """
    return load_npz(_find("mnist", "mnist.npz"), classes=tuple(str(digit) for digit in range(10)))


def load_cifar10() -> ImageSplits:
    """50,000 + 10,000 colour images of 32x32 pixels, from `cifar10-jpeg/cifar10_jpeg.npz` in the folder FEATHERLIGHT_DATA.

    The file holds the images as JPEG, which is lossy; scores are not to be set beside those on the originals. Decoding
    takes about ten seconds.

    Raises:
        ValueError: the folder is not named, or the file is missing or damaged.

    Source: Krizhevsky 2009.
    """
    path = _find("cifar10-jpeg", "cifar10_jpeg.npz")
    names = [f"{kind}_{part}" for part in ("train", "test") for kind in ("jpeg", "offsets", "y")]
    arrays = read_arrays(path, names)
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(f"{path} lacks the arrays {listing(missing)}. Copy or write it again.")
    train, test = (
        ImageSet(
            images=torch.from_numpy(_decode(path, arrays[f"jpeg_{part}"], arrays[f"offsets_{part}"])),
            labels=torch.from_numpy(arrays[f"y_{part}"].astype(np.int64)),
            classes=_CIFAR_CLASSES,
        )
        for part in ("train", "test")
    )
    return ImageSplits(train=train, test=test)


IMAGE_SETS: Mapping[str, Callable[[], ImageSplits]] = MappingProxyType(
    {"digits": lambda: ImageSplits(train=load_digits()), "mnist": load_mnist, "cifar10": load_cifar10}
)
"""The sets that are known by name."""


def _find(folder: str, name: str) -> Path:
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


def _decode(path: Path, stream: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
    """JPEG images one after the other as bytes, (N, 3, 32, 32)."""
    from PIL import Image

    content = stream.tobytes()
    images = np.empty((len(offsets) - 1, 3, 32, 32), dtype=np.uint8)
    for row, (start, stop) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        try:
            with Image.open(io.BytesIO(content[start:stop])) as image:
                images[row] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} is damaged: its image {row} cannot be read ({error}). Copy it again.") from error
    return images
