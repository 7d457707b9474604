"""The images of a classifier: in the parts that a run makes of them, and whether they fit a network."""

from collections.abc import Mapping
from typing import Any

from featherlight.data import ImageSet, ImageSplits, load_images
from featherlight.recipes.classify.config import ClassifyConfig


def load_splits(config: ClassifyConfig) -> ImageSplits:
    """The images of the classes that are asked for, with a part to validate on.

    Raises:
        ValueError: there is no such data, its contents are wrong, or it lacks one of the classes.
    """
    splits = load_images(config.data)
    return (splits.only(config.classes) if config.classes else splits).with_valid(config.valid_fraction)


def require_fit(settings: Mapping[str, Any], images: ImageSet, data: str) -> None:
    """Raises ValueError if a network takes other images.

    Args:
        settings: of the network, as its model directory tells them.
        images: that it is to be run on.
        data: their name, for the sentence.
    """
    shape = tuple(images.images.shape[1:])
    wanted = (settings["in_channels"], *([settings["side"]] * 2 if "side" in settings else shape[1:]))
    if shape != wanted:
        raise ValueError(
            f"the images of {data} are of {_words(shape)}, and the network takes {_words(wanted)}. Name images like those that "
            "it was trained on."
        )


def _words(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} channel{'s' * (shape[0] != 1)} of {shape[1]}x{shape[2]} pixels"
