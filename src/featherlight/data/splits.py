"""Dividing rows into a training and a validation part."""

from __future__ import annotations

import torch
from torch import Tensor


def split_rows(targets: Tensor, *, valid_fraction: float, seed: int, stratify: bool) -> tuple[Tensor, Tensor]:
    """Divide rows at random, by the seed alone.

    Args:
        targets: one target a row, (N,); class ids (integer) where `stratify`.
        valid_fraction: share of the rows that validate, in (0, 1); the count is rounded to the nearest row.
        seed: the one source of randomness.
        stratify: give each class its share of the validation rows, by largest remainders; every class keeps at least
            one training row.

    Returns:
        Indices of the training and of the validation rows, int64, ascending; disjoint, together all rows.

    Raises:
        ValueError: a fraction outside (0, 1), too few rows to fill both parts, or `stratify` with targets that are not
            class ids.
    """
    num_rows = len(targets)
    num_valid = _num_valid(num_rows, valid_fraction)
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    is_valid = torch.zeros(num_rows, dtype=torch.bool)
    is_valid[_stratified(targets.cpu()[order], order, num_valid) if stratify else order[:num_valid]] = True
    return (~is_valid).nonzero().squeeze(1), is_valid.nonzero().squeeze(1)


def _num_valid(num_rows: int, valid_fraction: float) -> int:
    if not 0.0 < valid_fraction < 1.0:
        raise ValueError(
            f"`valid_fraction` must lie between 0 and 1, so that both parts have rows; got {valid_fraction}. Take 0.1 "
            "or 0.2."
        )
    num_valid = round(num_rows * valid_fraction)
    if not 0 < num_valid < num_rows:
        raise ValueError(
            f"too few rows to split: {valid_fraction:g} of {num_rows} rows leaves {num_rows - num_valid} to train on "
            f"and {num_valid} to validate, and each part needs at least 1. Add rows, change `valid_fraction`, or give "
            "validation rows with `--valid`."
        )
    return num_valid


def _stratified(shuffled_targets: Tensor, order: Tensor, num_valid: int) -> Tensor:
    """Return the first rows of each class in shuffled order, as many as its share of `num_valid`."""
    if shuffled_targets.is_floating_point():
        raise ValueError(
            f"`stratify` needs class ids (integers), since it counts rows a class; got {shuffled_targets.dtype}. "
            "Pass `stratify=False` for regression."
        )
    _, class_of_row, class_sizes = torch.unique(shuffled_targets, return_inverse=True, return_counts=True)
    shares = _valid_shares(class_sizes, num_valid)
    by_class = torch.argsort(class_of_row, stable=True)
    first_of_class = class_sizes.cumsum(0) - class_sizes
    rank_in_class = torch.arange(len(order)) - first_of_class.repeat_interleave(class_sizes)
    return order[by_class[rank_in_class < shares.repeat_interleave(class_sizes)]]


def _valid_shares(class_sizes: Tensor, num_valid: int) -> Tensor:
    """Apportion `num_valid` rows over classes by largest remainders, at most all but one row of each."""
    num_rows, room = int(class_sizes.sum()), class_sizes - 1
    if int(room.sum()) < num_valid:
        raise ValueError(
            f"too few rows to stratify: {num_valid} of {num_rows} rows are to validate, but the {len(class_sizes)} "
            f"classes can spare only {int(room.sum())} if each keeps one training row. Add rows, or "
            "give validation rows with `--valid`."
        )
    scaled = class_sizes * num_valid
    shares = torch.minimum(scaled // num_rows, room)
    by_remainder = torch.argsort(scaled % num_rows, descending=True, stable=True)
    while (left := num_valid - int(shares.sum())) > 0:
        open_classes = by_remainder[(shares < room)[by_remainder]]
        shares[open_classes[:left]] += 1
    return shares
