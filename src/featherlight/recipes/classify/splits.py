"""The images of a classifier's config, in the parts that a run makes of them."""

from featherlight.data import ImageSplits, load_images
from featherlight.recipes.classify.config import ClassifyConfig


def load_splits(config: ClassifyConfig) -> ImageSplits:
    """The images of the classes that are asked for, with a part to validate on.

    Raises:
        ValueError: there is no such data, its contents are wrong, or it lacks one of the classes.
    """
    splits = load_images(config.data)
    return (splits.only(config.classes) if config.classes else splits).with_valid(config.valid_fraction)
