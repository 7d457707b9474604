"""Damage is found wherever it is, and a hostile file costs neither memory nor a crash."""

import hashlib
import json
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featherlight.archive import CODINGS, Archive, write_archive
from featherlight.archive.header import _DICTIONARY, MAGIC, MOST_HEADER_BYTES

pytest.importorskip("numba")
OPEN = {"version": 1, "tensors": [{"name": "w", "dtype": "float32", "shape": [2], "coding": "raw", "bytes": 16}]}
BODY = np.array([1, 2], dtype=np.float32).tobytes()
BODY += hashlib.sha256(BODY).digest()[:8]


def sealed(body: bytes, header: bytes, size: int | None = None) -> bytes:
    """A file around whatever header, with a right digest."""
    content = MAGIC + body + header + (len(header) if size is None else size).to_bytes(4, "little")
    return content + hashlib.sha256(content).digest()


def deflated(header: Any) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, _DICTIONARY)
    return packer.compress(text) + packer.flush()


def small(path: Path, coding: str) -> bytes:
    """A file with a tensor of each coding, in a few hundred bytes."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randint(-9, 10, (12, 20), generator=g) * (torch.rand(12, 20, generator=g) < 0.2) * 0.25
    write_archive(path, {"w": weight + 0.0, "bias": torch.randn(3, generator=g), "again": weight + 0.0}, coding=coding)
    return path.read_bytes()


def is_found(path: Path) -> bool:
    try:
        Archive(path)
    except ValueError as error:
        return "is not a whole .feather file" in str(error)
    return False


def test_every_truncation_and_every_flipped_bit_of_a_small_file_is_found(tmp_path: Path) -> None:
    content, path = small(tmp_path / "a.feather", "mixed"), tmp_path / "b.feather"
    damaged = [content[:size] for size in range(len(content))] + [content + b"\0"]
    for at in range(len(content)):
        damaged += [content[:at] + bytes([content[at] ^ 1 << k]) + content[at + 1 :] for k in range(8)]
    found = 0
    for one in damaged:
        path.write_bytes(one)
        found += is_found(path)
    assert found == 9 * len(content) + 1


@pytest.mark.parametrize("coding", CODINGS)
def test_decoders_meet_any_bytes_with_a_sentence(coding: str, tmp_path: Path) -> None:
    """The file's own digest is made right again, so that what is behind it has to cope with the damage."""
    content, path = small(tmp_path / "a.feather", coding), tmp_path / "b.feather"
    whole, refused = Archive(tmp_path / "a.feather").state_dict(), 0
    for at in range(4, len(content) - 32):
        inside = bytearray(content[:-32])
        inside[at] ^= 1 << at % 8
        path.write_bytes(bytes(inside) + hashlib.sha256(inside).digest())
        try:
            read = Archive(path).state_dict()
        except ValueError as error:
            refused += "is not a whole .feather file" in str(error)
        else:  # another name or as many elements in another shape
            assert torch.equal(next(iter(read.values())).flatten(), whole["w"].flatten())
    assert refused > 0.85 * (len(content) - 36)


def test_random_damage_to_a_larger_file_is_found(tmp_path: Path) -> None:
    path, rng = tmp_path / "a.feather", np.random.default_rng(0)
    write_archive(path, {"w": torch.randn(300, 200, generator=torch.Generator().manual_seed(0))})
    content = path.read_bytes()
    for _ in range(200):
        damaged = np.frombuffer(content, np.uint8).copy()
        start, size = int(rng.integers(len(content))), int(rng.integers(1, 64))
        damaged[start : start + size] = rng.integers(256, size=len(damaged[start : start + size]))
        if damaged.tobytes() == content:
            continue
        path.write_bytes(damaged.tobytes())
        assert is_found(path)


def changed(**told: Any) -> dict[str, Any]:
    """The right header with something else told of its tensor."""
    return OPEN | {"tensors": [OPEN["tensors"][0] | told]}  # pyright: ignore


TWICE = b'{"version":1,"version":1,"tensors":[]}'
HOSTILE = {
    "huge shape": (changed(shape=[1 << 40, 1 << 40]), "too large for any memory"),
    "more than the file can hold": (changed(shape=[1 << 30]), "more than 4096 for each byte"),
    "negative axis": (changed(shape=[-2, -1]), "not a list of numbers from 0 on"),
    "axis that is true": (changed(shape=[True, 2]), "not a list of numbers from 0 on"),
    "negative bytes": (changed(bytes=-16), "the bytes of 'w' are -16"),
    "more bytes than there are": (changed(bytes=1 << 40), "its parts have"),
    "bytes told twice": (OPEN | {"tensors": OPEN["tensors"] + [OPEN["tensors"][0] | {"name": "v"}]}, "its parts have"),  # pyright: ignore
    "a fraction": (changed(bytes=16.0), "16.0 is no whole number"),
    "not a number": (b'{"version":NaN}', "NaN is no whole number"),
    "infinity": (b'{"version":1e999}', "is no whole number"),
    "digits without end": (b'{"version":' + b"9" * 100_000 + b"}", "too many digits"),
    "nested deep": (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
    "many parts": (b"[" + b"{}," * 250_000 + b"{}]", "more parts than a file can have"),
    "many numbers": (b"[" + b"0," * 1_000_000 + b"0]", "it is no header"),
    "twice the key": (TWICE, "a key stands in it twice"),
    "twice the name": (OPEN | {"tensors": OPEN["tensors"] * 2}, "there are two tensors 'w'"),  # pyright: ignore
    "same as itself": (OPEN | {"tensors": [{"name": "w", "same": "w"}]}, "same as nothing before it"),
    "unknown dtype": (changed(dtype="qint8"), "the dtype of 'w' is 'qint8'"),
    "unknown coding": (changed(coding="pickle"), "the coding of 'w' is 'pickle'"),
    "a later version": (OPEN | {"version": 2}, "this program reads version 1"),
    "unknown key": (OPEN | {"code": "x"}, "it is no header"),
    "no text": (b"\xff\xfe", "damaged"),
    "a bomb": (b" " * (MOST_HEADER_BYTES + 1), "larger than"),
    "wrong codebook": (changed(coding="mixed"), "in the tensor 'w'"),
    "planes of whole numbers": (changed(coding="planes", dtype="int32"), "planes of floats were told"),
    "another digest": (changed(shape=[1, 2], dtype="int16", coding="raw", bytes=16), "bytes are left over"),
}


@pytest.mark.parametrize(("header", "sentence"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_is_refused_in_little_memory(header: Any, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "a.feather"
    path.write_bytes(sealed(BODY, deflated(header)))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=sentence):
            Archive(path).state_dict()
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_the_header_that_all_those_were_made_from_is_right(tmp_path: Path) -> None:
    path = tmp_path / "a.feather"
    path.write_bytes(sealed(BODY, deflated(OPEN)))
    assert Archive(path).read("w").tolist() == [1, 2]
    for size, sentence in ((1 << 31, "there is no room for it"), (3, "damaged")):
        path.write_bytes(sealed(BODY, deflated(OPEN), size))
        with pytest.raises(ValueError, match=sentence):
            Archive(path)
    path.write_bytes(b"\x89PNG" + bytes(100))
    with pytest.raises(ValueError, match="does not begin as such a file does"):
        Archive(path)
    with pytest.raises(ValueError, match="there is no file"):
        Archive(tmp_path / "none.feather")
