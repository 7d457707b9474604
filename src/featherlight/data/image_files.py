"""A user's own labelled images: a NumPy archive, or a folder with a subfolder for each class.

Legend of shapes: N images, H rows, W columns, C channels.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featherlight.data._suggest import listing
from featherlight.data.images import ImageSet, ImageSplits
from featherlight.data.labels import Labels

_KEYS = {
    "train": (("images", "labels"), ("train_images", "train_labels"), ("x_train", "y_train")),
    "valid": (("valid_images", "valid_labels"), ("x_valid", "y_valid")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}
_PARTS = ("train", "valid", "test")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


def load_npz(path: Path, *, classes: Sequence[str] = ()) -> ImageSplits:
    """Images and labels of a NumPy archive, which is read without pickle.

    Its arrays are `images` (N, H, W) or (N, H, W, C), of bytes, whole numbers of 0 to 255, or floats in [0, 1] (which are
    rounded to bytes), and `labels` (N,), of whole numbers or text. `valid_images` with `valid_labels`, and `test_images`
    with `test_labels`, may come with them. The names `x_train`, `y_train`, `x_valid`, `y_valid`, `x_test` and `y_test`
    are taken as well.

    Args:
        path: of the archive.
        classes: names of labels 0, 1, ...; empty takes the labels themselves, in order.

    Returns:
        The parts that are there.

    Raises:
        ValueError: the file cannot be read, or its arrays are not as above; with the name of the array.
    """
    arrays = read_arrays(path, {key for pairs in _KEYS.values() for pair in pairs for key in pair})
    keys = {part: pair for part in _PARTS if (pair := _pair(path, arrays, part)) is not None}
    if "train" not in keys:
        raise ValueError(
            f"{path} must hold the arrays `images` and `labels` (or `x_train` and `y_train`); it has "
            f"{listing(_names(path))}. Save them with numpy.savez({path.name!r}, images=..., labels=...)."
        )
    labels = {part: _label_values(path, key, arrays[key], classes) for part, (_, key) in keys.items()}
    known = Labels.fit(labels["train"], regression=False, source=f"`{keys['train'][1]}` of {path}")
    known = Labels(names=tuple(classes)) if classes else known
    sets = {}
    for part, (images, key) in keys.items():
        if len(arrays[images]) != len(labels[part]):
            raise ValueError(
                f"{path} has {len(arrays[images]):,} `{images}` and {len(labels[part]):,} `{key}`; each image needs a label."
            )
        sets[part] = ImageSet(
            images=torch.from_numpy(_images(path, images, arrays.pop(images))),
            labels=known.encode(labels[part], source=f"`{key}` of {path}"),
            classes=known.names,
        )
    return _same_shape(sets, str(path))


def load_folder(path: Path) -> ImageSplits:
    """Images of a folder with a subfolder for each class, or with `train`, `valid` and `test` that are such folders.

    Images are grey if all of them are, else RGB, and must be of one size.

    Raises:
        ValueError: fewer than two classes, a class without images, a file that is no image, or images of several sizes.
    """
    parts = {part: path / part for part in _PARTS if (path / part).is_dir()}
    folders = parts if "train" in parts else {"train": path}
    classes = tuple(sorted(one.name for one in folders["train"].iterdir() if one.is_dir() and one.name[0] != "."))
    if len(classes) < 2:
        raise ValueError(
            f"{folders['train']} must hold a folder of images for each of two or more classes; it has "
            f"{listing(classes) if classes else 'no folders'}. Sort the images into folders named after their classes."
        )
    files = {part: _files_of(folder, classes) for part, folder in folders.items()}
    grey = all(_mode(file) in ("1", "L") for found in files.values() for file, _ in found)
    sets = {part: _read_files(found, classes, "L" if grey else "RGB") for part, found in files.items()}
    return _same_shape(sets, str(path))


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and the folders in it, in order of name; hidden ones are left out."""
    found = [file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file()]
    return sorted(file for file in found if not any(part[0] == "." for part in file.relative_to(folder).parts))


def decode_image(
    source: Path | bytes, mode: str | None, name: str, *, short_side: int | None = None
) -> NDArray[np.uint8]:
    """Pixels of an encoded image, (H, W, C).

    Args:
        source: a file, or its contents.
        mode: "L" or "RGB"; None is "L" for images that are grey, else "RGB".
        name: for the message.
        short_side: the image is shrunk so that its shorter side has so many pixels, unless it has fewer.

    Raises:
        ValueError: it cannot be read as an image.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            wanted = mode or ("L" if image.mode in ("1", "L") else "RGB")
            factor = 1.0 if short_side is None else short_side / min(image.size)
            if factor < 1:
                size = (max(1, round(factor * image.width)), max(1, round(factor * image.height)))
                image.draft(wanted, size)
                pixels = np.asarray(image.convert(wanted).resize(size, Image.Resampling.LANCZOS), dtype=np.uint8)
            else:
                pixels = np.asarray(image.convert(wanted), dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read as an image ({error}). Replace or remove it.") from error
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, NDArray]:
    """Those of some arrays that an archive has; raises ValueError where it cannot be read to its end."""
    wanted = set(names)
    if not path.is_file():
        raise ValueError(f"there is no file {path}. Check the path.")
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise ValueError(f"{path} holds a single array. Save images and labels together with numpy.savez.")
            return {name: archive[name] for name in archive.files if name in wanted}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is no NumPy archive, or is cut short or damaged ({error}). Copy or write it again."
        ) from error
    except MemoryError as error:
        raise ValueError(f"{path} says that it holds more than the memory of this machine ({error}).") from None
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise ValueError(
            f"{path} holds arrays of Python objects or is no NumPy archive; objects are never loaded, as they can run code. "
            "Save plain arrays of numbers or text with numpy.savez."
        ) from error


def _names(path: Path) -> list[str]:
    with np.load(path, allow_pickle=False) as archive:
        return list(archive.files)


def _pair(path: Path, arrays: dict[str, NDArray], part: str) -> tuple[str, str] | None:
    """The names of a part's images and labels, if it is there; raises ValueError for one without the other."""
    for images, labels in _KEYS[part]:
        if (images in arrays) != (labels in arrays):
            there, lacking = (images, labels) if images in arrays else (labels, images)
            raise ValueError(f"{path} has the array `{there}` but no `{lacking}`. Save both or neither.")
        if images in arrays:
            return images, labels
    return None


