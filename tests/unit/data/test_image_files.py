"""A user's own images: archives and folders, good and bad."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from featherlight.data import load_folder, load_images, load_npz

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
LABELS = np.array([7, 3, 7, 3, 11, 11])


def saved(folder: Path, **arrays: Any) -> Path:
    path = folder / "own.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("names", [("images", "labels"), ("train_images", "train_labels"), ("x_train", "y_train")])
def test_an_archive_is_read_under_each_of_its_names(tmp_path: Path, names: tuple[str, str]) -> None:
    splits = load_npz(saved(tmp_path, **{names[0]: IMAGES, names[1]: LABELS}))
    assert splits.train.classes == ("3", "7", "11")
    assert splits.train.labels.tolist() == [1, 0, 1, 0, 2, 2]
    assert torch.equal(splits.train.images, torch.from_numpy(IMAGES)[:, None])
    assert splits.valid is None
    assert splits.test is None


def test_parts_and_classes_of_text_are_read(tmp_path: Path) -> None:
    colour = np.random.default_rng(1).integers(0, 256, (4, 3, 3, 3), dtype=np.uint8)
    names = np.array(["dog", "cat", "dog", "cat"])
    path = saved(
        tmp_path,
        **{f"{part}images": colour for part in ("", "valid_", "test_")},
        **{f"{part}labels": names for part in ("", "valid_", "test_")},
    )
    splits = load_images(str(path))
    assert splits.valid is not None
    assert splits.test is not None
    assert splits.test.classes == ("cat", "dog")
    assert splits.test.labels.tolist() == [1, 0, 1, 0]
    assert torch.equal(splits.valid.images, torch.from_numpy(colour).permute(0, 3, 1, 2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.bool_])
def test_numbers_of_other_types_become_bytes(tmp_path: Path, dtype: Any) -> None:
    black_and_white = (IMAGES > 100).astype(dtype)
    images = load_npz(saved(tmp_path, images=black_and_white, labels=LABELS)).train.images
    white = 255 if np.dtype(dtype).kind == "f" else 1
    assert torch.equal(images[:, 0], torch.from_numpy((IMAGES > 100) * white).to(torch.uint8))


def hurt(array: np.ndarray) -> np.ndarray:
    hurt = array.astype(np.float32) / 255
    hurt[1, 2, 3] = np.nan
    return hurt


BAD = {
    "no images": ({"pixels": IMAGES, "labels": LABELS}, "has the array `labels` but no `images`"),
    "no known key": ({"a": IMAGES, "b": LABELS}, "must hold the arrays `images` and `labels` .* it has 'a', 'b'"),
    "half a part": ({"images": IMAGES, "labels": LABELS, "test_images": IMAGES}, "`test_images` but no `test_labels`"),
    "flat": ({"images": IMAGES.reshape(6, -1), "labels": LABELS}, r"must have the shape \(N, H, W\) .* got \(6, 20\)"),
    "channels second": ({"images": np.zeros((6, 3, 8, 8), np.uint8), "labels": LABELS}, "move them last with"),
    "nan": ({"images": hurt(IMAGES), "labels": LABELS}, "`images` of .* holds 1 values that are NaN or infinite"),
    "range": ({"images": IMAGES.astype(np.float32), "labels": LABELS}, r"values from .* floats must lie in \[0, 1\]"),
    "negative": ({"images": IMAGES.astype(np.int32) - 9, "labels": LABELS}, "whole numbers in 0 to 255"),
    "text": ({"images": IMAGES.astype(str), "labels": LABELS}, "must hold numbers"),
    "lengths": ({"images": IMAGES, "labels": LABELS[:4]}, "has 6 `images` and 4 `labels`; each image needs a label"),
    "one hot": ({"images": IMAGES, "labels": np.eye(6)}, "For one-hot rows, save labels.argmax"),
    "label nan": (
        {"images": IMAGES, "labels": np.where(LABELS == 7, np.nan, LABELS)},
        "labels that are NaN or not whole",
    ),
    "one class": ({"images": IMAGES, "labels": np.zeros(6, int)}, "holds one class only, '0' in all 6 rows"),
    "new class": (
        {"images": IMAGES, "labels": LABELS, "test_images": IMAGES, "test_labels": LABELS + 1},
        "`test_labels` of .* has labels that are none of the 3 classes",
    ),
    "other size": (
        {"images": IMAGES, "labels": LABELS, "test_images": IMAGES[:, :4], "test_labels": LABELS},
        "the test images of .* have the shape",
    ),
    "objects": ({"images": IMAGES, "labels": np.array([{}] * 6, dtype=object)}, "objects are never loaded"),
}


@pytest.mark.parametrize(("arrays", "sentence"), BAD.values(), ids=BAD)
def test_an_archive_that_will_not_do_is_refused(tmp_path: Path, arrays: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_npz(saved(tmp_path, **arrays))


@pytest.mark.parametrize("keep", [0, 10, -200])
def test_an_archive_that_is_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    path = saved(tmp_path, images=IMAGES, labels=LABELS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="no NumPy archive"):
        load_npz(path)


def test_a_byte_that_is_flipped_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path, images=IMAGES, labels=LABELS)
    content = bytearray(path.read_bytes())
    content[content.index(IMAGES.tobytes()) + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cut short or damaged"):
        load_npz(path)


def test_an_array_alone_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.npz"
    with path.open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(ValueError, match="holds a single array"):
        load_npz(path)
    with pytest.raises(ValueError, match=r"there is no file .*absent\.npz"):
        load_npz(tmp_path / "absent.npz")


def paint(path: Path, *, mode: str = "L", size: tuple[int, int] = (4, 5), value: int = 9) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 1)).save(path)


def test_a_folder_of_folders_is_read(tmp_path: Path) -> None:
    for number, name in enumerate(("cat/1.png", "cat/2.PNG", "dog/1.png")):
        paint(tmp_path / name, value=number)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    splits = load_images(str(tmp_path))
    assert splits.train.classes == ("cat", "dog")
    assert splits.train.images.shape == (3, 1, 5, 4)
    assert splits.train.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert splits.train.labels.tolist() == [0, 0, 1]


def test_a_folder_with_parts_is_read_and_one_colour_image_makes_all_colour(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/dog/1.png", "test/cat/1.png"):
        paint(tmp_path / name)
    paint(tmp_path / "test/dog/1.png", mode="RGB", value=200)
    splits = load_folder(tmp_path)
    assert splits.valid is None
    assert splits.test is not None
    assert splits.train.images.shape == (2, 3, 5, 4)
    assert splits.test.images[1, :, 0, 0].tolist() == [200, 0, 1]


def test_folders_that_will_not_do_are_refused(tmp_path: Path) -> None:
    paint(tmp_path / "a" / "cat" / "1.png")
    with pytest.raises(ValueError, match="for each of two or more classes; it has 'cat'"):
        load_folder(tmp_path / "a")
    (tmp_path / "a" / "dog").mkdir()
    with pytest.raises(ValueError, match="dog has no images"):
        load_folder(tmp_path / "a")
    (tmp_path / "a" / "dog" / "1.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ValueError, match=r"dog/1\.png cannot be read as an image"):
        load_folder(tmp_path / "a")
    paint(tmp_path / "a" / "dog" / "1.png", size=(8, 5))
    with pytest.raises(ValueError, match=r"is 8x5 pixels and .* 4x5; a batch needs one size"):
        load_folder(tmp_path / "a")
