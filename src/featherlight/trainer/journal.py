"""The journal of a forward-only run: with the base weights it is the trained model.

Layout, little-endian throughout; every part is followed by the CRC32C of its bytes, lengths included:

    b"FLJOURN1"
    u32 length, JSON header                     format, digests of base and data, config, parameters
    u64 length, safetensors                     what the base does not contain: a fresh head, adapters
    u16 length, record                          once a step:
        u8 kind, u8 groups G, u32 step, u64 seed, f32 scale, u16 K, G x (f32 rate, f32 decay), K x i16 coefficient
        kind 1: nothing more; kind 2: what of earlier steps is applied once more, each u32 step, G x f32 rate

A step costs 26 + 8 G + 2 K bytes, so 34 + 2 K with one parameter group, and 4 + 4 G for each earlier step. A reader
stops at the first part that is cut off or whose checksum does not hold, and at a record that is not the next step.
"""

import errno
import hashlib
import json
import os
import shutil
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from featherlight.functional import QuantizedTensor
from featherlight.meter import Meter
from featherlight.optim.zeroth_order import Echo, StepRecord, Target
from featherlight.trainer.files import write_atomically

MAGIC = b"FLJOURN1"
_RECORD = struct.Struct("<BBIQfH")
_STEP_KIND, _ECHOING_KIND = 1, 2


@dataclass(frozen=True, kw_only=True)
class JournalContents:
    """What a journal says.

    Attributes:
        header: format version, digests, config, and the trained parameters.
        fitted: tensors by name that the base model does not contain, as they were before the first step.
        records: the steps.
        intact_bytes: length of the part that was read; what follows is damaged.
        damage: a sentence about what follows, or None.
    """

    header: dict[str, Any]
    fitted: dict[str, Tensor]
    records: list[StepRecord]
    intact_bytes: int
    damage: str | None

    def targets(self, model: nn.Module) -> list[Target]:
        """The journal's parameters in a model.

        Raises:
            ValueError: the model lacks one, or has it in another shape or dtype.
        """
        own = dict(model.named_parameters())
        targets = []
        for entry in self.header["parameters"]:
            name = entry["name"]
            seen = None if name not in own else [list(own[name].shape), str(own[name].dtype)]
            if seen != [entry["shape"], entry["dtype"]]:
                raise ValueError(
                    f"the journal trains `{name}` of shape {entry['shape']} and {entry['dtype']}, but the model has "
                    f"{'no such parameter' if seen is None else seen}. Replay on the model the journal was made with."
                )
            targets.append(
                Target(
                    name=name,
                    parameter=own[name],
                    index=entry["index"],
                    group=entry["group"],
                    shared=entry["shared"],
                    right_period=entry.get("right_period", 1),
                    beta=entry.get("beta", 0.0),
                )
            )
        return targets


class JournalWriter:
    """Appends the steps of a run to a file and returns from each only when it is on disk.

    Args:
        path: of the file. With `resume_at` it must exist, else it must not.
        header: format-independent facts of the run: digests of base and data, config.
        fitted: tensors that the base model does not contain.
        meter: counts the bytes written.
        resume_at: length to which an existing journal is cut before the next record; the rest is copied aside.
    """

    def __init__(
        self,
        path: Path,
        *,
        header: Mapping[str, Any],
        fitted: Mapping[str, Tensor],
        meter: Meter,
        resume_at: int | None = None,
    ) -> None:
        self.path = path
        self._header = dict(header)
        self._fitted = dict(fitted)
        self._meter = meter
        self._file: FileIO | None = None
        if resume_at is not None:
            if path.stat().st_size > resume_at:
                shutil.copyfile(path, path.with_name(path.name + ".damaged"))
            self._file = path.open("r+b", buffering=0)
            self._file.truncate(resume_at)
            self._file.seek(resume_at)

    def append(self, record: StepRecord, targets: Sequence[Target]) -> None:
        """Writes one step and flushes it to disk; the first one brings the header with it.

        Raises:
            OSError: the disk refused. The step must not be applied, and the run must stop.
        """
        if self._file is None:
            self._file = self._begin(targets)
        self._write(self._file, encode_record(record))

    def close(self) -> None:
        """Closes the file; every record is on disk already."""
        if self._file is not None:
            self._file.close()

    def _begin(self, targets: Sequence[Target]) -> FileIO:
        header = {"format": 1, **self._header, "parameters": [_describe(target) for target in targets]}
        text = json.dumps(header).encode()
        blob = save({name: tensor.detach().contiguous() for name, tensor in self._fitted.items()})
        parts = _checked(struct.pack("<I", len(text)) + text) + _checked(struct.pack("<Q", len(blob)) + blob)
        if self.path.exists():
            raise ValueError(
                f"{self.path} exists already; a journal is never overwritten. Resume it, or give another path."
            )
        self._meter.bytes_written += write_atomically(self.path, lambda file: file.write(MAGIC + parts))
        file = self.path.open("r+b", buffering=0)
        file.seek(0, os.SEEK_END)
        return file

    def _write(self, file: FileIO, data: bytes) -> None:
        """Writes all of `data` or, as far as the disk lets it, nothing."""
        start = file.tell()
        try:
            written = file.write(data)
            if written < len(data):
                raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes could be written", str(self.path))
            (os.fsync if sys.platform == "darwin" else os.fdatasync)(file.fileno())
        except OSError:
            with suppress(OSError):
                file.seek(start)
                file.truncate()
            raise
        self._meter.bytes_written += len(data)


