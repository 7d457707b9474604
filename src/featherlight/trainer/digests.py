"""Fingerprints of weights and files."""

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from featherlight.functional import QuantizedTensor


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, in the order of their names; quantized ones as floats."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for part in _parts(tensor):
            digest.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_digest(path: Path, *, from_disk: bool = False) -> str:
    """SHA-256 of a file.

    Args:
        path: of the file.
        from_disk: asks the system to forget its own copy first, so that what was just written is read back from the disk
            where the system allows that.
    """
    with path.open("rb") as file:
        if from_disk and sys.platform == "linux":
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor, or blocks of the floats that a quantized one stands for."""
    if isinstance(tensor, QuantizedTensor):
        yield from (tensor.exact_rows(first, count) for first, count in tensor.blocks())
    else:
        yield tensor
