"""Files and messages that a hostile or unlucky writer could have made: altered, then sealed with checksums that hold."""

import hashlib
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from featherlight.archive import Archive, write_archive
from featherlight.archive.header import _DICTIONARY, TRAILER
from featherlight.archive.header import MAGIC as ARCHIVE_MAGIC
from featherlight.recipes.classify.config import ClassifyConfig
from featherlight.recipes.config import from_mapping, split_toml, to_toml
from featherlight.trainer import check_manifest
from featherlight.trainer.journal import parse_journal
from featherlight.trainer.journal.record_format import HEADER_LENGTH, MAGIC, RECORD_LENGTH, TENSORS_LENGTH, Checksum
from featherlight.trainer.manifest import MANIFEST, write_manifest
from featherlight.trainer.share import read_share
from featherlight.trainer.team.messages import FRAME, Hello, Over, Seat, Step, Told, Welcome, decode, encode

_FEW = 6
_SHA256 = 32


@dataclass(frozen=True)
class Subject:
    """One of our own parsers.

    Attributes:
        make: an altered input.
        read: takes it, or refuses it by ValueError.
    """

    make: Callable[[random.Random], bytes]
    read: Callable[[bytes], object]


def subjects(journal: bytes, folder: Path) -> dict[str, Subject]:
    """All parsers that read what was not made by this process, by name; files are put into the folder."""
    share, manifest = folder / "share", folder / "sound"
    manifest.mkdir()
    (manifest / "a").write_bytes(b"a")
    write_manifest(manifest)
    listed = (manifest / MANIFEST).read_bytes()
    archive = folder / "small.feather"
    weights = {"w": (torch.arange(60.0) % 7 - 3).relu().reshape(6, 10), "b": torch.ones(6, dtype=torch.bfloat16)}
    write_archive(archive, weights)
    written = archive.read_bytes()
    toml = to_toml(ClassifyConfig(data="digits"), recipe="classify/digits").encode()
    seat = Seat(epoch=1, number=0, count=2)
    messages = [
        encode(one)
        for one in (
            Hello(facts={"base": "a"}, steps=3, chain=b"12345678"),
            Welcome(first=1, records=[b"one", b"two"], targets={"w": [6, 10]}),
            Told(step=3, data=b"12345678"),
            Step(record=b"record", seat=seat, seconds=0.5),
            Over(kind="finished", sentence="done"),
        )
    ]

    def at(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
        def put(data: bytes) -> object:
            path.write_bytes(data)
            return read(path)

        return put

    def of_message(frame: bytes) -> object:
        _, kind = FRAME.unpack_from(frame)
        return decode(kind, frame[FRAME.size :])

    def of_toml(text: bytes) -> object:
        try:
            _, values = split_toml(text.decode(), source="a config")
        except UnicodeDecodeError:
            return None
        return from_mapping(ClassifyConfig, {k: v for k, v in values.items() if k != "recipe"}, source="a config")

    def of_archive(path: Path) -> object:
        return Archive(path).state_dict()

    return {
        "journal": Subject(
            lambda draw: next(mutants(journal, 1, draw)), lambda data: parse_journal(data, Path("mutant"))
        ),
        "shared run": Subject(lambda draw: _shared(journal, draw), at(share, read_share)),
        "manifest": Subject(
            lambda draw: _altered(listed, draw), at(manifest / MANIFEST, lambda path: check_manifest(path.parent))
        ),
        "compressed file": Subject(lambda draw: _archived(written, draw), at(archive, of_archive)),
        "config": Subject(lambda draw: _altered(toml, draw), of_toml),
        "message": Subject(lambda draw: _framed(draw.choice(messages), draw), of_message),
    }


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


def _shared(journal: bytes, draw: random.Random) -> bytes:
    """A zip with an altered journal, or an altered zip; mostly with the right seal."""
    inner = next(mutants(journal, 1, draw)) if draw.random() < 0.5 else journal
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("journal", inner)
        archive.comment = b"0" * 2 * _SHA256
    data = buffer.getvalue() if inner is not journal else _altered(buffer.getvalue(), draw)
    if draw.random() < 0.1:
        return data
    body = data[: -2 * _SHA256]
    return body + hashlib.sha256(body).hexdigest().encode()


def _archived(archive: bytes, draw: random.Random) -> bytes:
    """Altered tensors or an altered header, with length and digest made right; or altered anywhere."""
    if draw.random() < 0.1:
        return _altered(archive, draw)
    size = int.from_bytes(archive[-TRAILER:][:4], "little")
    tensors, header = archive[len(ARCHIVE_MAGIC) : -TRAILER - size], archive[-TRAILER - size : -TRAILER]
    if draw.random() < 0.5:
        tensors = _altered(tensors, draw)
    else:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, _DICTIONARY)
        text = zlib.decompressobj(-15, _DICTIONARY).decompress(header)
        header = packer.compress(_altered(text, draw)) + packer.flush()
    body = ARCHIVE_MAGIC + tensors + header + len(header).to_bytes(4, "little")
    return body + hashlib.sha256(body).digest()


def _framed(frame: bytes, draw: random.Random) -> bytes:
    """A frame with an altered body, or of another kind."""
    _, kind = FRAME.unpack_from(frame)
    body = _altered(frame[FRAME.size :], draw)
    return FRAME.pack(len(body), draw.randrange(256) if draw.random() < 0.1 else kind) + body


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
