"""Photographs of several sizes: crops by their place in a stream, folders, and what is said where they do not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from featherlight.data import RandomCrops, load_bsds, load_images, load_photograph_folder


def gradient(height: int, width: int) -> Image.Image:
    """Red is the row and green the column, so that a crop says where it is from."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows, columns, 0 * rows], 2).astype(np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for number in range(8):
        gradient(12 + number, 30 - number).save(tmp_path / ("deep/er" if number % 2 else "deep") / f"{number}.png")
    (tmp_path / ".hidden" / "no.png").write_bytes(b"nothing")
    return tmp_path


def test_crops_are_whole_squares_of_all_places_and_the_same_when_asked_again(folder: Path) -> None:
    splits = load_photograph_folder(folder, valid_fraction=0.25)
    assert (len(splits.train), len(splits.valid), splits.test) == (6, 2, None)
    assert not set(splits.train.names) & set(splits.valid.names)
    crops = RandomCrops(splits.train, 8, seed=3)
    stream = crops.take(0, 240)
    assert stream.shape == (240, 3, 8, 8)
    assert torch.equal(torch.cat([crops.take(0, 100), crops.take(100, 140)]), stream)
    assert not torch.equal(RandomCrops(splits.train, 8, seed=4).take(0, 240), stream)
    corner = stream[:, :2, :1, :1].int()
    there = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij"))
    assert torch.equal(stream[:, :2].int() - corner, there.expand(240, 2, 8, 8).int())
    tops, lefts = corner[:, 0].flatten(), corner[:, 1].flatten()
    assert tops.min() == 0
    assert tops.max() >= 10
    assert lefts.min() == 0
    assert lefts.max() >= 20
    middle = splits.valid.centres(8, most=1)[0]
    height, width = splits.valid.read(0).shape[:2]
    assert middle[0, 0, 0] == (height - 8 + 1) // 2
    assert middle[1, 0, 0] == (width - 8 + 1) // 2


def test_photographs_are_shrunk_by_their_shorter_side_and_never_enlarged(folder: Path) -> None:
    shrunk = load_photograph_folder(folder, valid_fraction=0.25, short_side=15).train
    plain = load_photograph_folder(folder, valid_fraction=0.25).train
    for number in range(len(plain)):
        before, after = min(plain.read(number).shape[:2]), min(shrunk.read(number).shape[:2])
        assert after == min(before, 15)
    assert shrunk.digest() != plain.digest()


def test_what_cannot_be_cut_or_read_is_named(folder: Path, tmp_path: Path) -> None:
    train = load_photograph_folder(folder, valid_fraction=0.25).train
    height, width = train.read(0).shape[:2]
    with pytest.raises(
        ValueError, match=rf"{train.names[0]} is {width}x{height} pixels, so no square of 25 can be cut"
    ):
        RandomCrops(train.take([0]), 25, seed=0).take(0, 1)
    (folder / train.names[1]).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=rf"{train.names[1]} cannot be read as an image"):
        train.read(1)
    (folder / "train").mkdir()
    (folder / "valid").mkdir()
    gradient(4, 4).save(folder / "train" / "a.png")
    with pytest.raises(ValueError, match=r"there are no images in .*valid"):
        load_photograph_folder(folder, valid_fraction=0.25)


def test_bsds_is_all_there(real_data: Path) -> None:
    splits = load_bsds()
    assert splits.test is not None
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (200, 100, 200)
    assert {splits.train.read(number).shape for number in range(20)} == {(160, 240, 3), (240, 160, 3)}


def test_tracks_of_gtsrb_validate_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATHERLIGHT_DATA", str(tmp_path))
    (tmp_path / "gtsrb32").mkdir()
    track = np.repeat(np.arange(10), 3).astype(np.int16)
    images = np.zeros((30, 4, 4, 3), np.uint8)
    images[..., 0] = track[:, None, None]
    labels = np.zeros(30, np.uint8)
    np.savez(tmp_path / "gtsrb32" / "gtsrb32_train_half.npz", x_train=images, y_train=labels, track_train=track)
    np.savez(tmp_path / "gtsrb32" / "gtsrb32_test.npz", x_test=images, y_test=labels)
    splits = load_images("gtsrb")
    assert splits.valid is not None
    assert sorted(splits.valid.images[:, 0, 0, 0].tolist()) == [4, 4, 4, 9, 9, 9]
    assert len(splits.train) == 24
