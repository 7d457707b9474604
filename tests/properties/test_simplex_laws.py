"""What holds for every simplex-constrained least-squares problem: scale, shift, order, and both ends of the strength."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from featherlight.solvers import FrankWolfe, SimplexMethod, SimplexStatus, solve_simplex_least_squares

SEEDS = st.integers(0, 10_000)
SHAPES = st.tuples(st.integers(1, 20), st.integers(2, 30), st.integers(1, 8))
PARTS = st.floats(1e-3, 10.0)


def drawn(seed: int, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    num_rows, num_codes, dim = shape
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(num_rows, dim, generator=generator, dtype=torch.float64)
    return 1.5 * z, torch.randn(num_codes, dim, generator=generator, dtype=torch.float64)


def shares(z: Tensor, codebook: Tensor, strength: float, **options: SimplexMethod) -> Tensor:
    solution = solve_simplex_least_squares(z, codebook, strength, **options)
    empty = z.new_zeros(len(z), len(codebook))
    return empty.scatter_add(1, solution.indices_Nk.clamp(min=0), solution.weights_Nk)


@settings(max_examples=25)
@given(SEEDS, SHAPES, PARTS, st.floats(-6, 6), st.floats(-3, 3))
def test_units_and_origin_do_not_matter(
    seed: int, shape: tuple[int, int, int], part: float, power: float, shift: float
) -> None:
    z, codebook = drawn(seed, shape)
    scale = 10**power
    plain = shares(z, codebook, part)
    scaled = shares(scale * z, scale * codebook, part * scale**2)
    torch.testing.assert_close(scaled, plain, atol=1e-6, rtol=0)
    torch.testing.assert_close(shares(z + shift, codebook + shift, part), plain, atol=1e-6, rtol=0)


@settings(max_examples=25)
@given(SEEDS, SHAPES, PARTS)
def test_shares_are_on_the_simplex_and_prices_level(seed: int, shape: tuple[int, int, int], part: float) -> None:
    z, codebook = drawn(seed, shape)
    solution = solve_simplex_least_squares(z, codebook, part)
    assert (solution.weights_Nk >= 0).all()
    torch.testing.assert_close(solution.weights_Nk.sum(1), torch.ones(len(z), dtype=torch.float64), atol=1e-12, rtol=0)
    assert (solution.weights_Nk.diff(dim=1) <= 0).all()
    assert ((solution.indices_Nk >= 0) == (solution.weights_Nk > 0)).all()
    p, prior = shares(z, codebook, part), torch.cdist(z, codebook).argmin(1)
    gradient = (p @ codebook - z) @ codebook.T + part * (p - torch.nn.functional.one_hot(prior, len(codebook)))
    level = (gradient * p).sum(1, keepdim=True)
    assert (gradient >= level - 1e-9).all()
    assert ((gradient - level)[p > 0].abs() <= 1e-9).all()
    assert (solution.status_N == SimplexStatus.CONVERGED).all()


@settings(max_examples=15)
@given(SEEDS, SHAPES, PARTS)
def test_the_order_of_rows_and_codes_does_not_matter(seed: int, shape: tuple[int, int, int], part: float) -> None:
    z, codebook = drawn(seed, shape)
    generator = torch.Generator().manual_seed(seed)
    rows, codes = torch.randperm(len(z), generator=generator), torch.randperm(len(codebook), generator=generator)
    plain = shares(z, codebook, part)
    torch.testing.assert_close(shares(z[rows], codebook[codes], part), plain[rows][:, codes], atol=1e-8, rtol=0)


@settings(max_examples=25)
@given(SEEDS, SHAPES)
def test_the_path_runs_from_the_nearest_code_to_the_hull(seed: int, shape: tuple[int, int, int]) -> None:
    z, codebook = drawn(seed, shape)
    nearest = codebook[torch.cdist(z, codebook).argmin(1)]
    previous = None
    for part in (1e6, 1e2, 1.0, 1e-2, 1e-4, 1e-7):
        values = solve_simplex_least_squares(z, codebook, part).values_NF
        error = (z - values).square().sum(1)
        if previous is None:
            torch.testing.assert_close(values, nearest, atol=1e-3, rtol=0)
        else:
            assert (error <= previous + 1e-9).all(), "the error grows as the strength falls"
        previous = error
    # At the end, the values are the projection on the hull: no code lies further along the residual.
    assert previous is not None
    ahead = ((codebook[None] - values[:, None]) * (z - values)[:, None]).sum(2)
    assert (ahead <= 1e-5 * (1 + z.square().sum(1, keepdim=True))).all()


@settings(max_examples=15)
@given(SEEDS, SHAPES, PARTS, st.floats(0.01, 100.0))
def test_nearby_strengths_have_nearby_shares(seed: int, shape: tuple[int, int, int], part: float, ratio: float) -> None:
    """||p(s) - p(t)|| <= sqrt(2) |s - t| / max(s, t): the program is strongly convex by `strength`."""
    z, codebook = drawn(seed, shape)
    near = part * (1 + 1e-3 * ratio)
    moved = (shares(z, codebook, part) - shares(z, codebook, near)).norm(dim=1)
    assert (moved <= 2**0.5 * (near - part) / near + 1e-9).all()


@settings(max_examples=15)
@given(SEEDS, SHAPES, PARTS)
def test_more_codes_never_cost_more(seed: int, shape: tuple[int, int, int], part: float) -> None:
    z, codebook = drawn(seed, shape)
    prior = torch.nn.functional.one_hot(torch.cdist(z, codebook).argmin(1), len(codebook))
    costs = []
    for max_codes in range(1, min(8, len(codebook)) + 1):
        p = shares(z, codebook, part, method=FrankWolfe(max_codes=max_codes))
        costs.append((z - p @ codebook).square().sum(1) + part * (p - prior).square().sum(1))
    exact = shares(z, codebook, part)
    costs.append((z - exact @ codebook).square().sum(1) + part * (exact - prior).square().sum(1))
    assert (torch.stack(costs).diff(dim=0) <= 1e-9).all()
