"""Writes a model's tensors into one `.feather` file."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from featherlight.archive.codings import CODINGS
from featherlight.archive.elements import bits_of, blocks, dtype_name
from featherlight.archive.header import MAGIC, Entry, Header, digest_size, missing_bytes, with_digest, write_header
from featherlight.archive.sections import Sink
from featherlight.archive.tensor_bytes import smallest
from featherlight.files import write_atomically

Tensors = Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]


def write_archive(
    path: Path,
    tensors: Tensors,
    *,
    coding: str = "mixed",
    metadata: Mapping[str, str] | None = None,
    track: Callable[[str], object] | None = None,
) -> int:
    """Writes tensors into one file; what is decoded has the same bits. Returns the bytes written.

    A tensor of few distinct values (pruned, shared or rounded to a grid; up to 4,096 of them, 1,024 in floats) is found to
    be one: its values
    are kept once, as narrow as they can be without a change, and each weight is a level. So hand in plain weights, as a
    transform's `convert` leaves them, and round codebooks and biases to float16 or bfloat16 where that may be. Multiples of
    one float32 are kept as that step. Other floats have their exponents coded; what else there is goes through zstandard. Tensors
    with the same content are stored once.

    Args:
        path: of the file, which is written beside, flushed and renamed; its folder must exist.
        tensors: a state_dict of any dtypes and shapes, or pairs that are made one by one.
        coding: of levels: "mixed" (smallest), "ans" (fastest to decode) or "huffman" (as published in 2015).
        metadata: short texts that are kept in the header.
        track: is told the name of each tensor before it is coded.

    Raises:
        ValueError: a tensor that cannot be kept, names that are there twice, a coding there is not, or a package that is missing.
        OSError: the disk refused; `path` is as it was.

    Memory: one tensor and 1 MiB, as far as the pairs are made one by one.
    """
    if coding not in CODINGS:
        raise ValueError(f"`coding` is {coding!r}, and there are only {', '.join(CODINGS)}. Take one of them.")
    return write_atomically(path, lambda file: _write(file, tensors, coding, metadata or {}, track))


def _write(
    file: BinaryIO, tensors: Tensors, coding: str, metadata: Mapping[str, str], track: Callable[[str], object] | None
) -> None:
    whole = hashlib.sha256()

    def sink(content: bytes) -> None:
        file.write(content)
        whole.update(content)

    sink(MAGIC)
    entries: dict[str, Entry] = {}
    seen: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    start = len(MAGIC)
    pairs: Iterable[tuple[str, Tensor]] = tensors.items() if isinstance(tensors, Mapping) else tensors  # pyright: ignore
    for name, tensor in pairs:
        _check_name(name, entries)
        if track is not None:
            track(name)
        entries[name] = _write_tensor(name, tensor, coding, start, seen, sink)
        start += entries[name].num_bytes
        del tensor
    padding = missing_bytes(sum(one.decoded_bytes for one in entries.values() if one.same is None), start)
    for _ in range(0, padding, 1 << 16):
        sink(bytes(min(1 << 16, padding)))
        padding -= min(1 << 16, padding)
    header = write_header(Header(entries=tuple(entries.values()), metadata=metadata, padding=file.tell() - start))
    sink(header)
    sink(len(header).to_bytes(4, "little"))
    file.write(whole.digest())


def _write_tensor(
    name: str,
    tensor: Tensor,
    coding: str,
    start: int,
    seen: dict[tuple[str, tuple[int, ...], bytes], str],
    sink: Sink,
) -> Entry:
    try:
        dtype, elements = dtype_name(tensor.dtype), bits_of(tensor)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    digest = hashlib.sha256()
    for block in blocks(elements):
        digest.update(block.data)
    shape = tuple(tensor.shape)
    same = seen.setdefault((dtype, shape, digest.digest()), name)
    if same != name:
        return Entry(name=name, dtype=dtype, shape=shape, coding="raw", num_bytes=0, start=0, same=same)
    chosen, size, write = smallest(elements, shape, tensor.dtype, coding)
    write(sink)
    total = with_digest(size)
    sink(digest.digest()[: digest_size(total)])
    return Entry(name=name, dtype=dtype, shape=shape, coding=chosen, num_bytes=total, start=start)


def _check_name(name: str, entries: Mapping[str, Entry]) -> None:
    if not isinstance(name, str) or name in entries:
        raise ValueError(
            f"names of tensors must be texts, and none may be there twice; got {name!r}. Name the tensors as a state_dict does."
        )
