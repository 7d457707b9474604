"""Saves: weights and optimizer state of methods that have no journal, as safetensors and JSON, never a pickle."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from featherlight.meter import Meter
from featherlight.trainer.files import write_atomically
from featherlight.trainer.journal import weights_digest

_TENSOR = "$tensor"
_TUPLE = "$tuple"


def write_save(path: Path, model: nn.Module, optimizer: Optimizer, progress: dict[str, Any], *, meter: Meter) -> None:
    """Writes trained weights, optimizer state and progress as one file; a kill in between leaves the previous one.

    Args:
        path: of the file.
        model: parameters that require a gradient and all buffers are kept.
        optimizer: its `state_dict` may hold tensors, numbers, strings, lists, tuples and dicts.
        progress: numbers and strings by name.
        meter: counts the bytes written.
    """
    tensors = {f"model.{name}": tensor for name, tensor in _trained_state(model).items()}
    document = {"optimizer": _flatten(optimizer.state_dict(), "optimizer", tensors), "progress": progress}
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(document)
    data = save(contiguous, metadata={"featherlight": text, "digest": _digest(text, contiguous)})
    meter.bytes_written += write_atomically(path, lambda file: file.write(data))


def load_save(path: Path, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Restores what `write_save` kept and returns the progress.

    Raises:
        ValueError: the file is cut off or altered, or belongs to another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text, digest = (file.metadata()[name] for name in ("featherlight", "digest"))
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from None
    if digest != _digest(text, tensors):
        raise ValueError(
            f"the save {path} is altered: its contents do not match its checksum. Go back to an older one."
        )
    document = json.loads(text)
    own = _trained_state(model)
    saved = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    if {n: (t.shape, t.dtype) for n, t in own.items()} != {n: (t.shape, t.dtype) for n, t in saved.items()}:
        raise ValueError(f"the save {path} is of another model or another choice of trained parameters.")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])
    optimizer.load_state_dict(_unflatten(document["optimizer"], tensors))
    return document["progress"]


def read_progress(path: Path) -> dict[str, Any]:
    """The progress that a save was made with, without its tensors.

    Raises:
        ValueError: the file is cut off or not a save.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["featherlight"])["progress"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"the save {path} cannot be read ({error}); it is cut off, altered or not a save.")


def _digest(document: str, tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256((document + weights_digest(tensors)).encode()).hexdigest()


def _trained_state(model: nn.Module) -> dict[str, Tensor]:
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return trained | dict(model.named_buffers())


def _flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, with its tensors moved to `tensors`; dicts become lists of pairs, since keys may be numbers."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {_TENSOR: path}
    if isinstance(value, dict):
        return {"$dict": [[key, _flatten(one, f"{path}.{key}", tensors)] for key, one in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_flatten(one, f"{path}.{number}", tensors) for number, one in enumerate(value)]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    return value


def _unflatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unflatten(one, tensors) for one in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _TUPLE in value:
        return tuple(_unflatten(one, tensors) for one in value[_TUPLE])
    return {key: _unflatten(one, tensors) for key, one in value["$dict"]}
