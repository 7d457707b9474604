"""The compressed model file: every byte accounted for, decoded to the same bits anywhere."""

from featherlight.archive.codings import CODINGS, Ans, LevelCoding, Mixed
from featherlight.archive.header import Entry
from featherlight.archive.huffman import GapHuffman
from featherlight.archive.inspecting import Account, Row, inspect_archive
from featherlight.archive.loading import expand, load_into
from featherlight.archive.permuting import find_chains, sort_hidden_units
from featherlight.archive.reading import Archive, is_archive
from featherlight.archive.writing import write_archive

__all__ = [
    "CODINGS",
    "Account",
    "Ans",
    "Archive",
    "Entry",
    "GapHuffman",
    "LevelCoding",
    "Mixed",
    "Row",
    "expand",
    "find_chains",
    "inspect_archive",
    "is_archive",
    "load_into",
    "sort_hidden_units",
    "write_archive",
]
