"""Whole numbers of 8 bits for a network that was trained in floats: ranges from images alone, the quick way.

Legend of shapes: B images, C channels, H rows, W columns.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from featherlight.data import ImageSet, IndexPermutation
from featherlight.recipes.classify.network import Model, read_network
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
    batches = _batches(model, images, data)
    try:
        quantize_after_training(model, Calibration(batches=batches))
        return to_integer_program(model)
    except NoIntegerFormError as error:
        raise ValueError(f"{error} Or export the network with `--fp32`.") from error


def _batches(model: Model, images: ImageSet, data: str) -> Sequence[Float[Tensor, "B C H W"]]:
    """Some of the images in an order of their own, so that all classes are among them."""
    shape, settings = tuple(images.images.shape[1:]), model.settings
    wanted = (settings["in_channels"], *([settings["side"]] * 2 if "side" in settings else shape[1:]))
    if shape != wanted:
        raise ValueError(
            f"the images of {data} are of {_words(shape)}, and the network takes {_words(wanted)}. Name images like those that "
            "it was trained on."
        )
    rows = torch.tensor(IndexPermutation(len(images), 0).indices(0, min(_IMAGES, len(images))))
    return [images.floats(part) for part in rows.split(_BATCH)]


def _words(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} channel{'s' * (shape[0] != 1)} of {shape[1]}x{shape[2]} pixels"
