"""Images for autoencoders: sets of one size, or squares cut from photographs of any size.

Legend of shapes: N images, C channels, H rows, W columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from featherlight.data import (
    ImageSplits,
    IndexPermutation,
    PhotographSplits,
    RandomCrops,
    load_bsds,
    load_images,
    load_photograph_folder,
)
from featherlight.recipes.vq.config import ImageVqConfig
from featherlight.recipes.vq.losses import ImageError
from featherlight.recipes.vq.task import Task
from featherlight.report import Block, Images
from featherlight.trainer import Display

_WHITE = 255
_PHOTOGRAPHS = "bsds"
_SMALL = 16


def image_task(config: ImageVqConfig, display: Display) -> Task:
    """Reads the images of a config.

    Raises:
        ValueError: there are none, they cannot be read, or `crop` does not fit them.
    """
    display.say(f"loading {config.data}")
    if config.data == _PHOTOGRAPHS or (config.crop is not None and Path(config.data).is_dir()):
        return _crops(config, _photographs(config))
    if config.crop is not None:
        raise ValueError(
            f"`crop` cuts squares from a folder of photographs or from {_PHOTOGRAPHS}, and {config.data} has images of one size "
            "that are taken whole. Leave `crop` out."
        )
    return _whole_images(config, load_images(config.data).with_valid(config.valid_fraction))


def _photographs(config: ImageVqConfig) -> PhotographSplits:
    if config.data != _PHOTOGRAPHS:
        return load_photograph_folder(
            Path(config.data), valid_fraction=config.valid_fraction, short_side=config.short_side
        )
    found = load_bsds()
    assert found.test is not None
    train, valid, test = (
        replace(part, short_side=config.short_side) for part in (found.train, found.valid, found.test)
    )
    return PhotographSplits(train=train, valid=valid, test=test)


def _crops(config: ImageVqConfig, found: PhotographSplits) -> Task:
    if config.crop is None:
        raise ValueError(f"the photographs of {config.data} have several sizes. Set `crop`, such as crop=64.")
    side, stream = config.crop, RandomCrops(found.train, config.crop, config.seed)
    valid = found.valid.centres(side, config.evaluated)
    test = None if found.test is None else found.test.centres(side, config.evaluated)
    return _task(
        config,
        num_train=len(found.train),
        batch=stream.take,
        rows=stream.rows,
        parts=(valid, test),
        digest=found.train.digest(),
        facts={"training images": f"squares of {side} pixels from {len(found.train):,} photographs, at random places"},
    )


def _whole_images(config: ImageVqConfig, splits: ImageSplits) -> Task:
    assert splits.valid is not None, "`with_valid` has seen to it"
    order = IndexPermutation(len(splits.train), config.seed)
    images = splits.train.images
    return _task(
        config,
        num_train=len(splits.train),
        batch=lambda start, count: images[torch.tensor(order.indices(start, count))],
        rows=order.indices,
        parts=(
            splits.valid.images[: config.evaluated],
            None if splits.test is None else splits.test.images[: config.evaluated],
        ),
        digest=splits.train.digest(),
        facts={"training images": f"{len(splits.train):,} of {images.shape[3]}x{images.shape[2]} pixels"},
    )


def _task(
    config: ImageVqConfig,
    *,
    num_train: int,
    batch: Callable[[int, int], Tensor],
    rows: Callable[[int, int], Sequence[int]],
    parts: tuple[Tensor, Tensor | None],
    digest: str,
    facts: dict[str, str],
) -> Task:
    valid, test = parts
    channels, height, width = valid.shape[1:]
    return Task(
        source=config.data,
        channels=channels,
        sizes=(height, width),
        num_train=num_train,
        batch=lambda start, count: as_floats(batch(start, count)),
        rows=rows,
        valid=as_floats(valid),
        test=None if test is None else as_floats(test),
        low=0.0,
        high=1.0,
        loss=lambda variance: ImageError(variance=variance, gradients=config.gradients),
        decibels=("psnr", 1.0),
        unit=("pixel", height * width),
        show=show_images,
        digest=digest,
        facts={
            "data": config.data + (", as JPEG, which is lossy" if config.data == "cifar10" else ""),
            **facts,
            "validation images": f"{len(valid):,}",
            **({} if test is None else {"test images": f"{len(test):,}"}),
        },
        about={"kind": "images"},
    )


def as_floats(images: Tensor) -> Float[Tensor, "N C H W"]:
    """Bytes as floats in [0, 1]."""
    return images.float().div_(_WHITE)


def as_bytes(images: Float[Tensor, "N C H W"]) -> Tensor:
    """Floats as the nearest bytes."""
    return images.detach().clamp(0, 1).mul(_WHITE).round().to(torch.uint8)


def show_images(rows: Sequence[tuple[str, Tensor]], caption: str) -> Block:
    """Rows of images, one below the other; of two channels, the first."""
    pixels = torch.cat([as_bytes(images) for _, images in rows]).cpu()
    pictures = (
        pixels[:, 0].numpy() if pixels.shape[1] < 3 else np.ascontiguousarray(pixels[:, :3].movedim(1, 3).numpy())
    )
    return Images(
        images=pictures,
        columns=len(rows[0][1]),
        caption=caption,
        labels=tuple(name for name, images in rows for _ in range(len(images))) if rows[0][0] else (),
        scale=5 if pixels.shape[-1] <= _SMALL else 2 if pixels.shape[-1] <= 2 * _SMALL else 1,
    )
