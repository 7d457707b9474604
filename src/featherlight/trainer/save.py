"""Saves: weights and optimizer state of methods that have no journal, as safetensors and JSON, never a pickle."""

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from featherlight.files import replace_file
from featherlight.meter import Meter
from featherlight.trainer.digests import weights_digest
from featherlight.trainer.parallel import spread_like, whole

_TENSOR = "$tensor"
_TUPLE = "$tuple"


def write_save(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    progress: dict[str, Any],
    *,
    meter: Meter,
    everything: bool = False,
    writes: bool = True,
) -> None:
    """Writes trained weights, optimizer state and progress as one file; a kill in between leaves the previous one.

    Tensors that are spread over processes are written whole, so that any number of processes can take the save up.

    Args:
        path: of the file.
        model: all buffers are kept, and the parameters that require a gradient.
        optimizer: its `state_dict` may hold tensors, numbers, strings, lists, tuples and dicts.
        progress: numbers and strings by name.
        meter: counts the bytes written.
        everything: keeps all parameters, also those that require no gradient now but did in an earlier stage.
        writes: False only helps to gather spread tensors, which takes all processes, for the one that writes.
    """
    tensors = {f"model.{name}": tensor for name, tensor in _state(model, everything).items()}
    document = {
        "everything": everything,
        "optimizer": _flatten(optimizer.state_dict(), "optimizer", tensors),
        "progress": progress,
    }
    contiguous = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if writes:
            contiguous[name] = full.cpu().contiguous()
    if not writes:
        return
    text = json.dumps(document)
    metadata = {"featherlight": text, "digest": _digest(text, contiguous)}
    meter.bytes_written += replace_file(path, lambda beside: _serialize(_apart(contiguous), beside, metadata))


def saved_bytes(model: nn.Module, optimizer: Optimizer, *, everything: bool = False) -> int:
    """About how many bytes a save takes."""
    tensors = dict(_state(model, everything))
    _flatten(optimizer.state_dict(), "optimizer", tensors)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


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
    own = _state(model, document["everything"])
    saved = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    if {n: (t.shape, t.dtype) for n, t in own.items()} != {n: (t.shape, t.dtype) for n, t in saved.items()}:
        raise ValueError(f"the save {path} is of another model or another choice of trained parameters.")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(spread_like(tensor, saved[name]))
    model.load_state_dict(own, strict=False)  # for modules that keep something beside their tensors
    optimizer.load_state_dict(_spread(optimizer, _unflatten(document["optimizer"], tensors)))
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


def _serialize(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes without a second copy of the tensors in memory."""
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from None


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, those copied that share memory with an earlier one, since a file holds each by itself."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        where = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if where in seen else tensor
        seen.add(where)
    return apart


def _digest(document: str, tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256((document + weights_digest(tensors)).encode()).hexdigest()


def _state(model: nn.Module, everything: bool) -> dict[str, Tensor]:
    kept = {name: parameter for name, parameter in model.named_parameters() if everything or parameter.requires_grad}
    return kept | dict(model.named_buffers())


def _spread(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A whole optimizer state, with what has the shape of a parameter spread and laid out as the parameter is.

    Fused optimizers walk through memory, and pair a parameter with the wrong entries of a state that is laid out otherwise.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, of_parameter in state["state"].items():
        for name, value in of_parameter.items():
            if isinstance(value, Tensor) and value.shape == parameters[number].shape:
                of_parameter[name] = spread_like(parameters[number], _laid_out(value, parameters[number]))
    return state


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor with the strides of another of its shape, where that one is dense but not in the usual order."""
    from torch.distributed.tensor import DTensor  # takes long to import

    if like.is_contiguous() or isinstance(like, DTensor):
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


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
