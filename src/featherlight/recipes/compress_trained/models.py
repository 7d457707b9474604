"""What is compressed: the tensors of a run, a model directory or a file, and, where data are given, how well they do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from featherlight.data.image_sets import load_images
from featherlight.data.images import ImageSet
from featherlight.nn.models import SentenceClassifier, module_folders
from featherlight.recipes.classify.experiment import outputs
from featherlight.recipes.classify.network import read_network
from featherlight.recipes.classify.splits import require_fit
from featherlight.recipes.compress_trained.rounding import roundable
from featherlight.recipes.finetune import use

_MOST_SEARCHED = 5000
Score = Callable[[Mapping[str, Tensor]], float]
"""How well a model does with some tensors, in points of 100; more is better."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How well a model does with some tensors.

    Attributes:
        unit: what a point is, "accuracy in %".
        search: by which settings are chosen.
        test: what is told of the result.
        told: which data these are, in words.
    """

    unit: str
    search: Score
    test: Score
    told: str


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, of a model directory or of a run directory, named as by `_weight_files`.

    Raises:
        ValueError: there are none, or they are damaged.
    """
    files = {"": [path]} if path.is_file() else _weight_files(model_folder(path))
    if not any(files.values()) or any(one.suffix != ".safetensors" for part in files.values() for one in part):
        raise ValueError(
            f"there is no model at {path}. Name a run directory, a model directory with `*.safetensors`, or such a file; files "
            "that need pickle are not read."
        )
    try:
        return {
            prefix + name: one
            for prefix, part in files.items()
            for file in part
            for name, one in load_file(file).items()
        }
    except SafetensorError as error:
        raise ValueError(f"the model at {path} is damaged ({error}). Copy it again.") from error


def scores_of(path: Path, data: str, tensors: Mapping[str, Tensor], device: str | None = None) -> Scores:
    """How a model is scored on some data.

    Args:
        path: of a run or a model directory of an image classifier or a text model.
        data: images by name, file or folder; a labelled file or a text for a text model.
        tensors: of the model as it is.
        device: as for `default_device`, for text models.

    Raises:
        ValueError: the model cannot be built, or the data do not fit it.
    """
    if path.is_file():
        raise ValueError(
            f"{path} holds tensors alone, which cannot be run on data. Name its run or model directory, or drop `--data`."
        )
    if _is_text_model(path):
        return _text_scores(path, data, tensors, device)
    network = read_network(path)
    images = load_images(data)
    known = images.train.classes
    if not set(network.classes) <= set(known):
        raise ValueError(
            f"the classes of {data} are {list(known)[:10]}, and the model knows {list(network.classes)[:10]}. Name images of "
            "the classes that it was trained on."
        )
    require_fit(network.model.settings, images.train, data)
    images = images if known == network.classes else images.only(network.classes)
    searched, tested, told = _parts(images.train, images.valid, images.test)
    network.model.load_state_dict(dict(tensors))
    return Scores(
        unit="accuracy in %",
        search=lambda new: _accuracy(network.model, new, searched),
        test=lambda new: _accuracy(network.model, new, tested),
        told=told,
    )


def model_folder(path: Path) -> Path:
    """The model directory of a run, or the directory itself."""
    return path / "model" if (path / "model").is_dir() else path


def _weight_files(folder: Path) -> dict[str, list[Path]]:
    """The weight files of a model directory, by what stands before the names of their tensors.

    That is nothing, or `2_Dense/` for what is in that folder of a sentence-transformers model.
    """
    prefixes = dict.fromkeys(("", *(f"{name}/" for name in module_folders(folder) if name)))
    found = {prefix: _files_of(folder / prefix) for prefix in prefixes}
    return {prefix: files for prefix, files in found.items() if files}


def _files_of(folder: Path) -> list[Path]:
    """`model.safetensors` alone where it is there, since other tensors may stand beside it; else all parts of it."""
    whole = folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    return sorted(folder.glob("model-*.safetensors")) or sorted(folder.glob("*.safetensors"))


def _is_text_model(path: Path) -> bool:
    folder = model_folder(path)
    return (folder / "tokenizer.json").is_file() or (folder / "modules.json").is_file()


def _parts(train: ImageSet, valid: ImageSet | None, test: ImageSet | None) -> tuple[ImageSet, ImageSet, str]:
    """Images to choose by, and other images to tell the result on."""
    if test is not None:
        chosen = valid if valid is not None else train
        rows = torch.arange(len(chosen))[-_MOST_SEARCHED:]
        name = "validation" if valid is not None else "training"
        return chosen.take(rows), test, f"chosen on {len(rows):,} {name} images, told on {len(test):,} test images"
    rows = torch.arange(len(train))
    return train.take(rows[::2]), train.take(rows[1::2]), "chosen on one half of the images, told on the other"


@torch.no_grad()
def _accuracy(model: nn.Module, tensors: Mapping[str, Tensor], images: ImageSet) -> float:
    model.load_state_dict(dict(tensors))
    return 100 * float((outputs(model, images).argmax(-1) == images.labels).double().mean())


def _text_scores(path: Path, data: str, tensors: Mapping[str, Tensor], device: str | None) -> Scores:
    trained = use.load_trained(path, device=device)
    language = trained.labels is None
    model = trained.loaded.model
    names = model.file_names() if isinstance(model, SentenceClassifier) else {name: name for name in model.state_dict()}
    if unknown := [name for name in roundable(tensors) if name not in names]:
        raise ValueError(
            f"{path} holds `{unknown[0]}`, which the model does not have under this name, so that its rounding could not be "
            "measured. Leave `--data` out, or save the model with `save_pretrained` first."
        )

    def score(tensors: Mapping[str, Tensor]) -> float:
        known = {names[name]: tensor for name, tensor in tensors.items() if name in names}
        model.load_state_dict(known, strict=False)
        found = use.evaluate(trained, data, text=(), label=None, allow_truncation=True)
        if language:
            return -100 * found["loss"]
        return 100 * found.get("accuracy", found.get("pearson", 0.0))

    unit = "loss in hundredths" if language else ("correlation in %" if _is_regression(trained) else "accuracy in %")
    return Scores(unit=unit, search=score, test=score, told=f"chosen and told on the same rows of {data}")


def _is_regression(trained: use.Trained) -> bool:
    return trained.labels is not None and trained.labels.is_regression
