"""The bytes of a journal's parts. Little-endian throughout.

    b"FLJOURN2"
    u32 length, JSON header                     format, digests of base and data, config, parameters
    u64 length, safetensors                     what the base does not contain: a fresh head, adapters
    u16 length, record                          again and again; its first byte is its kind

    kind 1, a step:
        u8 kind, u8 groups G, u32 step, u16 world, u32 epoch, u64 seed, f32 scale, u16 K,
        G x (f32 rate, f32 decay), K x i16 coefficient
    kind 2, a step that applies earlier ones once more: as kind 1, then each u32 step, G x f32 rate
    kind 3, a state: u8 kind, u32 steps done, 32 bytes SHA-256 of the file before this part,
        32 bytes SHA-256 of the trained weights after so many steps

Behind each part stand 4 bytes of checksum: the CRC32C of everything in the file before them, earlier checksums left out. So a
part that is altered, doubled, left out, out of order or from another journal does not fit where it stands.
"""

import struct
from dataclasses import dataclass
from typing import Self

import google_crc32c
import numpy as np
import torch

from featherlight.optim.zeroth_order import Echo, StepRecord

MAGIC = b"FLJOURN2"
FORMAT = 2
HEADER_LENGTH, TENSORS_LENGTH, RECORD_LENGTH = "<I", "<Q", "<H"

_STEP = struct.Struct("<BBIHIQfH")
_STATE = struct.Struct("<BI32s32s")
_STEP_KIND, _ECHOING_KIND, _STATE_KIND = 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class StateRecord:
    """Where a run stood: what a reader compares its own replay with.

    Attributes:
        steps: done so far.
        file: SHA-256 of the journal up to here, 32 bytes.
        weights: SHA-256 of the trained parameters, 32 bytes, as `weights_digest` makes it of them by name.
    """

    steps: int
    file: bytes
    weights: bytes


class Checksum:
    """The CRC32C of all parts so far.

    Args:
        value: that of an earlier part to go on from; None starts a file.
    """

    def __init__(self, value: int | None = None) -> None:
        self.value = google_crc32c.value(MAGIC) if value is None else value

    def after(self, data: bytes) -> int:
        """What stands behind a part; nothing is changed."""
        return google_crc32c.extend(self.value, data)

    def seal(self, data: bytes) -> bytes:
        """A part with its checksum behind it; the next one goes on from there."""
        self.value = self.after(data)
        return data + struct.pack("<I", self.value)

    def copy(self) -> Self:
        """One that goes on by itself."""
        return type(self)(self.value)


def with_length(data: bytes, length_format: str) -> bytes:
    """A part without its checksum."""
    return struct.pack(length_format, len(data)) + data


def encode_record(record: StepRecord) -> bytes:
    """The bytes of one step, with its length and without the checksum: 36 + 2 K with one parameter group."""
    rates = [value for pair in zip(record.rates, record.decays, strict=True) for value in pair]
    coefficients = record.coefficients.numpy().astype("<i2").tobytes()
    kind = _ECHOING_KIND if record.echoes else _STEP_KIND
    head = _STEP.pack(
        kind,
        len(record.rates),
        record.step,
        record.world,
        record.epoch,
        record.seed,
        record.scale,
        len(record.coefficients),
    )
    echoes = b"".join(struct.pack(f"<I{len(echo.rates)}f", echo.step, *echo.rates) for echo in record.echoes)
    return with_length(head + struct.pack(f"<{len(rates)}f", *rates) + coefficients + echoes, RECORD_LENGTH)


def encode_state(state: StateRecord) -> bytes:
    """The bytes of a state, with its length and without the checksum."""
    return with_length(_STATE.pack(_STATE_KIND, state.steps, state.file, state.weights), RECORD_LENGTH)


def decode(body: bytes) -> StepRecord | StateRecord | None:
    """What a record says; None where its lengths do not fit together.

    Raises:
        ValueError: a kind that this version does not know.
    """
    kind = body[0] if body else 0
    if kind == _STATE_KIND:
        return _decode_state(body)
    if kind not in (_STEP_KIND, _ECHOING_KIND):
        raise ValueError(
            f"the journal has a record of kind {kind}, which this version does not know. Update featherlight."
        )
    return _decode_step(body)


def _decode_state(body: bytes) -> StateRecord | None:
    if len(body) != _STATE.size:
        return None
    _, steps, file, weights = _STATE.unpack(body)
    return StateRecord(steps=steps, file=file, weights=weights)


def _decode_step(body: bytes) -> StepRecord | None:
    if len(body) < _STEP.size:
        return None
    kind, groups, step, world, epoch, seed, scale, count = _STEP.unpack_from(body)
    plain = _STEP.size + 8 * groups + 2 * count
    if len(body) < plain or (len(body) - plain) % (4 + 4 * groups) or (kind == _STEP_KIND and len(body) != plain):
        return None
    pairs = struct.unpack_from(f"<{2 * groups}f", body, _STEP.size)
    coefficients = np.frombuffer(body, dtype="<i2", count=count, offset=_STEP.size + 8 * groups)
    echoes = struct.iter_unpack(f"<I{groups}f", body[plain:])
    return StepRecord(
        step=step,
        world=world,
        epoch=epoch,
        seed=seed,
        scale=scale,
        rates=pairs[::2],
        decays=pairs[1::2],
        coefficients=torch.from_numpy(coefficients.astype(np.int64)),
        echoes=tuple(Echo(step=number, rates=tuple(again)) for number, *again in echoes),
    )
