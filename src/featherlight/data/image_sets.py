"""Sets of images by name: the digits that come with scikit-learn, and others from a folder of data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from featherlight.data._folder import find as _find
from featherlight.data._folder import whole as _whole
from featherlight.data._suggest import did_you_mean, listing
from featherlight.data.image_files import decode_image, load_folder, load_npz
from featherlight.data.images import ImageSet, ImageSplits, load_digits
from featherlight.data.photographs import Photographs, PhotographSplits

_GTSRB_CLASSES = 43
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
    arrays = _whole(path, [f"{kind}_{part}" for part in ("train", "test") for kind in ("jpeg", "offsets", "y")])
    train, test = (
        ImageSet(
            images=torch.from_numpy(_decode(path, arrays[f"jpeg_{part}"], arrays[f"offsets_{part}"])),
            labels=torch.from_numpy(arrays[f"y_{part}"].astype(np.int64)),
            classes=_CIFAR_CLASSES,
        )
        for part in ("train", "test")
    )
    return ImageSplits(train=train, test=test)


def load_gtsrb() -> ImageSplits:
    """19,605 + 12,630 traffic signs of 43 classes, 32x32 pixels in colour, from `gtsrb32/` in the folder FEATHERLIGHT_DATA.

    The training images are every other frame of the official tracks. Every fifth track of a class validates, whole, since
    the frames of a track are nearly alike. Images were resized from their own sizes. Reading takes about 20 seconds.

    Raises:
        ValueError: the folder is not named, or a file is missing or damaged.

    Source: Stallkamp, Schlipsing, Salmen and Igel 2012.
    """
    train = _gtsrb_part("gtsrb32_train_half.npz", "train", ("track_train",))
    is_valid = torch.from_numpy(train["track_train"].astype(np.int64) % 5 == 4)
    known = _gtsrb_set(train, "train")
    return ImageSplits(
        train=known.take((~is_valid).nonzero().squeeze(1)),
        valid=known.take(is_valid.nonzero().squeeze(1)),
        test=_gtsrb_set(_gtsrb_part("gtsrb32_test.npz", "test", ()), "test"),
    )


def load_bsds() -> PhotographSplits:
    """200 + 100 + 200 natural photographs, from `bsds500-half/bsds500_half.npz` in the folder FEATHERLIGHT_DATA.

    They are at half their published resolution, 240x160 or 160x240 pixels.

    Raises:
        ValueError: the folder is not named, or the file is missing or damaged.

    Source: Martin, Fowlkes, Tal and Malik 2001; Arbelaez, Maire, Fowlkes and Malik 2011.
    """
    path = _find("bsds500-half", "bsds500_half.npz")
    arrays = _whole(path, [f"{kind}_{part}" for part in ("train", "val", "test") for kind in ("jpeg", "offsets")])
    train, valid, test = (
        Photographs(files=streams, names=[f"image {row} of the {part} part of {path}" for row in range(len(streams))])
        for part in ("train", "val", "test")
        for streams in [_streams(arrays[f"jpeg_{part}"], arrays[f"offsets_{part}"])]
    )
    return PhotographSplits(train=train, valid=valid, test=test)


IMAGE_SETS: Mapping[str, Callable[[], ImageSplits]] = MappingProxyType(
    {
        "digits": lambda: ImageSplits(train=load_digits()),
        "mnist": load_mnist,
        "cifar10": load_cifar10,
        "gtsrb": load_gtsrb,
    }
)
"""The sets that are known by name."""


def _gtsrb_part(name: str, part: str, more: Sequence[str]) -> dict[str, NDArray]:
    return _whole(_find("gtsrb32", name), [f"x_{part}", f"y_{part}", *more])


def _gtsrb_set(arrays: Mapping[str, NDArray], part: str) -> ImageSet:
    return ImageSet(
        images=torch.from_numpy(np.ascontiguousarray(np.moveaxis(arrays[f"x_{part}"], 3, 1))),
        labels=torch.from_numpy(arrays[f"y_{part}"].astype(np.int64)),
        classes=tuple(str(number) for number in range(_GTSRB_CLASSES)),
    )


def _streams(stream: NDArray[np.uint8], offsets: NDArray[np.int64]) -> list[bytes]:
    """Encoded images that stand one after the other."""
    content = stream.tobytes()
    return [content[start:stop] for start, stop in pairwise(offsets.tolist())]


def _decode(path: Path, stream: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
    """JPEG images one after the other as bytes, (N, 3, 32, 32)."""
    images = np.empty((len(offsets) - 1, 3, 32, 32), dtype=np.uint8)
    for row, encoded in enumerate(_streams(stream, offsets)):
        try:
            images[row] = decode_image(encoded, "RGB", f"its image {row}").transpose(2, 0, 1)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error} Copy the file again.") from error
    return images