def encode_record(record: StepRecord) -> bytes:
    """The bytes of one step, length and checksum included."""
    rates = [value for pair in zip(record.rates, record.decays, strict=True) for value in pair]
    coefficients = record.coefficients.numpy().astype("<i2").tobytes()
    kind = _ECHOING_KIND if record.echoes else _STEP_KIND
    head = _RECORD.pack(kind, len(record.rates), record.step, record.seed, record.scale, len(record.coefficients))
    echoes = b"".join(struct.pack(f"<I{len(echo.rates)}f", echo.step, *echo.rates) for echo in record.echoes)
    body = head + struct.pack(f"<{len(rates)}f", *rates) + coefficients + echoes
    return _checked(struct.pack("<H", len(body)) + body)


def read_journal(path: Path) -> JournalContents:
    """Reads a journal up to its first damaged part.

    Raises:
        ValueError: not a journal, of a later format, or damaged before its first record.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"no journal at {path}. Pass the file `journal` of a forward-only run.") from None
    if not data.startswith(MAGIC):
        raise ValueError(f"{path} is not a journal: it starts with {data[:8]!r}, not {MAGIC!r}.")
    text, position = _part(data, len(MAGIC), "<I")
    blob, position = _part(data, position, "<Q") if text is not None else (None, position)
    if text is None or blob is None:
        raise ValueError(f"the header of {path} is cut off or altered, so nothing of it can be replayed.")
    header = json.loads(text)
    if header["format"] != 1:
        raise ValueError(
            f"{path} has journal format {header['format']}; this version reads format 1. Update featherlight."
        )
    records: list[StepRecord] = []
    damage = None
    while position < len(data):
        body, after = _part(data, position, "<H")
        record = None if body is None else _decode_record(body)
        if record is None or record.step != len(records):
            damage = (
                f"{path} is damaged after step {len(records)}: {len(data) - position} bytes at offset {position} are cut "
                "off, altered or out of order; everything before them is intact."
            )
            break
        records.append(record)
        position = after
    return JournalContents(header=header, fitted=load(blob), records=records, intact_bytes=position, damage=damage)


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, in the order of their names; quantized ones as floats."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for part in _parts(tensor):
            digest.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor, or blocks of the floats that a quantized one stands for."""
    if isinstance(tensor, QuantizedTensor):
        yield from (tensor.exact_rows(first, count) for first, count in tensor.blocks())
    else:
        yield tensor


def _describe(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "index": target.index,
        "group": target.group,
        "shared": target.shared,
        "right_period": target.right_period,
        "beta": target.beta,
        "shape": list(target.parameter.shape),
        "dtype": str(target.parameter.dtype),
    }


def _checked(data: bytes) -> bytes:
    return data + struct.pack("<I", google_crc32c.value(data))


def _part(data: bytes, start: int, length_format: str) -> tuple[bytes | None, int]:
    """The part that starts at `start` and where the next one does; None if it is cut off or its checksum fails."""
    body = start + struct.calcsize(length_format)
    if body > len(data):
        return None, start
    end = body + struct.unpack_from(length_format, data, start)[0]
    if end + 4 > len(data) or struct.unpack_from("<I", data, end)[0] != google_crc32c.value(data[start:end]):
        return None, start
    return data[body:end], end + 4


def _decode_record(body: bytes) -> StepRecord:
    kind, groups, step, seed, scale, count = _RECORD.unpack_from(body)
    if kind not in (_STEP_KIND, _ECHOING_KIND):
        raise ValueError(
            f"the journal has a record of kind {kind}, which this version does not know. Update featherlight."
        )
    pairs = struct.unpack_from(f"<{2 * groups}f", body, _RECORD.size)
    coefficients = np.frombuffer(body, dtype="<i2", count=count, offset=_RECORD.size + 8 * groups)
    echoes = struct.iter_unpack(f"<I{groups}f", body[_RECORD.size + 8 * groups + 2 * count :])
    return StepRecord(
        step=step,
        seed=seed,
        scale=scale,
        rates=pairs[::2],
        decays=pairs[1::2],
        coefficients=torch.from_numpy(coefficients.astype(np.int64)),
        echoes=tuple(Echo(step=number, rates=tuple(again)) for number, *again in echoes),
    )
