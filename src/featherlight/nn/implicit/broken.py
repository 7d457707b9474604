"""Samples with nan or inf, kept from reaching others through sums over a batch.

Legend of shapes: N samples, ... anything.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def broken_samples(tensors: Iterable[Tensor], count: int, device: torch.device) -> Tensor:
    """(N,), bool: samples with nan or inf in one of the tensors that have `count` samples on their first axis."""
    broken = torch.zeros(count, dtype=torch.bool, device=device)
    for each in tensors:
        if _by_sample(each, count):
            broken = broken | ~each.detach().reshape(count, each[:1].numel()).isfinite().all(1)
    return broken


def without_samples(x: Tensor, broken: Tensor, value: float = 0.0) -> Tensor:
    """`x`, (N, ...), with another value in these samples; tensors of another kind come back as they are."""
    if not _by_sample(x, len(broken)):
        return x
    return x.masked_fill(broken.view(-1, *[1] * (x.ndim - 1)), value)


def _by_sample(x: Tensor, count: int) -> bool:
    return x.is_floating_point() and x.ndim > 0 and len(x) == count
