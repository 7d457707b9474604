"""Images in memory: bytes, classes, statistics and splits."""

import pytest
import torch

from featherlight.data import ImageSet, ImageSplits


def some(count: int = 40, channels: int = 3, classes: tuple[str, ...] = ("a", "b", "c", "d")) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, 5, 4), generator=generator, dtype=torch.uint8)
    return ImageSet(images=images, labels=torch.arange(count) % len(classes), classes=classes)


def test_statistics_are_those_of_float64() -> None:
    images = some()
    values = images.images.double().div(255).movedim(1, 0).flatten(1)
    mean, std = images.channel_statistics()
    assert mean == pytest.approx(values.mean(1).tolist(), rel=1e-12)
    assert std == pytest.approx(values.std(1, correction=0).tolist(), rel=1e-12)


def test_a_channel_that_does_not_vary_is_not_divided_by_zero() -> None:
    images = some()
    images.images[:, 1] = 7
    mean, std = images.channel_statistics()
    assert (mean[1], std[1]) == (7 / 255, 1.0)


def test_floats_are_the_bytes_in_the_order_asked_for() -> None:
    images = some()
    rows = torch.tensor([5, 2, 5])
    assert torch.equal(images.floats(rows), images.images[rows].float() / 255)
    assert torch.equal(images.floats(slice(3, 5)), images.images[3:5].float() / 255)


def test_some_classes_are_numbered_anew() -> None:
    images = some()
    kept = images.only(("d", "b"))
    assert kept.classes == ("d", "b")
    rows = torch.tensor([i for i in range(40) if i % 4 in (1, 3)])
    assert torch.equal(kept.images, images.images[rows])
    assert kept.labels.tolist() == [0 if i % 4 == 3 else 1 for i in rows.tolist()]


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (("a", "e"), "there is no class 'e'; there are 'a', 'b', 'c', 'd'"),
        (("a",), "must name two or more different classes"),
        (("a", "a"), "must name two or more different classes"),
    ],
)
def test_classes_that_cannot_be_told_apart_are_refused(classes: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        some().only(classes)


def test_images_that_are_no_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be bytes of shape .* got float32 of shape"):
        ImageSet(images=torch.zeros(2, 1, 3, 3), labels=torch.zeros(2, dtype=torch.int64), classes=("a", "b"))


def test_the_digest_sees_images_labels_and_classes() -> None:
    images = some()
    other = [images.take(torch.arange(39)), some(channels=1), some(classes=("a", "b", "c", "e"))]
    assert len({one.digest() for one in (images, some(), *other)}) == 4


def test_a_part_to_validate_is_split_off_once() -> None:
    images = some()
    splits = ImageSplits(train=images, test=some(8)).with_valid(0.25)
    assert splits.valid is not None
    assert (len(splits.train), len(splits.valid)) == (30, 10)
    assert splits.test is not None
    assert splits.with_valid(0.5) is splits
    assert torch.equal(ImageSplits(train=images).with_valid(0.25).valid.images, splits.valid.images)  # pyright: ignore
