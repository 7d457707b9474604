from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from featherlight.data import IndexPermutation

SEEDS = st.integers(0, 2**64 - 1)


@settings(deadline=None)
@given(num_rows=st.integers(1, 700), seed=SEEDS, epoch=st.integers(0, 2**66))
def test_every_epoch_is_a_permutation(num_rows: int, seed: int, epoch: int):
    rows = IndexPermutation(num_rows, seed).indices(epoch * num_rows, num_rows)
    assert sorted(rows) == list(range(num_rows))


@settings(deadline=None)
@given(num_rows=st.integers(1, 60), seed=SEEDS, start=st.integers(0, 300), count=st.integers(0, 200))
def test_windows_agree_with_the_whole(num_rows: int, seed: int, start: int, count: int):
    stream = IndexPermutation(num_rows, seed)
    whole = stream.indices(0, 500)
    assert stream.indices(start, count) == whole[start : start + count]
    assert all(type(row) is int for row in whole)


def test_one_place_in_a_huge_set_costs_nothing():
    stream = IndexPermutation(2**61, 3)
    rows = stream.indices(2**70 + 5, 4)
    assert len(set(rows)) == 4
    assert all(0 <= row < 2**61 for row in rows)


def test_epochs_and_seeds_differ():
    stream = IndexPermutation(1000, 0)
    orders = [stream.indices(0, 1000), stream.indices(1000, 1000), IndexPermutation(1000, 1).indices(0, 1000)]
    for i in range(3):
        for j in range(i):
            fixed = sum(a == b for a, b in zip(orders[i], orders[j], strict=True))
            assert fixed < 12
            assert abs(stats.spearmanr(orders[i], orders[j]).statistic) < 0.15


@pytest.mark.parametrize("num_rows", [2, 3, 5, 7, 16, 30])
def test_every_row_is_as_likely_at_every_place(num_rows: int):
    num_epochs = 6000
    orders = np.array(IndexPermutation(num_rows, 11).indices(0, num_rows * num_epochs)).reshape(num_epochs, num_rows)
    counts = np.stack([np.bincount(column, minlength=num_rows) for column in orders.T])
    statistic = float(((counts - num_epochs / num_rows) ** 2).sum() / (num_epochs / num_rows))
    assert stats.chi2.sf(statistic, (num_rows - 1) ** 2) > 1e-4


@pytest.mark.parametrize("num_rows", [3, 4, 5])
def test_every_order_of_a_few_rows_occurs(num_rows: int):
    num_epochs = 12_000
    orders = np.array(IndexPermutation(num_rows, 5).indices(0, num_rows * num_epochs)).reshape(num_epochs, num_rows)
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    num_orders = int(np.prod(range(1, num_rows + 1)))
    assert len(counts) == num_orders
    assert counts.max() < 2 * counts.min() if num_rows < 5 else counts.min() > 0


def test_neighbours_are_unrelated():
    rows = np.array(IndexPermutation(20_000, 9).indices(0, 20_000), dtype=float)
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.03
    halves = np.bincount((rows.reshape(100, 200) < 10_000).sum(1), minlength=201)
    assert halves[60:141].sum() == 100


@pytest.mark.parametrize(
    ("num_rows", "seed", "start", "count", "message"),
    [
        (0, 0, 0, 1, "`num_rows` must be at least 1.* got 0"),
        (2**62, 0, 0, 1, "`num_rows` must be at least 1"),
        (5, -1, 0, 1, "`seed` must lie in .* got -1"),
        (5, 2**64, 0, 1, "`seed` must lie in"),
        (5, 0, -1, 1, "neither is negative; got -1 and 1"),
        (5, 0, 0, -2, "neither is negative; got 0 and -2"),
    ],
)
def test_bad_places_are_refused_with_a_sentence(num_rows: int, seed: int, start: int, count: int, message: str):
    with pytest.raises(ValueError, match=message):
        IndexPermutation(num_rows, seed).indices(start, count)
