"""The model directory that a recipe leaves: weights as safetensors, and what it takes to build the model as JSON."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ModelKind:
    """What stands in a model directory, in words for the sentences.

    Attributes:
        architectures: one of these is in its config.json.
        name: with its article, "an image classifier".
        recipe: one that leaves such a model, "classify/digits".
    """

    architectures: tuple[str, ...]
    name: str
    recipe: str


def write_model(path: Path, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Makes the directory.

    Args:
        path: must not be there yet.
        weights: by name, on any device.
        about: JSON; `architecture` is one of the kind's.
    """
    path.mkdir(parents=True)
    save_file({name: tensor.contiguous().cpu() for name, tensor in weights.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def read_model(path: Path, kind: ModelKind) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """What `write_model` was handed, from a run directory or a model directory; the block builds the model of it.

    Args:
        path: the directory.
        kind: what is looked for.

    Yields:
        `about` and the weights, on the CPU.

    Raises:
        ValueError: there is no such model, or it is damaged or of another kind, which the block may find out too.
    """
    folder = path / "model" if (path / "model").is_dir() else path
    file, about = folder / "model.safetensors", folder / "config.json"
    if not (file.is_file() and about.is_file()):
        raise ValueError(
            f"there is no {kind.name.partition(' ')[2]} at {path}: a finished run of a recipe such as {kind.recipe} leaves one "
            "in its directory, with `model.safetensors` and `config.json` in `model/`. Run that first, or correct the path."
        )
    try:
        values = json.loads(about.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.get("architecture") not in kind.architectures:
            raise ValueError(f"{about} does not say that its architecture is {' or '.join(kind.architectures)}")
        yield values, load_file(file)
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"the model in {folder} cannot be read as {kind.name} ({error}). Take the model directory of a run of "
            f"{kind.recipe.partition('/')[0]}/..., or write it again."
        ) from error
