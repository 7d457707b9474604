from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from featherlight.data import split_rows

CLASS_SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@settings(deadline=None)
@given(sizes=CLASS_SIZES, fraction=st.floats(0.05, 0.95), seed=st.integers(0, 2**63 - 1), stratify=st.booleans())
def test_a_split_is_disjoint_complete_and_in_proportion(sizes: list[int], fraction: float, seed: int, stratify: bool):
    targets = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    num_valid = round(len(targets) * fraction)
    room = len(targets) - len(sizes) if stratify else len(targets) - 1
    if not 1 <= num_valid <= room:
        with pytest.raises(ValueError, match="too few rows to"):
            split_rows(targets, valid_fraction=fraction, seed=seed, stratify=stratify)
        return
    train, valid = split_rows(targets, valid_fraction=fraction, seed=seed, stratify=stratify)
    assert len(valid) == num_valid
    assert torch.cat([train, valid]).sort().values.tolist() == list(range(len(targets)))
    assert train.tolist() == sorted(train.tolist())
    assert valid.tolist() == sorted(valid.tolist())
    if stratify:
        counts = targets[valid].bincount(minlength=len(sizes)).tolist()
        assert all(count < size for count, size in zip(counts, sizes, strict=True))
        if all(size * (1 - fraction) >= 1 for size in sizes):
            exact = [num_valid * size / len(targets) for size in sizes]
            assert all(abs(count - share) < 1 for count, share in zip(counts, exact, strict=True))


@pytest.mark.parametrize("stratify", [False, True])
def test_the_seed_alone_decides(stratify: bool):
    targets = torch.arange(200) % 4
    before = torch.get_rng_state()

    def split(seed: int) -> Tensor:
        return split_rows(targets, valid_fraction=0.25, seed=seed, stratify=stratify)[1]

    first = split(7)
    assert torch.get_rng_state().equal(before)
    torch.rand(3)
    assert split(7).equal(first)
    assert not split(8).equal(first)
    torch.set_rng_state(before)


@pytest.mark.parametrize("stratify", [False, True])
def test_every_row_validates_equally_often(stratify: bool):
    targets = torch.tensor([0] * 12 + [1] * 8)
    counts = torch.zeros(20)
    for seed in range(2000):
        counts[split_rows(targets, valid_fraction=0.25, seed=seed, stratify=stratify)[1]] += 1
    assert (counts - 500).abs().max() < 5 * (2000 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize(
    ("targets", "fraction", "stratify", "message"),
    [
        (torch.zeros(10), 0.0, False, "`valid_fraction` must lie between 0 and 1.* got 0.0"),
        (torch.zeros(10), 1.0, False, "`valid_fraction` must lie between"),
        (torch.zeros(10), float("nan"), False, "`valid_fraction` must lie between"),
        (torch.zeros(3), 0.1, False, "0.1 of 3 rows leaves 3 to train on and 0 to validate"),
        (torch.zeros(0), 0.5, False, "too few rows to split"),
        (torch.zeros(3), 0.9, False, "leaves 0 to train on and 3"),
        (torch.arange(4), 0.5, True, "the 4 classes can spare only 0"),
        (torch.rand(9), 0.5, True, r"needs class ids \(integers\).* torch.float32.*`stratify=False`"),
    ],
)
def test_bad_splits_are_refused_with_a_sentence(targets: Tensor, fraction: float, stratify: bool, message: str):
    with pytest.raises(ValueError, match=message):
        split_rows(targets, valid_fraction=fraction, seed=0, stratify=stratify)
