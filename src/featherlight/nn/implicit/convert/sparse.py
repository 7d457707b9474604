"""Sparse matrices in coordinate form, coalesced; products on any device."""

import torch
from torch import Tensor


def sparse(index: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Coalesced, of (2, entries) places and their values; those of one place are summed."""
    return torch.sparse_coo_tensor(index, values, shape, check_invariants=False).coalesce()


def selection(columns: Tensor, width: int, *, dtype: torch.dtype) -> Tensor:
    """Rows with a single 1; a column below 0 leaves its row empty."""
    rows = torch.arange(len(columns), device=columns.device)
    index = torch.stack((rows, columns))[:, columns >= 0]
    ones = torch.ones(index.shape[1], dtype=dtype, device=columns.device)
    return sparse(index, ones, (len(columns), width))


def empty(shape: tuple[int, int], like: Tensor) -> Tensor:
    """Without entries, in the dtype and on the device of `like`."""
    return sparse(torch.empty(2, 0, dtype=torch.int64, device=like.device), like.new_empty(0), shape)


def widened(matrix: Tensor, width: int) -> Tensor:
    """With empty columns at the end."""
    return sparse(matrix.indices(), matrix.values(), (matrix.shape[0], width))


def product(left: Tensor, right: Tensor) -> Tensor:
    """left right, of coalesced matrices; each entry of `left` meets the entries of one row of `right`."""
    (row, middle), (_, column) = left.indices(), right.indices()
    counts = torch.bincount(right.indices()[0], minlength=right.shape[0])
    begins = counts.cumsum(0) - counts
    met = counts[middle]
    which = torch.arange(len(met), device=met.device).repeat_interleave(met)
    place = begins[middle][which] + torch.arange(len(which), device=met.device) - (met.cumsum(0) - met)[which]
    index = torch.stack((row[which], column[place]))
    return sparse(index, left.values()[which] * right.values()[place], (left.shape[0], right.shape[1]))


def total(left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
    """left + scale right, of equal shapes."""
    index = torch.cat((left.indices(), right.indices()), 1)
    return sparse(index, torch.cat((left.values(), scale * right.values())), (left.shape[0], left.shape[1]))


def transposed(matrix: Tensor) -> Tensor:
    """Rows as columns."""
    return sparse(matrix.indices().flip(0), matrix.values(), (matrix.shape[1], matrix.shape[0]))


def times_vector(matrix: Tensor, vector: Tensor) -> Tensor:
    """matrix vector, dense."""
    row, column = matrix.indices()
    return vector.new_zeros(matrix.shape[0]).index_add(0, row, matrix.values() * vector[column])


def stacked(blocks: list[list[Tensor | None]]) -> Tensor:
    """A matrix of rows of blocks; None is nought, of the size its row and column have."""
    like = next(block for row in blocks for block in row if block is not None)
    heights = [next(block.shape[0] for block in row if block is not None) for row in blocks]
    widths = [next(block.shape[1] for block in column if block is not None) for column in zip(*blocks, strict=True)]
    index, values = [torch.empty(2, 0, dtype=torch.int64, device=like.device)], [like.values()[:0]]
    for i, row in enumerate(blocks):
        for j, block in enumerate(row):
            if block is not None:
                shift = torch.tensor([[sum(heights[:i])], [sum(widths[:j])]], device=like.device)
                index.append(block.indices() + shift)
                values.append(block.values())
    return sparse(torch.cat(index, 1), torch.cat(values), (sum(heights), sum(widths)))
