"""The compressed model file: every byte accounted for, decoded to the same bits anywhere."""

from featherlight.archive.writing import write_archive

__all__ = ["write_archive"]
