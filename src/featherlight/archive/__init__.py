"""The compressed model file: every byte accounted for, decoded to the same bits anywhere."""

from featherlight.archive.codings import CODINGS, Ans, LevelCoding, Mixed
from featherlight.archive.header import Entry
from featherlight.archive.huffman import GapHuffman
from featherlight.archive.inspecting import Account, Row, inspect_archive
from featherlight.archive.loading import expand, load_into
from featherlight.archive.reading import Archive
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
    "inspect_archive",
    "load_into",
    "write_archive",
]
