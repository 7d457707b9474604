"""Writes a model's tensors into one `.feather` file."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor


def write_archive(
    path: Path,
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    *,
    coding: str = "mixed",
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Writes tensors into one file; what is decoded has the same bits. Returns the bytes written.

    A tensor of few distinct values (pruned, shared or rounded to a grid; up to 4,096 of them) is found to be one: its values
    are kept once, as narrow as they can be without loss, and each weight is a level. So hand in plain weights, as a
    transform's `convert` leaves them, and round codebooks and biases to float16 or bfloat16 where that may be.

    Args:
        path: of the file; its folder must exist.
        tensors: a state_dict, or pairs that are made one by one.
        coding: of levels: "mixed" (smallest), "ans" (fastest) or "huffman" (as published in 2015).
        metadata: short texts that are kept in the header.
    """
    raise NotImplementedError
