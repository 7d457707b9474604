"""Where the bytes of a file are: a table in the manner of Han et al. 2016, that sums to the file's size."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from featherlight.archive.codebook import find_codebook, read_codebook
from featherlight.archive.codings import CODINGS
from featherlight.archive.elements import DTYPES, bits_of
from featherlight.archive.header import MAGIC, Entry
from featherlight.archive.levels import Levels, num_columns
from featherlight.archive.reading import Archive
from featherlight.archive.sections import Section
from featherlight.functional.entropy_model import EntropyModel


@dataclass(frozen=True, kw_only=True)
class Row:
    """Bytes of a tensor.

    Attributes:
        name: of the tensor.
        dtype: by torch's name.
        shape: of it.
        coding: how its elements are coded; "same" for one that is stored under another name.
        elements: how many there are.
        kept: how many are not zero.
        num_bytes: in the file.
        codebook_bytes: for its distinct values.
        index_bytes: for where the nonzeros are: as the entropy model shares the bytes of levels out; 0 where there are none.
        value_bytes: for what they are.
        digest_bytes: for its SHA-256.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    coding: str
    elements: int
    kept: int
    num_bytes: int
    codebook_bytes: int
    index_bytes: int
    value_bytes: int
    digest_bytes: int

    @property
    def bits_per_element(self) -> float:
        """Of the file, over all elements."""
        return 8 * self.num_bytes / max(self.elements, 1)


@dataclass(frozen=True, kw_only=True)
class Account:
    """Bytes of a file.

    Attributes:
        rows: of the tensors, in order.
        other_bytes: what is beside them, by name.
        num_bytes: all, the size of the file.
        decoded_bytes: of all tensors, each as often as it has a name.
    """

    rows: tuple[Row, ...]
    other_bytes: Mapping[str, int]
    num_bytes: int
    decoded_bytes: int


def inspect_archive(archive: Archive) -> Account:
    """The account of a file.

    Raises:
        ValueError: the file is damaged.

    Cost: all tensors are decoded once.
    """
    other = {
        "beginning": len(MAGIC),
        "header": archive.num_header_bytes,
        "padding": archive.padding,
        "SHA-256 of the file": 32,
    }
    rows = tuple(_row(archive, entry) for entry in archive.entries.values())
    decoded = sum(one.decoded_bytes for one in archive.entries.values())
    return Account(rows=rows, other_bytes=other, num_bytes=archive.num_bytes, decoded_bytes=decoded)


def _row(archive: Archive, entry: Entry) -> Row:
    tensor = archive.read(entry.name)
    codebook = 0 if entry.same is not None else _codebook_bytes(archive, entry)
    digest = 0 if entry.same is not None else entry.num_digest
    body = entry.num_bytes - digest - codebook
    index = round(body * _index_share(tensor)) if codebook else 0
    return Row(
        name=entry.name,
        dtype=entry.dtype,
        shape=entry.shape,
        coding="same" if entry.same is not None else entry.coding,
        elements=tensor.numel(),
        kept=sum(int(torch.count_nonzero(part)) for part in _floats(tensor).split(1 << 16)),
        num_bytes=entry.num_bytes,
        codebook_bytes=codebook,
        index_bytes=index,
        value_bytes=body - index,
        digest_bytes=digest,
    )


def _codebook_bytes(archive: Archive, entry: Entry) -> int:
    if entry.coding not in CODINGS:
        return 0
    with archive.path.open("rb") as file:
        section = Section(file, entry.start, entry.num_bytes - entry.num_digest)
        before = section.left
        read_codebook(section, DTYPES[entry.dtype])
        return before - section.left


def _index_share(tensor: torch.Tensor) -> float:
    """Share of the bits of levels that tell zero from not zero."""
    elements = bits_of(tensor)
    codebook = find_codebook(elements, tensor.dtype)
    if codebook is None:
        return 0.0
    levels = Levels(elements=elements, codebook=codebook, shape=tuple(tensor.shape))
    columns = num_columns(levels.shape)
    flat = np.concatenate(list(levels.blocks()))
    rows = -(-len(flat) // columns)
    matrix = torch.from_numpy(np.pad(flat, (0, rows * columns - len(flat)))).view(rows, columns)
    model = EntropyModel.fit(matrix)
    bits = model.bits(matrix)
    values = model.level_bits[matrix.long() + model.reach].sum()
    return 1 - float(values / bits.sum()) if float(bits.sum()) else 0.0


def _floats(tensor: torch.Tensor) -> torch.Tensor:
    """Flat, in a dtype whose nonzeros can be counted."""
    flat = tensor.reshape(-1)
    return flat.to(torch.float32) if flat.dtype.itemsize == 1 and flat.is_floating_point() else flat
