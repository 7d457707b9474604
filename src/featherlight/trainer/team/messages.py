"""What a host and its members say to each other, and its bytes.

A frame is a u32 length, a u8 kind and a body, little-endian. What is said in every step is packed tightly; what is said when
somebody joins is JSON, with the records of steps behind it.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

VERSION = 1
LARGEST_FRAME = 1 << 28
"""Bytes of what a host says; members say less."""

LARGEST_OF_MEMBERS = 1 << 20
FRAME = struct.Struct("<IB")
_NOBODY = 0xFFFF
_TOLD = struct.Struct("<I")
_STEP = struct.Struct("<dIHH")
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, kw_only=True)
class Seat:
    """A place in the measurement of the coming step.

    Attributes:
        epoch: of the membership.
        number: of the place; the host has 0.
        count: places there are.
    """

    epoch: int
    number: int
    count: int


@dataclass(frozen=True, kw_only=True)
class Hello:
    """A member asks to join.

    Attributes:
        facts: digests of base and data, formats and settings, which must be those of the host.
        steps: done so far.
        chain: over the records of them.
    """

    facts: Mapping[str, str]
    steps: int
    chain: bytes


@dataclass(frozen=True, kw_only=True)
class Welcome:
    """The host lets a member listen.

    Attributes:
        first: step of the first record.
        records: of all steps that the member does not have.
        targets: which parameters are trained, once a step was made.
    """

    first: int
    records: Sequence[bytes]
    targets: Mapping[str, Sequence[int]] | None = None


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A member has applied all steps up to here."""

    steps: int


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a member measured of a step."""

    step: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step that is on the host's disk.

    Attributes:
        record: of it; empty where only places are given.
        seat: of the member in the coming step; None has none yet.
        seconds: that the host spent in steps.
    """

    record: bytes
    seat: Seat | None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Alive:
    """Nothing is new."""


@dataclass(frozen=True, kw_only=True)
class Over:
    """Somebody leaves: the host with its run, or a member.

    Attributes:
        kind: "refused", "finished", "interrupted", "not finite" or "failed".
        sentence: for people.
    """

    kind: str
    sentence: str = ""


Message = Hello | Welcome | Ready | Told | Step | Alive | Over
_KINDS: tuple[type[Message], ...] = (Hello, Welcome, Ready, Told, Step, Alive, Over)


def encode(message: Message) -> bytes:
    """The frame of a message."""
    body = _body(message)
    return FRAME.pack(len(body), _KINDS.index(type(message))) + body


def decode(kind: int, body: bytes) -> Message:
    """A message from a frame.

    Raises:
        ValueError: these are not its bytes.
    """
    try:
        return _message(_KINDS[kind], body)
    except (IndexError, KeyError, TypeError, ValueError, struct.error, RecursionError) as error:
        raise ValueError(f"a frame of kind {kind} with {len(body)} bytes is no message of a team ({error}).") from None


def _body(message: Message) -> bytes:
    match message:
        case Hello():
            told = {"facts": dict(message.facts), "steps": message.steps, "chain": message.chain.hex()}
            return json.dumps(told | {"version": VERSION}).encode()
        case Welcome():
            return _pack({"first": message.first, "targets": message.targets}, message.records)
        case Ready():
            return _TOLD.pack(message.steps)
        case Told():
            return _TOLD.pack(message.step) + message.data
        case Step():
            seat = message.seat or Seat(epoch=0, number=_NOBODY, count=0)
            return _STEP.pack(message.seconds, seat.epoch, seat.number, seat.count) + message.record
        case Alive():
            return b""
        case Over():
            return json.dumps({"kind": message.kind, "sentence": message.sentence}).encode()


def _message(kind: type[Message], body: bytes) -> Message:
    if kind is Hello:
        told = json.loads(body)
        if told["version"] != VERSION:
            raise ValueError(f"it speaks version {told['version']}, and this is version {VERSION}")
        facts = {str(name): str(value) for name, value in told["facts"].items()}
        return Hello(facts=facts, steps=int(told["steps"]), chain=bytes.fromhex(told["chain"]))
    if kind is Welcome:
        told, records = _unpack(body)
        return Welcome(first=int(told["first"]), records=records, targets=told["targets"])
    if kind is Ready:
        return Ready(steps=_TOLD.unpack(body)[0])
    if kind is Told:
        return Told(step=_TOLD.unpack_from(body)[0], data=body[_TOLD.size :])
    if kind is Step:
        seconds, epoch, number, count = _STEP.unpack_from(body)
        seat = None if number == _NOBODY else Seat(epoch=epoch, number=number, count=count)
        return Step(record=body[_STEP.size :], seat=seat, seconds=seconds)
    if kind is Alive:
        return Alive()
    told = json.loads(body)
    return Over(kind=str(told["kind"]), sentence=str(told["sentence"]))


def _pack(head: Mapping[str, Any], records: Sequence[bytes]) -> bytes:
    text = json.dumps(head).encode()
    return b"".join(
        [_LENGTH.pack(len(text)), text, *(part for one in records for part in (_LENGTH.pack(len(one)), one))]
    )


def _unpack(body: bytes) -> tuple[dict[str, Any], list[bytes]]:
    parts, position = [], 0
    while position < len(body):
        (length,) = _LENGTH.unpack_from(body, position)
        position += _LENGTH.size + length
        if position > len(body):
            raise ValueError("it is cut off")
        parts.append(body[position - length : position])
    return json.loads(parts[0]), parts[1:]
