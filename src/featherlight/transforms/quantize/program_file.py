"""An integer program as one file: tensors as safetensors, and the operations as JSON in its header."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from featherlight.transforms.quantize.integer_ops import Grid, Op
from featherlight.transforms.quantize.integer_program import IntegerProgram

FILE_NAME = "integer_program.safetensors"
"""Where a run keeps its program, in its model directory."""

_VERSION = "1"
_KINDS = {kind.__name__: kind for kind in Op.__args__}


def write_program(path: Path, program: IntegerProgram) -> None:
    """Writes a program to a file, over one that is there."""
    tensors: dict[str, Tensor] = {}
    ops = [_packed(number, op, tensors) for number, op in enumerate(program.ops)]
    about = {"ops": ops, "grids": {name: dataclasses.asdict(grid) for name, grid in program.grids.items()}}
    save_file(tensors, path, metadata={"integer_program": _VERSION, "program": json.dumps(about)})


def read_program(path: Path) -> IntegerProgram:
    """The program in a file.

    Raises:
        ValueError: there is none, or it is damaged or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("integer_program") != _VERSION:
                raise ValueError(f"its version is {about.get('integer_program')}, and {_VERSION} can be read")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        content = json.loads(about["program"])
        return IntegerProgram(
            ops=tuple(_unpacked(number, one, tensors) for number, one in enumerate(content["ops"])),
            grids={name: Grid(**values) for name, values in content["grids"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as an integer program ({error}). Run what left it again.") from error


def _packed(number: int, op: Op, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """An operation as JSON; its tensors are put beside."""
    values: dict[str, Any] = {"op": type(op).__name__}
    for field in dataclasses.fields(op):
        value = getattr(op, field.name)
        if isinstance(value, Tensor):
            tensors[f"{number}.{field.name}"] = value.contiguous().cpu()
        else:
            values[field.name] = value
    return values


def _unpacked(number: int, values: dict[str, Any], tensors: dict[str, Tensor]) -> Op:
    """An operation of `integer_ops`, by its name."""
    kind = _KINDS[values.pop("op")]
    own = {name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{number}.")}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}, **own)
