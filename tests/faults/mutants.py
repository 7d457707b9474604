"""Journals that a hostile or unlucky writer could have made: altered, then sealed with checksums that hold."""

import random
import struct
from collections.abc import Iterator

from featherlight.trainer.journal.record_format import HEADER_LENGTH, MAGIC, RECORD_LENGTH, TENSORS_LENGTH, Checksum

_FEW = 6


def mutants(journal: bytes, count: int, draw: random.Random) -> Iterator[bytes]:
    """Altered copies of the first parts of a journal; half of them with checksums made right."""
    header, tensors, *records = _parts(journal)
    for _ in range(count):
        bodies = [header, tensors, *records[: draw.randint(0, _FEW)]]
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(bodies))
            bodies[place] = _altered(bodies[place], draw)
        if draw.random() < 0.2:
            draw.shuffle(bodies)
        yield _sealed(bodies) if draw.random() < 0.7 else _altered(_sealed(bodies), draw)


def _parts(journal: bytes) -> list[bytes]:
    position, bodies = len(MAGIC), []
    while position < len(journal):
        length_format = (HEADER_LENGTH, TENSORS_LENGTH)[len(bodies)] if len(bodies) < 2 else RECORD_LENGTH
        start = position + struct.calcsize(length_format)
        (length,) = struct.unpack_from(length_format, journal, position)
        bodies.append(journal[start : start + length])
        position = start + length + 4
    return bodies


def _sealed(bodies: list[bytes]) -> bytes:
    checksum, data = Checksum(), MAGIC
    for number, body in enumerate(bodies):
        length_format = (HEADER_LENGTH, TENSORS_LENGTH)[number] if number < 2 else RECORD_LENGTH
        body = body[: (1 << 8 * struct.calcsize(length_format)) - 1]
        data += checksum.seal(struct.pack(length_format, len(body)) + body)
    return data


def _altered(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    kind = draw.randrange(5)
    place = draw.randrange(len(changed) + 1)
    if kind == 0 and changed:
        changed[place % len(changed)] = draw.randrange(256)
    elif kind == 1:
        del changed[place : place + draw.randint(1, 8)]
    elif kind == 2:
        changed[place:place] = draw.randbytes(draw.randint(1, 8))
    elif kind == 3:
        changed[place : place + 8] = draw.choice((b"\x00" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7, b'"}]{[,:9'))
    else:
        changed = changed[:place]
    return bytes(changed)
