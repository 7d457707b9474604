"""Reads a journal up to its first damaged part, and checks a replay against the states in it."""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from featherlight.optim.zeroth_order import StepRecord, Target
from featherlight.trainer.digests import weights_digest
from featherlight.trainer.journal.record_format import (
    FORMAT,
    HEADER_LENGTH,
    MAGIC,
    RECORD_LENGTH,
    TENSORS_LENGTH,
    Checksum,
    StateRecord,
    decode,
)

_RUN = 100
"""Steps that are replayed at once."""


@dataclass(frozen=True, kw_only=True)
class JournalContents:
    """What a journal says.

    Attributes:
        path: where it lies.
        header: format version, digests, config, and the trained parameters.
        fitted: tensors by name that the base model does not contain, as they were before the first step.
        records: the steps.
        states: where the run stood at times, in order.
        intact_bytes: length of the part that was read; what follows is damaged.
        checksum: at the end of that part.
        checksums: behind each step; a step whose checksum is the same has the same steps before it.
        damage: a sentence about what follows, or None.
    """

    path: Path
    header: dict[str, Any]
    fitted: dict[str, Tensor]
    records: list[StepRecord]
    states: list[StateRecord]
    intact_bytes: int
    checksum: int
    checksums: list[int]
    damage: str | None

    def last_step(self, asked: int | None) -> int:
        """Up to which step a replay goes: as asked, or all; raises ValueError if there are not so many."""
        stop = len(self.records) if asked is None else asked
        if not 0 <= stop <= len(self.records):
            raise ValueError(f"`steps` is {stop}, which is not among the {len(self.records)} steps of {self.path}.")
        return stop

    def digest_at(self, steps: int) -> str | None:
        """SHA-256 of the trained parameters after so many steps, hex, if it was noted there."""
        return next((state.weights.hex() for state in self.states if state.steps == steps), None)

    def ends_of_runs(self, start: int, stop: int) -> Sequence[int]:
        """Where a replay pauses: at the states, and every so many steps."""
        pauses = {state.steps for state in self.states if start < state.steps < stop}
        return sorted({*pauses, *range(start + _RUN, stop, _RUN), stop} - {start})

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


def read_journal(path: Path) -> JournalContents:
    """Reads a journal up to its first damaged part.

    Raises:
        ValueError: not a journal, of another format, or damaged before its first record.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"no journal at {path}. Pass the file `journal` of a forward-only run.") from None
    return parse_journal(data, path)


def parse_journal(data: bytes, path: Path) -> JournalContents:
    """As `read_journal`, of bytes that are read already; `path` is for the sentences."""
    if not data.startswith(MAGIC):
        raise _not_a_journal(data, path)
    checksum = Checksum()
    text, position = _part(data, len(MAGIC), HEADER_LENGTH, checksum)
    blob, position = _part(data, position, TENSORS_LENGTH, checksum) if text is not None else (None, position)
    if text is None or blob is None:
        raise ValueError(f"the header of {path} is cut off or altered, so nothing of it can be replayed.")
    header, fitted = _header(text, path), _fitted(blob, path)
    records: list[StepRecord] = []
    states: list[StateRecord] = []
    checksums: list[int] = []
    file, hashed = hashlib.sha256(), 0
    damage = None
    while position < len(data):
        ahead = checksum.copy()
        body, after = _part(data, position, RECORD_LENGTH, ahead)
        part = None if body is None else decode(body)
        if isinstance(part, StateRecord):
            file.update(memoryview(data)[hashed:position])
            hashed = position
        if not _follows(part, len(records), file):
            damage = (
                f"{path} is damaged after step {len(records)}: {len(data) - position} bytes at offset {position} are cut "
                "off, altered or out of order; everything before them is intact."
            )
            break
        position, checksum = after, ahead
        if isinstance(part, StateRecord):
            states.append(part)
        elif part is not None:
            records.append(part)
            checksums.append(checksum.value)
    return JournalContents(
        path=path,
        header=header,
        fitted=fitted,
        records=records,
        states=states,
        intact_bytes=position,
        checksum=checksum.value,
        checksums=checksums,
        damage=damage,
    )


def records_with_checks(
    contents: JournalContents, parameters: Mapping[str, Tensor], *, start: int = 0, stop: int | None = None
) -> Iterator[Sequence[StepRecord]]:
    """The steps of a journal in runs, each to be replayed before the next is asked for.

    At the end of each run that the journal noted a state of, the weights are compared with it.

    Args:
        contents: of the journal.
        parameters: the trained ones by name, on which the caller replays.
        start: steps that are in them already.
        stop: replays no further; None takes all steps.

    Raises:
        ValueError: the replayed weights are not those the journal noted.
    """
    stop = len(contents.records) if stop is None else stop
    noted = {state.steps: state for state in contents.states}
    done = start
    for end in contents.ends_of_runs(start, stop):
        yield contents.records[done:end]
        done = end
        if end in noted and weights_digest(parameters) != noted[end].weights.hex():
            raise ValueError(
                f"the weights after a replay to step {end} of {contents.path} are not those the run had there. The journal "
                "is sound, so the base weights were altered, or this version of featherlight or torch computes otherwise. "
                "Replay where the run was made."
            )


def _follows(part: StepRecord | StateRecord | None, steps: int, file: Any) -> bool:
    """Whether a part is what comes next after so many steps."""
    if isinstance(part, StateRecord):
        return part.steps == steps and part.file == file.digest()
    return part is not None and part.step == steps


def _part(data: bytes, start: int, length_format: str, checksum: Checksum) -> tuple[bytes | None, int]:
    """The part that starts at `start` and where the next one does; None if it is cut off or its checksum fails."""
    body = start + struct.calcsize(length_format)
    if body > len(data):
        return None, start
    end = body + struct.unpack_from(length_format, data, start)[0]
    if end + 4 > len(data):
        return None, start
    if checksum.seal(data[start:end])[-4:] != data[end : end + 4]:
        return None, start
    return data[body:end], end + 4


def _header(text: bytes, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(text)
        version, _ = header["format"], header.get("parameters")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"the header of {path} is not that of a journal, so nothing of it can be replayed.") from None
    if version != FORMAT:
        raise ValueError(
            f"{path} has journal format {version}; this version reads format {FORMAT}. Update featherlight."
        )
    return header


def _fitted(blob: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return load(blob)
    except SafetensorError as error:
        raise ValueError(f"the tensors in the header of {path} cannot be read: {error}.") from None


def _not_a_journal(data: bytes, path: Path) -> ValueError:
    if data[:7] == MAGIC[:7]:
        return ValueError(f"{path} is a journal of another format ({data[:8]!r}); this version reads {MAGIC!r}.")
    return ValueError(f"{path} is not a journal: it starts with {data[:8]!r}, not {MAGIC!r}.")
