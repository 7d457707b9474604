"""Bits of levels: what the archive's coder really takes, whole in their parts, and differentiable in shares."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from featherlight.archive import Archive, write_archive
from featherlight.functional import EntropyModel, level_contexts, soft_assign


def levels(*shape: int, keep: float = 0.08, reach: int = 7) -> Tensor:
    """Sparse levels in columns of different fullness."""
    g = torch.Generator().manual_seed(0)
    columns = torch.rand(shape[-1], generator=g) ** 2 * 3 * keep
    sizes = torch.randint(-reach, reach + 1, shape, generator=g)
    return sizes * (torch.rand(*shape, generator=g) < columns)


@pytest.mark.parametrize("shape", [(120, 250), (16, 8, 5, 5)])
def test_the_estimate_is_near_what_the_coder_takes(shape: tuple[int, ...], tmp_path: Path) -> None:
    pytest.importorskip("numba")
    one = levels(*shape, keep=0.1)
    write_archive(tmp_path / "a.feather", {"w": one * 0.5 + 0.0})
    entry = Archive(tmp_path / "a.feather").entries["w"]
    assert float(EntropyModel.fit(one).bits(one).sum()) / 8 == pytest.approx(entry.num_bytes - 17, rel=0.1)


def test_contexts_say_what_stands_before() -> None:
    one = levels(9, 14, keep=0.3)
    full, mean = (one != 0).double(), float((one != 0).double().mean())

    def fullness(before: Tensor) -> int:
        share = (float(before.sum()) + 4 * mean) / (len(before) + 4)
        return round(min(max(torch.tensor(share / mean).log2().round().item(), -3), 2)) + 3

    for r in range(9):
        for c in range(14):
            neighbours = int(full[r, max(c - 2, 0) : c].sum())
            expected = (neighbours * 6 + fullness(full[:r, c])) * 6 + fullness(full[r, :c])
            assert int(level_contexts(one)[r, c]) == expected, (r, c)


def test_candidates_and_expectations_fit_the_bits() -> None:
    one, candidates = levels(30, 40), torch.arange(-20, 21)
    model = EntropyModel.fit(one, reach=20)
    table = model.candidate_bits(one, candidates)
    assert torch.equal(table.gather(-1, (one + 20)[..., None])[..., 0], model.bits(one))
    assert EntropyModel.fitted_bits(one) == pytest.approx(float(EntropyModel.fit(one).bits(one).sum()), rel=1e-5)
    assert bool((table[..., 20] < table[..., 21:].amin(-1)).all()), "zero is cheapest where most weights are zero"
    shares = soft_assign(torch.randn(30, 40), torch.randn(41), temperature=0.3).requires_grad_()
    bits = model.expected_bits(shares, one, candidates)
    torch.testing.assert_close(bits, (shares * table).sum(-1), rtol=1e-4, atol=1e-4)
    (slope,) = torch.autograd.grad(bits.sum(), shares)
    torch.testing.assert_close(slope - slope[..., :1], table - table[..., :1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 0, 2), (4, 3, 2)])
def test_any_shape_has_bits(shape: tuple[int, ...]) -> None:
    one = torch.zeros(shape, dtype=torch.int64)
    assert EntropyModel.fit(one).bits(one).shape == shape
    assert EntropyModel.fitted_bits(one) == pytest.approx(float(EntropyModel.fit(one).bits(one).sum()))


def test_wrong_levels_get_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"must be integers.*got torch.float32"):
        EntropyModel.fit(torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"within -7 and 7.*got the size 9"):
        EntropyModel.fit(levels(30, 30)).bits(torch.full((30, 30), 9))
    with pytest.raises(ValueError, match="`temperature` must be above 0"):
        soft_assign(torch.zeros(3), torch.zeros(2), temperature=0.0)
