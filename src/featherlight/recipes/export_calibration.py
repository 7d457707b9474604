"""Whole numbers of 8 bits for a network that was trained in floats: ranges from images alone, the quick way.

Legend of shapes: B images, C channels, H rows, W columns.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from featherlight.data import ImageSet, IndexPermutation
from featherlight.recipes.classify.network import read_network
from featherlight.recipes.classify.splits import require_fit
from featherlight.transforms.quantize import Calibration, quantize_after_training, to_integer_program
from featherlight.transforms.quantize.builder import NoIntegerFormError
from featherlight.transforms.quantize.integer_program import IntegerProgram

_IMAGES, _BATCH = 512, 128


def calibrated_program(model_directory: Path, images: ImageSet, *, data: str) -> IntegerProgram:
    """The integer program of a classifier of floats, with ranges of the least squared error on 512 images.

    Args:
        model_directory: of the classifier, or its run.
        images: like those that it was trained on.
        data: their name, for sentences.

    Raises:
        ValueError: there is no classifier, its images are of another shape, or a layer of it has no integer form.

    Cost: three forward passes over the images.
    """
    model = read_network(model_directory).model
    require_fit(model.settings, images, data)
    try:
        quantize_after_training(model, Calibration(batches=_batches(images)))
        return to_integer_program(model)
    except NoIntegerFormError as error:
        raise ValueError(f"{error} Or export the network with `--fp32`.") from error


def _batches(images: ImageSet) -> Sequence[Float[Tensor, "B C H W"]]:
    """Some of the images in an order of their own, so that all classes are among them."""
    rows = torch.tensor(IndexPermutation(len(images), 0).indices(0, min(_IMAGES, len(images))))
    return [images.floats(part) for part in rows.split(_BATCH)]