def _images(path: Path, name: str, array: NDArray) -> NDArray[np.uint8]:
    """An array of images as bytes of shape (N, C, H, W)."""
    if array.ndim not in (3, 4) or 0 in array.shape or (array.ndim == 4 and array.shape[3] > 4):
        raise ValueError(
            f"`{name}` of {path} must have the shape (N, H, W) or (N, H, W, C) with at most 4 channels, none of them 0; got "
            f"{array.shape}. Reshape it; where channels come second, move them last with numpy.moveaxis(images, 1, 3)."
        )
    if array.dtype != np.uint8:
        array = _as_bytes(path, name, array)
    return np.ascontiguousarray(array[:, None] if array.ndim == 3 else np.moveaxis(array, 3, 1))


def _as_bytes(path: Path, name: str, array: NDArray) -> NDArray[np.uint8]:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"`{name}` of {path} must hold numbers; got {array.dtype}. Save the images as bytes (uint8).")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise ValueError(
            f"`{name}` of {path} holds {bad:,} values that are NaN or infinite, which no image has. Mend what wrote it."
        )
    largest = 1 if array.dtype.kind == "f" else 255
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > largest:
        raise ValueError(
            f"`{name}` of {path} is {array.dtype} and holds values from {low:g} to {high:g}, where floats must lie in [0, 1] "
            "and whole numbers in 0 to 255, or black and white are unknown. Scale them, and best save bytes (uint8)."
        )
    return np.rint(array * 255).astype(np.uint8) if largest == 1 else array.astype(np.uint8)


def _label_values(path: Path, name: str, array: NDArray, classes: Sequence[str]) -> list[Any]:
    """Labels as Python values, as names where classes have names."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(
            f"`{name}` of {path} must have the shape (N,), a label for each image; got {array.shape}. For one-hot rows, "
            "save labels.argmax(1)."
        )
    if array.dtype.kind == "f" and not (np.isfinite(array) & (array == np.rint(array))).all():
        raise ValueError(f"`{name}` of {path} holds labels that are NaN or not whole, which name no class. Mend them.")
    if array.dtype.kind not in "biufU":
        raise ValueError(f"`{name}` of {path} must hold whole numbers or text; got {array.dtype}.")
    values: list[Any] = (array.astype(np.int64) if array.dtype.kind in "bf" else array).tolist()
    return [classes[value] if classes and 0 <= value < len(classes) else value for value in values]


def _same_shape(sets: dict[str, ImageSet], source: str) -> ImageSplits:
    shape = sets["train"].images.shape[1:]
    for part, one in sets.items():
        if one.images.shape[1:] != shape:
            raise ValueError(
                f"the {part} images of {source} have the shape {tuple(one.images.shape[1:])} (channels, rows, columns), but "
                f"those to train on {tuple(shape)}. Make them alike."
            )
    return ImageSplits(train=sets["train"], valid=sets.get("valid"), test=sets.get("test"))


def _files_of(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """The image files of a part with the number of their class, in order of name."""
    found = []
    for number, name in enumerate(classes):
        inside = sorted(folder.joinpath(name).iterdir()) if folder.joinpath(name).is_dir() else []
        files = [file for file in inside if file.suffix.lower() in _SUFFIXES]
        if not files:
            raise ValueError(
                f"{folder / name} has no images ({', '.join(_SUFFIXES)}), so the class cannot be learned or scored. Add some, "
                "or take the folder away."
            )
        found += [(file, number) for file in files]
    return found


def _read_files(files: list[tuple[Path, int]], classes: tuple[str, ...], mode: str) -> ImageSet:
    first = _read(files[0][0], mode)
    images = np.empty((len(files), first.shape[2], *first.shape[:2]), dtype=np.uint8)
    for row, (file, _) in enumerate(files):
        image = _read(file, mode)
        if image.shape != first.shape:
            raise ValueError(
                f"{file} is {image.shape[1]}x{image.shape[0]} pixels and {files[0][0]} {first.shape[1]}x{first.shape[0]}; a "
                "batch needs one size. Resize all images to one."
            )
        images[row] = image.transpose(2, 0, 1)
    labels = torch.tensor([number for _, number in files], dtype=torch.int64)
    return ImageSet(images=torch.from_numpy(images), labels=labels, classes=classes)


def _read(file: Path, mode: str) -> NDArray[np.uint8]:
    """Pixels of an image file, (H, W, C)."""
    return decode_image(file, mode, str(file))


def _mode(file: Path) -> str:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.mode
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as an image ({error}). Replace or remove it.") from error
