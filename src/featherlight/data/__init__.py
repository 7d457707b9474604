"""Users' own rows and built-in sets: from a file to batches, splits and scores.

What needs torch loads on first use, so that reading a table or the library's docstrings does not wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from featherlight.data.sampler import IndexPermutation
from featherlight.data.stdlib_docs import stdlib_docs
from featherlight.data.tables import Table, iter_rows, read_table
from featherlight.data.text import TextRows, guess_text_columns, load_text, read_plain_text, source_table, text_rows

if TYPE_CHECKING:
    from featherlight.data.audio import Recordings, load_recordings, read_wav, synthesize_tones, write_wav
    from featherlight.data.encoded import EncodedText, encode_text, lm_blocks
    from featherlight.data.image_files import load_folder, load_npz
    from featherlight.data.image_sets import (
        IMAGE_SETS,
        load_bsds,
        load_cifar10,
        load_gtsrb,
        load_images,
        load_mnist,
    )
    from featherlight.data.images import ImageSet, ImageSplits, load_digits
    from featherlight.data.labels import Labels
    from featherlight.data.metrics import METRICS, confusion, metric
    from featherlight.data.photographs import Photographs, PhotographSplits, RandomCrops, load_photograph_folder
    from featherlight.data.signals import SIGNAL_RECORDS, SignalRecord, load_signals
    from featherlight.data.splits import split_rows

_NEEDS_TORCH = {
    "IMAGE_SETS": "image_sets",
    "METRICS": "metrics",
    "SIGNAL_RECORDS": "signals",
    "EncodedText": "encoded",
    "ImageSet": "images",
    "ImageSplits": "images",
    "Labels": "labels",
    "PhotographSplits": "photographs",
    "Photographs": "photographs",
    "RandomCrops": "photographs",
    "Recordings": "audio",
    "SignalRecord": "signals",
    "confusion": "metrics",
    "encode_text": "encoded",
    "lm_blocks": "encoded",
    "load_bsds": "image_sets",
    "load_cifar10": "image_sets",
    "load_digits": "images",
    "load_folder": "image_files",
    "load_gtsrb": "image_sets",
    "load_images": "image_sets",
    "load_mnist": "image_sets",
    "load_npz": "image_files",
    "load_photograph_folder": "photographs",
    "load_recordings": "audio",
    "load_signals": "signals",
    "metric": "metrics",
    "read_wav": "audio",
    "split_rows": "splits",
    "synthesize_tones": "audio",
    "write_wav": "audio",
}

__all__ = [
    "IMAGE_SETS",
    "METRICS",
    "SIGNAL_RECORDS",
    "EncodedText",
    "ImageSet",
    "ImageSplits",
    "IndexPermutation",
    "Labels",
    "PhotographSplits",
    "Photographs",
    "RandomCrops",
    "Recordings",
    "SignalRecord",
    "Table",
    "TextRows",
    "confusion",
    "encode_text",
    "guess_text_columns",
    "iter_rows",
    "lm_blocks",
    "load_bsds",
    "load_cifar10",
    "load_digits",
    "load_folder",
    "load_gtsrb",
    "load_images",
    "load_mnist",
    "load_npz",
    "load_photograph_folder",
    "load_recordings",
    "load_signals",
    "load_text",
    "metric",
    "read_plain_text",
    "read_table",
    "read_wav",
    "source_table",
    "split_rows",
    "stdlib_docs",
    "synthesize_tones",
    "text_rows",
    "write_wav",
]


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NEEDS_TORCH[name]}"), name)
