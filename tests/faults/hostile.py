"""Files that somebody made to do harm, for every parser of the package, and a child that reads them under an audit hook."""

import codecs
import io
import json
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save

from featherlight.data import load_npz, read_table, read_wav
from featherlight.data.image_files import load_folder
from featherlight.recipes.catalogue import from_file
from featherlight.report import read_run
from featherlight.trainer import check_manifest, read_journal, read_journal_or_share, read_progress
from featherlight.trainer.journal.record_format import HEADER_LENGTH, MAGIC, TENSORS_LENGTH, Checksum, with_length

FORBIDDEN = (
    "import",
    "exec",
    "os.system",
    "os.exec",
    "os.fork",
    "subprocess.Popen",
    "socket.__new__",
    "pickle.find_class",
)
"""What a reader of data has no need of, once everything it needs is imported."""

DEEP = "[" * 100_000
HUGE = 1 << 62


class Trap:
    """Unpickling it would run a command."""

    def __reduce__(self) -> Any:
        return os.system, ("echo trapped",)


def _journal(header: bytes, tensors: bytes = b"") -> bytes:
    checksum = Checksum()
    parts = (with_length(header, HEADER_LENGTH), with_length(tensors or save({}), TENSORS_LENGTH))
    return MAGIC + b"".join(checksum.seal(part) for part in parts)


