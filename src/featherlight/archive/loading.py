"""What is done with an archive: into a module, or into a file that others read."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn

from featherlight.archive.elements import DTYPES, bits_of, blocks
from featherlight.archive.reading import Archive
from featherlight.files import write_atomically

_SAFETENSORS = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "complex64": "C64",
}


def load_into(archive: Archive, module: nn.Module, *, strict: bool = True) -> None:
    """Copies the tensors into a module's parameters and buffers, one at a time.

    Args:
        archive: to read.
        module: with the same names and shapes; dtypes are cast to the module's own, devices as well.
        strict: refuses names that only one of them has.

    Raises:
        ValueError: names or shapes differ, or the file is damaged. If names or shapes differ, the module is as it was.

    Memory: the largest tensor and 1 MiB.
    """
    own = module.state_dict(keep_vars=True)
    missing, spare = sorted(own.keys() - archive.entries.keys()), sorted(archive.entries.keys() - own.keys())
    if strict and (missing or spare):
        raise ValueError(
            f"{archive.path} does not fit the module: it lacks {missing[:5]} and has {spare[:5]} beside. Build the module that "
            "was written, or pass `strict=False`."
        )
    common = [name for name in archive.entries if name in own]
    for name in common:
        told, shape = archive.entries[name].shape, tuple(own[name].shape)
        if told != shape:
            raise ValueError(
                f"{archive.path} has {name} of shape {told}, and the module's is {shape}. Build the module that was written."
            )
    with torch.no_grad():
        for name in common:
            own[name].copy_(archive.read(name))


def expand(
    archive: Archive,
    path: Path,
    *,
    names: Mapping[str, str] | None = None,
    track: Callable[[str], object] | None = None,
) -> int:
    """Writes tensors as a safetensors file, one at a time; returns its bytes.

    Tensors that were stored once are written as often as they have names. For another format, such as dense ONNX, load a
    module by `load_into` and hand it to the exporter.

    Args:
        archive: to read.
        path: of the file, which is written beside, flushed and renamed.
        names: of the tensors to write, with the names that they get; None writes all under their own.
        track: is told the name of each tensor before it is decoded.

    Raises:
        ValueError: a dtype that the format lacks, `names` that are not there or are given twice, or a damaged file.

    Memory: the largest tensor and 1 MiB.
    """
    table: dict[str, object] = {}
    if archive.metadata:
        table["__metadata__"] = dict(archive.metadata)
    at = 0
    names = {name: name for name in archive.entries} if names is None else names
    if unknown := sorted(names.keys() - archive.entries.keys()):
        raise ValueError(
            f"{archive.path} has no tensor {unknown[0]!r}; it has {', '.join(list(archive.entries)[:20])}."
        )
    if len({*names.values(), "__metadata__"}) <= len(names):
        raise ValueError("`names` must give each tensor a name of its own, other than __metadata__.")
    for name, given in names.items():
        entry = archive.entries[name]
        if entry.dtype not in _SAFETENSORS:
            raise ValueError(f"{name} is {entry.dtype}, which safetensors cannot hold. Read it with `Archive` instead.")
        size = entry.decoded_bytes
        table[given] = {"dtype": _SAFETENSORS[entry.dtype], "shape": list(entry.shape), "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(table, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)

    def fill(file: BinaryIO) -> None:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in names:
            if track is not None:
                track(name)
            tensor = archive.read(name)
            assert tensor.dtype is DTYPES[archive.entries[name].dtype]
            for block in blocks(bits_of(tensor)):
                file.write(block.data)

    return write_atomically(path, fill)
