"""What stands in a `.feather` file, and where: the header, told in JSON, behind the tensors.

    4 bytes   magic
    ...       the tensors' bytes, one after the other in the order of the header, each closed by the first bytes of the SHA-256 of
              its decoded elements: 32, or 8 where there are fewer than 65,536 bytes in all
    ...       zeros, where a file would be suspiciously small for what it decodes to
    ...       the header, deflated with a preset dictionary
    4 bytes   how long the deflated header is, lowest byte first
    32 bytes  SHA-256 of all bytes before

Only lengths are told, never places, so that parts cannot overlap. Numbers are whole. A file is refused whose tensors would
decode to more than 64 MiB and 4,096 bytes for each of its own.
"""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featherlight.archive.elements import DTYPES

MAGIC = b"\x89FT\x01"
TRAILER = 36
VERSION = 1
MOST_HEADER_BYTES = 1 << 21
_MOST_TENSORS = 1 << 16
_MOST_AXES = 32
_MOST_DIGITS = 20
_MOST_ELEMENTS = 1 << 48
_ALLOWANCE, _EXPANSION = 1 << 26, 4096
_LONG = 1 << 16
CODING_NAMES = ("raw", "narrow", "zstd", "planes", "mixed", "ans", "huffman")
_DICTIONARY = (
    b'"same":"head.weight"{"version":1,"tensors":[{"name":"features.0.weight","dtype":"bfloat16","shape":[1,3,5,7,10,16,20,32,50,64,128,'
    b'256,300,500,512,768,784,800,1024],"coding":"zstd","bytes":"narrow""planes""ans""huffman""raw"}],"metadata":{"int64","float16","float32",'
    b'"shape":[100,300],"coding":"mixed","bytes":24},{"name":"layers.1.bias","dtype":"float32","shape":[10],"coding":"mixed","bytes":'
    b'{"version":1,"metadata":{},"padding":0,"tensors":[{"name":"'
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A tensor of a file.

    Attributes:
        name: of the tensor.
        dtype: by torch's name.
        shape: of it.
        coding: how its bytes are made; a name of `CODING_NAMES`.
        num_bytes: in the file, the digest included; 0 for one that is the same as another.
        start: the first of them.
        same: name of an earlier tensor with the same dtype, shape and elements; None if it has bytes of its own.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    coding: str
    num_bytes: int
    start: int
    same: str | None = None

    @property
    def num_digest(self) -> int:
        """Bytes of the digest."""
        return digest_size(self.num_bytes)

    @property
    def decoded_bytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file holds.

    Attributes:
        entries: its tensors in order.
        metadata: short texts by name.
        padding: bytes behind the tensors.
    """

    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]
    padding: int = 0


def digest_size(num_bytes: int) -> int:
    """Bytes of the digest of a tensor with so many bytes in all."""
    return 32 if num_bytes >= _LONG else 8


def with_digest(num_bytes: int) -> int:
    """Bytes of a tensor in all, whose own are so many."""
    return num_bytes + (8 if num_bytes + 8 < _LONG else 32)


def missing_bytes(decoded: int, num_bytes: int) -> int:
    """Bytes that a file lacks to be believed that it decodes to so many."""
    return max(0, -(-(decoded - _ALLOWANCE) // _EXPANSION) - num_bytes)


def write_header(header: Header) -> bytes:
    """The deflated header.

    Raises:
        ValueError: it is larger than may be read.
    """
    tensors = [
        {"name": one.name, "same": one.same}
        if one.same is not None
        else {
            "name": one.name,
            "dtype": one.dtype,
            "shape": list(one.shape),
            "coding": one.coding,
            "bytes": one.num_bytes,
        }
        for one in header.entries
    ]
    content: dict[str, Any] = {"version": VERSION}
    if header.metadata:
        content["metadata"] = dict(header.metadata)
    if header.padding:
        content["padding"] = header.padding
    text = json.dumps(content | {"tensors": tensors}, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > MOST_HEADER_BYTES or len(tensors) > _MOST_TENSORS:
        raise ValueError(
            f"the header would have {len(text):,} bytes for {len(tensors):,} tensors, and at most {MOST_HEADER_BYTES:,} for "
            f"{_MOST_TENSORS:,} may be read. Put the tensors into several files, or shorten `metadata`."
        )
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, _DICTIONARY)
    return packer.compress(text) + packer.flush()


def read_header(deflated: bytes, *, file_bytes: int) -> Header:
    """The header of a file of so many bytes, with everything checked that is told in it.

    Raises:
        ValueError: it is not one.
    """
    content = _parsed(_inflated(deflated))
    _check(
        isinstance(content, dict) and content.keys() <= {"version", "metadata", "padding", "tensors"}, "it is no header"
    )
    _check(
        content.get("version") == VERSION,
        f"its version is {content.get('version')!r}; this program reads version {VERSION}",
    )
    metadata, padding = content.get("metadata", {}), content.get("padding", 0)
    _check(
        isinstance(metadata, dict) and all(isinstance(one, str) for one in metadata.values()),
        "its metadata are not texts",
    )
    _check(_is_size(padding), f"its padding is {str(padding)[:20]}")
    tensors = content.get("tensors")
    _check(isinstance(tensors, list) and len(tensors) <= _MOST_TENSORS, "its tensors are not a list of at most 65,536")
    assert isinstance(tensors, list)
    entries = _entries(tensors)
    told = len(MAGIC) + sum(one.num_bytes for one in entries) + padding + len(deflated) + TRAILER
    _check(told == file_bytes, f"its parts have {told} bytes in all, and the file has {file_bytes}")
    decoded = sum(one.decoded_bytes for one in entries if one.same is None)
    _check(
        missing_bytes(decoded, file_bytes) == 0,
        f"its tensors would take {decoded} bytes, more than {_EXPANSION} for each byte of the file",
    )
    return Header(entries=entries, metadata=metadata, padding=padding)


def _entries(tensors: Sequence[Any]) -> tuple[Entry, ...]:
    known: dict[str, Entry] = {}
    start = len(MAGIC)
    for one in tensors:
        _check(isinstance(one, dict) and isinstance(one.get("name"), str), "a tensor has no name")
        name = one["name"]
        _check(name not in known, f"there are two tensors {name[:80]!r}")
        known[name] = _again(one, known) if "same" in one else _entry(one, start)
        start += known[name].num_bytes
    return tuple(known.values())


def _again(one: Mapping[str, Any], known: Mapping[str, Entry]) -> Entry:
    first = known.get(one["same"]) if isinstance(one["same"], str) else None
    _check(
        one.keys() == {"name", "same"} and first is not None, f"{one['name'][:80]!r} is the same as nothing before it"
    )
    assert first is not None
    _check(first.same is None, f"{one['name'][:80]!r} is the same as one that is itself the same as another")
    return Entry(
        name=one["name"],
        dtype=first.dtype,
        shape=first.shape,
        coding=first.coding,
        num_bytes=0,
        start=0,
        same=first.name,
    )


def _entry(one: Mapping[str, Any], start: int) -> Entry:
    where = f"of {one['name'][:80]!r}"
    _check(
        one.keys() == {"name", "dtype", "shape", "coding", "bytes"}, f"other keys than it should have are told {where}"
    )
    dtype, shape, coding, size = one["dtype"], one["shape"], one["coding"], one["bytes"]
    _check(isinstance(dtype, str) and dtype in DTYPES, f"the dtype {where} is {str(dtype)[:20]!r}")
    _check(
        isinstance(shape, list) and len(shape) <= _MOST_AXES and all(_is_size(n) for n in shape),
        f"the shape {where} is not a list of numbers from 0 on",
    )
    _check(math.prod(max(n, 1) for n in shape) <= _MOST_ELEMENTS, f"the shape {where} is too large for any memory")
    _check(isinstance(coding, str) and coding in CODING_NAMES, f"the coding {where} is {str(coding)[:20]!r}")
    _check(_is_size(size) and size >= digest_size(size), f"the bytes {where} are {str(size)[:20]}")
    return Entry(name=one["name"], dtype=dtype, shape=tuple(shape), coding=coding, num_bytes=size, start=start)


def _inflated(deflated: bytes) -> bytes:
    unpacker = zlib.decompressobj(-15, _DICTIONARY)
    try:
        text = unpacker.decompress(deflated, MOST_HEADER_BYTES)
    except zlib.error as error:
        raise ValueError(f"the header is damaged: {error}.") from None
    _check(unpacker.eof and not unpacker.unused_data, f"it is cut off, or larger than {MOST_HEADER_BYTES} bytes")
    return text


def _parsed(text: bytes) -> Any:
    _check(text.count(b"{") + text.count(b"[") <= 3 * _MOST_TENSORS, "it has more parts than a file can have")
    try:
        return json.loads(
            text.decode(),
            object_pairs_hook=_once,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
            parse_int=_whole_number,
        )
    except RecursionError:
        raise ValueError("the header is damaged: it is nested too deep.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"the header is damaged: {str(error)[:100]}.") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    _check(len(content) == len(pairs), "a key stands in it twice")
    return content


def _refuse_number(text: str) -> Any:
    raise ValueError(f"the header is damaged: {text[:20]} is no whole number.")


def _whole_number(text: str) -> int:
    _check(len(text) <= _MOST_DIGITS, "a number in it has too many digits")
    return int(text)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST_ELEMENTS


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"the header is damaged: {what}.")
