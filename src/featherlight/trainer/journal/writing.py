"""Appends the steps of a run to its journal; each is on disk before it is applied."""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import FileIO
from itertools import count
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from featherlight.files import replace_file, write_atomically
from featherlight.meter import Meter
from featherlight.optim.zeroth_order import StepRecord, Target
from featherlight.trainer.digests import weights_digest
from featherlight.trainer.journal.reading import JournalContents
from featherlight.trainer.journal.record_format import (
    FORMAT,
    HEADER_LENGTH,
    MAGIC,
    TENSORS_LENGTH,
    Checksum,
    StateRecord,
    encode_record,
    encode_state,
    with_length,
)

STATE_EVERY = 200
"""Steps between the states that are noted."""


class JournalWriter:
    """Appends the steps of a run to a file and returns from each only when it is on disk.

    Args:
        path: of the file. With `resume` it must exist, else it must not.
        header: format-independent facts of the run: digests of base and data, config.
        fitted: tensors that the base model does not contain.
        meter: counts the bytes written.
        resume: what an existing journal says; it is cut behind its last intact record, and the rest is copied aside.
        state_every: steps between noted states; each takes a hash of the trained weights.

    Attributes:
        flushes: whether a step is on disk when `append` returns. A member of a team does without, since its host has all steps.
    """

    def __init__(
        self,
        path: Path,
        *,
        header: Mapping[str, Any],
        fitted: Mapping[str, Tensor],
        meter: Meter,
        resume: JournalContents | None = None,
        state_every: int = STATE_EVERY,
    ) -> None:
        self.path = path
        self.flushes = True
        self._header = dict(header)
        self._fitted = dict(fitted)
        self._meter = meter
        self._state_every = state_every
        self._file: FileIO | None = None
        self._hash = hashlib.sha256()
        self._checksum = Checksum()
        self._noted = 0
        self._targets: Sequence[Target] = ()
        if resume is not None:
            self._file = self._go_on(resume)

    def append(self, record: StepRecord, targets: Sequence[Target]) -> None:
        """Writes one step and flushes it to disk; the first one brings the header with it.

        Raises:
            OSError: the disk refused. The step must not be applied, and the run must stop.
        """
        self._targets = targets
        if self._file is None:
            self._file = self._begin(targets)
        elif record.step >= self._noted + self._state_every:
            self.note_state(record.step)
        self._write(self._file, encode_record(record))

    def note_state(self, steps: int) -> None:
        """Notes what the weights are now, after so many steps, unless that was done.

        Raises:
            OSError: the disk refused.
        """
        if self._file is None or steps == self._noted or not self._targets:
            return
        digest = weights_digest({target.name: target.parameter for target in self._targets})
        state = StateRecord(steps=steps, file=self._hash.digest(), weights=bytes.fromhex(digest))
        self._write(self._file, encode_state(state))
        self._noted = steps

    def close(self) -> None:
        """Closes the file, with every record on disk."""
        if self._file is not None:
            if not self.flushes:
                os.fsync(self._file.fileno())
            self._file.close()

    def _begin(self, targets: Sequence[Target]) -> FileIO:
        header = {"format": FORMAT, **self._header, "parameters": [_describe(target) for target in targets]}
        blob = save({name: tensor.detach().contiguous() for name, tensor in self._fitted.items()})
        parts = (with_length(json.dumps(header).encode(), HEADER_LENGTH), with_length(blob, TENSORS_LENGTH))
        data = MAGIC + b"".join(self._checksum.seal(part) for part in parts)
        if self.path.exists():
            raise ValueError(
                f"{self.path} exists already; a journal is never overwritten. Resume it, or give another path."
            )
        self._meter.bytes_written += write_atomically(self.path, lambda file: file.write(data))
        self._hash.update(data)
        file = self.path.open("r+b", buffering=0)
        file.seek(0, os.SEEK_END)
        return file

    def _go_on(self, contents: JournalContents) -> FileIO:
        if self.path.stat().st_size > contents.intact_bytes:
            self._keep_aside()
        file = self.path.open("r+b", buffering=0)
        file.truncate(contents.intact_bytes)
        self._hash.update(file.readall())
        self._checksum = Checksum(contents.checksum)
        self._noted = contents.states[-1].steps if contents.states else 0
        return file

    def _keep_aside(self) -> None:
        """Copies the journal as it is; no earlier copy is written over."""
        names = (self.path.with_name(f"{self.path.name}.damaged{number or ''}") for number in count())
        path = next(path for path in names if not path.exists())
        replace_file(path, lambda beside: shutil.copyfile(self.path, beside))

    def _write(self, file: FileIO, part: bytes) -> None:
        """Writes all of a part with its checksum or, as far as the disk lets it, nothing."""
        start, ahead = file.tell(), self._checksum.copy()
        data = ahead.seal(part)
        try:
            written = file.write(data)
            if written < len(data):
                raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes could be written", str(self.path))
            if self.flushes:
                (os.fsync if sys.platform == "darwin" else os.fdatasync)(file.fileno())
        except OSError:
            with suppress(OSError):
                file.seek(start)
                file.truncate()
            raise
        self._checksum = ahead
        self._hash.update(data)
        self._meter.bytes_written += len(data)


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
