"""Sets by name, and what is said where their files are not there or are damaged."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featherlight.data import load_images

NAMES = ("mnist", "cifar10")


def test_a_name_that_is_none_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"neither a set that is known by name .*Did you mean 'cifar10'\?"):
        load_images("cifar-10")


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_is_not_named_or_lacks_the_set_is_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEATHERLIGHT_DATA", raising=False)
    with pytest.raises(ValueError, match=rf"this set is read from {name}.* FEATHERLIGHT_DATA does not say which"):
        load_images(name)
    monkeypatch.setenv("FEATHERLIGHT_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=rf"there is no file .*{name}"):
        load_images(name)


def jpeg(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), (value, value, value)).save(stream, "JPEG")
    return stream.getvalue()


def small_cifar10(folder: Path, damage: int | None = None) -> Path:
    """A file of the form of the real one, with three training images and one to test on."""
    (folder / "cifar10-jpeg").mkdir(exist_ok=True)
    path = folder / "cifar10-jpeg" / "cifar10_jpeg.npz"
    arrays = {}
    for part, values in (("train", (10, 100, 200)), ("test", (50,))):
        images = [jpeg(value) for value in values]
        if damage is not None and damage < len(images):
            images[damage] = b"\0" * len(images[damage])
        arrays[f"jpeg_{part}"] = np.frombuffer(b"".join(images), np.uint8)
        arrays[f"offsets_{part}"] = np.cumsum([0, *map(len, images)])
        arrays[f"y_{part}"] = np.arange(len(images), dtype=np.uint8)
    np.savez(path, **arrays)
    return path


def test_jpeg_streams_become_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATHERLIGHT_DATA", str(tmp_path))
    small_cifar10(tmp_path)
    splits = load_images("cifar10")
    assert splits.train.images.shape == (3, 3, 32, 32)
    assert splits.train.images[:, :, 9, 9].tolist() == [[10] * 3, [100] * 3, [200] * 3]
    assert splits.train.labels.tolist() == [0, 1, 2]
    assert splits.train.classes[:2] == ("airplane", "automobile")
    assert splits.test is not None
    assert len(splits.test) == 1


def test_a_broken_stream_and_a_lacking_array_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATHERLIGHT_DATA", str(tmp_path))
    path = small_cifar10(tmp_path, damage=1)
    with pytest.raises(ValueError, match="is damaged: its image 1 cannot be read"):
        load_images("cifar10")
    np.savez(path, y_train=np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="lacks the arrays 'jpeg_train', 'offsets_train', 'jpeg_test'"):
        load_images("cifar10")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cut short or damaged"):
        load_images("cifar10")


def test_mnist_is_all_there(real_data: Path) -> None:
    splits = load_images("mnist")
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (60_000, 10_000)
    (mean,), (std,) = splits.train.channel_statistics()
    assert (round(mean, 4), round(std, 4)) == (0.1307, 0.3081)
    assert splits.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