def _tensors(header: Any, body: bytes = b"\0" * 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _zip(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


def _npy(shape: str, data: bytes = b"") -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def _parquet(change: Callable[[bytearray], None]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"], "label": [0, 1]}), buffer)
    data = bytearray(buffer.getvalue())
    change(data)
    return bytes(data)


def _png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = struct.pack(">II", *size)
    return bytes(data)


def _flip(place: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[place] ^= 0xFF

    return change


_ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
_TENSORS: Mapping[str, bytes] = {
    "huge header": struct.pack("<Q", HUGE) + b"{}",
    "header beyond the end": struct.pack("<Q", 1000) + b"{}",
    "no JSON": _tensors(b"not json"),
    "deep JSON": _tensors(DEEP.encode()),
    "huge shape": _tensors({"a": {**_ENTRY, "shape": [HUGE, HUGE]}}),
    "overlapping": _tensors({"a": _ENTRY, "b": _ENTRY}),
    "negative offsets": _tensors({"a": {**_ENTRY, "data_offsets": [-8, 0]}}),
    "offsets beyond": _tensors({"a": {**_ENTRY, "data_offsets": [0, HUGE]}}),
    "unknown dtype": _tensors({"a": {**_ENTRY, "dtype": "OBJECT"}}),
    "a pickle": pickle.dumps(Trap()),
    "empty": b"",
}
_JSONS: Mapping[str, bytes] = {
    "deep": DEEP.encode(),
    "not text": b"\xff\xfe\x00\xd8" * 9,
    "a huge number": b'{"version": 1' + b"0" * 5000 + b"}",
    "of another kind": b"[1, 2]",
    "null": b"null",
    "empty": b"",
}
_ENTRIES = {
    "leads outside": {"../../etc/passwd": {"bytes": 1, "sha256": "0"}},
    "absolute": {"/etc/passwd": {"bytes": 1, "sha256": "0"}},
    "a list": [1],
    "no digest": {"a": {"bytes": 1}},
    "text for a size": {"a": {"bytes": "1", "sha256": "0"}},
}
_MANIFESTS = dict(_JSONS) | {
    name: json.dumps({"version": 1, "files": files}).encode() for name, files in _ENTRIES.items()
}
_JOURNALS: Mapping[str, bytes] = {
    "a length of almost all there is": MAGIC + b"\xff\xff\xff\xff" + b"{}",
    "a header that is a list": _journal(b"[]"),
    "a header without a format": _journal(b"{}"),
    "a header that is no JSON": _journal(b"\xff"),
    "a deep header": _journal(DEEP.encode()),
    "tensors that are none": _journal(b'{"format": 2}', b"\x80\x04."),
    "tensors of a huge shape": _journal(b'{"format": 2}', _TENSORS["huge shape"]),
    "a pickle": pickle.dumps(Trap()),
}
_TABLES: Mapping[str, bytes] = {
    "a.jsonl": DEEP.encode() + b"\n",
    "b.jsonl": b'{"a": 1}\n{"a": ' + b"9" * 6000 + b"}\n",
    "c.json": b'[{"a": 1}, ' + DEEP.encode(),
    "d.csv": b"a,b\n" + b'"' * 10_001,
    "e.csv": b"\x00" * 300,
    "f.csv": b"a," * 7_000 + b"\n" + b"1," * 7_000,
    "g.parquet": _parquet(_flip(-5)),
    "h.parquet": _parquet(_flip(-8)),
    "i.parquet": _parquet(lambda data: data.__delitem__(slice(20, 60))),
    "j.parquet": b"PAR1" + pickle.dumps(Trap()) + b"PAR1",
    "k.csv": pickle.dumps(Trap()),
    "l.jsonl": b"\xff\xfe\x00\xd8" * 9,
}
_ARRAYS: Mapping[str, bytes] = {
    "a shape of 2 to the 62": _zip("train_images.npy", _npy(f"({HUGE},)")),
    "a shape that is code": _zip("train_images.npy", _npy("(__import__('os').system('echo trapped'),)")),
    "a negative shape": _zip("train_images.npy", _npy("(-5,)")),
    "objects": _zip("train_images.npy", b""),
    "a name that leads outside": _zip("../train_images.npy", _npy("(1,)", b"x")),
    "no zip": pickle.dumps(Trap()),
}
_CONFIGS: Mapping[str, bytes] = {
    "code for a recipe": b'recipe = "os:system"',
    "a module that is not there": b'recipe = "nowhere.at.all:make"',
    "deep": b"a = " + b"[" * 5000,
    "a later version": b"version = 99",
    "not text": b"\xff\xff",
}


def _objects() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, train_images=np.array([Trap()], dtype=object))
    return buffer.getvalue()


def _in_folder(read: Callable[[Path], object], name: str) -> Callable[[Path], object]:
    def write_and_read(path: Path) -> object:
        folder = path.with_name(f"{path.name}-folder")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(path.read_bytes())
        return read(folder)

    return write_and_read


def corpus() -> dict[str, tuple[Callable[[Path], object], bytes, str]]:
    """By name: what reads it, the bytes, and what the file is called."""
    run = Path("metrics.jsonl")
    kinds: list[tuple[str, Mapping[str, bytes], Callable[[Path], object], str]] = [
        ("journal", _JOURNALS, read_journal, "journal"),
        ("share", {"a bomb": _zip("journal", bytes(1 << 24)), "cut": _zip("journal", b"x")[:-30]}, read_journal_or_share, "x"),
        ("save", _TENSORS, read_progress, "save"),
        ("manifest", _MANIFESTS, _in_folder(check_manifest, "manifest.json"), "m"),
        ("metrics", _JSONS, _in_folder(read_run, str(run)), "r"),
        ("summary", _JSONS, _run_with("summary.json"), "s"),
        ("sections", _JSONS, _run_with("sections.json"), "s"),
        ("config", _CONFIGS, from_file, "config.toml"),
        ("arrays", {**_ARRAYS, "objects": _objects()}, load_npz, "a.npz"),
        ("image", {"a bomb": _png((60_000, 60_000)), "cut": _png((9, 9))[:40]}, _in_folder(load_folder, "train/a/1.png"), "i"),
        ("sound", {"huge": b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0" + b"\xff" * 16, "cut": b"RIFF"}, read_wav, "a.wav"),
    ]  # fmt: skip
    found = {f"{kind}: {name}": (read, data, file) for kind, files, read, file in kinds for name, data in files.items()}
    return found | {f"table: {name}": (read_table, data, name) for name, data in _TABLES.items()}


def _run_with(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / "metrics.jsonl").touch()
        return read_run(folder)

    return _in_folder(read, name)


def read_watched(read: Callable[[Path], object], path: Path) -> None:
    """In a child: reads a file; what a data file must not bring about ends the process with code 3, a sentence with 0."""
    _warm_up(read, path)
    sys.addaudithook(_refuse)
    with suppress(ValueError, OSError):
        read(path)


def _warm_up(read: Callable[[Path], object], path: Path) -> None:
    """Imports what a reader imports late, by a sound or an empty file; torch's own late imports too."""
    torch.zeros(1).numpy()
    codecs.lookup("cp437")
    empty = path.with_name(f"warm-{path.name}")
    empty.write_bytes(b"")
    with suppress(ValueError, OSError):
        read(empty)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in FORBIDDEN and not (event == "import" and arguments and arguments[0] in sys.modules):
        print(f"{event}: {str(arguments)[:200]}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(3)
