"""Nearest points of the grid against all of them, the straight-through gradient, and how many points there are."""

import itertools

import pytest
import torch

from featherlight.nn.vector_quantizers import WeightGrid


def all_points(units: int, k: int) -> torch.Tensor:
    rows = [row for row in itertools.product(range(units + 1), repeat=k) if sum(row) == units]
    return torch.tensor(rows, dtype=torch.float64) / units


@pytest.mark.parametrize(("bits", "k"), [(2, 2), (2, 4), (3, 3), (3, 5), (5, 2)])
def test_no_point_of_the_grid_is_nearer(bits: int, k: int) -> None:
    grid = WeightGrid(bits=bits)
    weights = torch.distributions.Dirichlet(torch.full((k,), 0.7, dtype=torch.float64)).sample((200,))
    weights[:50, 0] = 0
    weights[:50] /= weights[:50].sum(1, keepdim=True)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        rounded = grid.nearest(weights.to(dtype)).double()
        least = torch.cdist(weights, all_points(grid.units, k)).min(1).values
        assert torch.allclose((rounded - weights).norm(dim=1), least, atol=tolerance)
        assert torch.allclose(rounded * grid.units, (rounded * grid.units).round(), atol=tolerance * grid.units)
        assert torch.allclose(rounded.sum(1), torch.ones(200, dtype=torch.float64), atol=tolerance)
        assert (rounded[:50, 0] == 0).all()
        assert torch.equal(grid.nearest(rounded.to(dtype)).double(), rounded)


def test_long_rows_and_short_rows_are_rounded_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    short = torch.rand(100, 8, generator=generator).round(decimals=1)
    short = short / short.sum(1, keepdim=True).clamp(min=0.1)
    long = torch.nn.functional.pad(short, (0, 4))
    assert torch.equal(WeightGrid(bits=4).nearest(long)[:, :8], WeightGrid(bits=4).nearest(short))


def test_gradient_is_straight_through_and_masked_rows_stay_zero() -> None:
    weights = torch.tensor([[0.3, 0.7], [0.0, 0.0]], requires_grad=True)
    rounded = WeightGrid(bits=2).nearest(weights)
    assert torch.allclose(rounded, torch.tensor([[1 / 3, 2 / 3], [0.0, 0.0]]))
    (grad,) = torch.autograd.grad(rounded, weights, torch.tensor([[2.0, 3.0], [4.0, 5.0]]))
    assert torch.equal(grad, torch.tensor([[2.0, 3.0], [4.0, 5.0]]))


def test_every_mixture_is_counted_once() -> None:
    for bits, codes, k in ((2, 5, 2), (2, 4, 4), (3, 4, 3)):
        grid = WeightGrid(bits=bits)
        distinct = [row for row in all_points(grid.units, codes).tolist() if sum(w > 0 for w in row) <= k]
        assert grid.num_points(codes, k) == len(distinct)
    assert WeightGrid(bits=2).num_points(128, 2) == 2**14


@pytest.mark.parametrize("bits", [1, 6])
def test_bits_out_of_range_get_a_sentence(bits: int) -> None:
    with pytest.raises(ValueError, match=f"must be 2, 3, 4 or 5; got {bits}"):
        WeightGrid(bits=bits)
