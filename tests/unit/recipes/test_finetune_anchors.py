"""The rows of anchors and of the steps between."""

import pytest

from featherlight.data import IndexPermutation
from featherlight.recipes.finetune.anchors import Anchors


def test_anchors_and_small_batches_take_the_rows_of_the_stream_in_turn() -> None:
    sampler = IndexPermutation(100, seed=3)
    anchors = Anchors(every=4, large=30, small=7, sampler=sampler)
    rows = [row for step in range(9) for row in anchors.rows(step)]
    assert rows == sampler.indices(0, len(rows))
    assert [len(anchors.rows(step)) for step in range(9)] == [30, 7, 7, 7, 30, 7, 7, 7, 30]
    assert [step for step in range(9) if anchors.is_anchor(step)] == [0, 4, 8]
    assert anchors.text() == "30 rows, every 4 steps"


@pytest.mark.parametrize("large", [None, 50, 10_000])
def test_an_anchor_of_all_rows_leaves_the_stream_to_the_small_batches(large: int | None) -> None:
    sampler = IndexPermutation(50, seed=3)
    anchors = Anchors(every=3, large=large, small=5, sampler=sampler)
    assert all(sorted(anchors.rows(step)) == list(range(50)) for step in (0, 3, 6))
    between = [row for step in (1, 2, 4, 5) for row in anchors.rows(step)]
    assert between == sampler.indices(0, 20)
    assert anchors.takes_all
    assert anchors.num_rows == 50
    assert anchors.text() == "all 50 rows, every 3 steps"


def test_with_an_anchor_at_every_step_all_are_large() -> None:
    anchors = Anchors(every=1, large=4, small=2, sampler=IndexPermutation(9, seed=0))
    assert [len(anchors.rows(step)) for step in range(3)] == [4, 4, 4]
    assert anchors.text() == "4 rows, every step"
