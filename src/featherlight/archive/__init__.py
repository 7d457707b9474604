"""The compressed model file: every byte accounted for, decoded to the same bits anywhere."""

from featherlight.archive.codings import CODINGS, Ans, LevelCoding, Mixed
from featherlight.archive.header import Entry
from featherlight.archive.huffman import GapHuffman
from featherlight.archive.loading import expand, load_into
from featherlight.archive.reading import Archive
from featherlight.archive.writing import write_archive

__all__ = [
    "CODINGS",
    "Ans",
    "Archive",
    "Entry",
    "GapHuffman",
    "LevelCoding",
    "Mixed",
    "expand",
    "load_into",
    "write_archive",
]
