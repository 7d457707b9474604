"""Mixtures of codes: the best pairs, the laws of the strength, gradients, grids, hard codes and bad input."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from featherlight.nn.vector_quantizers import (
    Codebook,
    CodebookUsage,
    Codes,
    Exact,
    Relaxed,
    SoftConvexQuantizer,
    Sparse,
    StraightThrough,
    WeightGrid,
    nearest_codes,
)
from featherlight.nn.vector_quantizers.mixing import Mixing
from featherlight.nn.vector_quantizers.soft_convex import relative_strength
from featherlight.nn.vector_quantizers.sparse_search import Search, search_mixtures
from featherlight.solvers.simplex_qp import FrankWolfe, solve_simplex_least_squares


def rows(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread


def make(num_codes: int = 12, dim: int = 3, *, seed: int = 1, **options: Any) -> SoftConvexQuantizer:
    layer = SoftConvexQuantizer(Codebook(num_codes, dim, learnable=True, init=None), **options).double().eval()
    with torch.no_grad():
        layer.codebook.weight.copy_(rows(num_codes, dim, seed=seed))
    return layer


def objectives(z_NF: Tensor, codes_KF: Tensor, strength: float, indices: Tensor, weights: Tensor) -> Tensor:
    """||z - C' p||^2 + strength ||p - e_nearest||^2, written out."""
    shares = torch.zeros(len(z_NF), len(codes_KF), dtype=z_NF.dtype).scatter_add(1, indices.clamp(min=0), weights)
    prior = torch.nn.functional.one_hot(torch.cdist(z_NF, codes_KF).argmin(1), len(codes_KF))
    return (z_NF - shares @ codes_KF).square().sum(1) + strength * (shares - prior).square().sum(1)


@pytest.mark.parametrize("units", [None, 3])
@pytest.mark.parametrize("strength", [1e-6, 0.5, 50.0])
def test_with_all_starts_the_pair_is_the_best_of_all(strength: float, units: int | None) -> None:
    z, codes = rows(60, 3), rows(9, 3, seed=1) + 20
    z = z + 20
    pull = torch.tensor(strength, dtype=torch.float64)
    prior, indices, weights = search_mixtures(z, codes, pull, Search(2, 9, units))
    assert torch.equal(prior, nearest_codes(z, codes))
    if units is not None:
        weights = WeightGrid(bits=2).nearest(weights)
    steps = torch.linspace(0, 1, 4 if units else 41, dtype=torch.float64)
    least = torch.full((60,), torch.inf, dtype=torch.float64)
    for pair_of, t in itertools.product(itertools.combinations(range(9), 2), steps):
        pair = torch.tensor([pair_of]).expand(60, 2)
        shares = torch.stack((1 - t, t)).expand(60, 2)
        least = torch.minimum(least, objectives(z, codes, strength, pair, shares))
    found = objectives(z, codes, strength, indices, weights)
    if units is None:
        assert bool((found <= least + 1e-12).all())
    else:
        torch.testing.assert_close(found, least, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("k", [3, 8])
def test_shares_are_the_best_for_their_codes_and_beat_greedy_slopes(k: int) -> None:
    z, codes, strength = rows(200, 6), rows(40, 6, seed=1), 0.05
    pull = torch.tensor(strength, dtype=torch.float64)
    prior, indices, weights = search_mixtures(z, codes, pull, Search(k, 4))
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(1), torch.ones(200, dtype=torch.float64))
    assert torch.equal(weights, weights.sort(1, descending=True).values)
    assert bool(((weights == 0) == (indices < 0)).all())
    for row in range(0, 200, 10):
        used = indices[row][indices[row] >= 0]
        if (used == prior[row]).any():
            own = (used == prior[row]).nonzero()[:, 0]
            best = solve_simplex_least_squares(z[row : row + 1], codes[used], strength, prior_N=own)
            torch.testing.assert_close(weights[row][: len(used)] @ codes[used], best.values_NF[0], rtol=1e-6, atol=1e-8)
    found = objectives(z, codes, strength, indices, weights)
    slopes = solve_simplex_least_squares(z, codes, strength, method=FrankWolfe(max_codes=k))
    assert found.mean() < objectives(z, codes, strength, slopes.indices_Nk, slopes.weights_Nk).mean()


def test_weights_on_a_grid_are_stored_and_read_back() -> None:
    layer = make(mixing=Sparse(3), weight_grid=WeightGrid(bits=3), channel_axis=1)
    x = rows(4, 3, 5)
    mask = rows(4, 5, seed=3) > -0.5
    values, codes, _ = layer(x, mask=mask)
    assert codes.weights is not None
    units = codes.weights * 7
    torch.testing.assert_close(units, units.round(), rtol=0, atol=1e-12)
    assert torch.equal(codes.indices >= 0, codes.weights > 0)
    assert torch.equal((codes.indices >= 0).any(-1), mask)
    torch.testing.assert_close(layer.codes_to_values(codes), values, rtol=1e-12, atol=1e-12)
    assert layer.bits_per_position == math.log2(WeightGrid(bits=3).num_points(12, 3))
    usage = CodebookUsage(12, dim=3, bits_per_position=layer.bits_per_position)
    usage.update(codes, latents=x, values=values, mask=mask, channel_axis=1)
    assert 1 < usage.compute().support_size <= 3
    assert usage.compute().positions == int(mask.sum())


@pytest.mark.parametrize("mixing", [Exact(), Sparse(2), Sparse(4)], ids=str)
@pytest.mark.parametrize("grid", [None, WeightGrid(bits=4)], ids=str)
def test_gradients_of_values_are_true(mixing: Mixing, grid: WeightGrid | None) -> None:
    layer = make(8, 3, mixing=mixing, weight_grid=grid, strength=0.05)
    x = rows(5, 3, spread=0.7).requires_grad_()
    if grid is None:
        inputs = (x, layer.codebook.weight.detach().requires_grad_())

        def values(x: Tensor, weight: Tensor) -> Tensor:
            return functional_call(layer, {"codebook.weight": weight}, (x,)).values

        assert torch.autograd.gradcheck(values, inputs)
        return
    # straight through the rounding: the gradient of the shares as they were, at the codes as they are
    unrounded = make(8, 3, mixing=mixing, strength=0.05)
    up = rows(5, 3, seed=8)
    result, plain = layer(x), unrounded(x)
    assert not torch.equal(result.values, plain.values)
    grads = [torch.autograd.grad((one.values * up).sum(), x)[0] for one in (result, plain)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


def test_straight_through_changes_the_gradient_of_vectors_alone() -> None:
    true, passed = make(mixing=Sparse(3)), make(mixing=Sparse(3), gradient=StraightThrough())
    up, grads = rows(7, 3, seed=5), []
    for layer in (true, passed):
        x = rows(7, 3).requires_grad_()
        result = layer(x)
        grads.append([result.values, *torch.autograd.grad((result.values * up).sum(), (x, layer.codebook.weight))])
    assert torch.equal(grads[1][1], up)
    assert not torch.allclose(grads[0][1], up, atol=0.1)
    torch.testing.assert_close(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[0][2], grads[1][2])


def test_hard_codes_are_the_nearest_ones() -> None:
    layer = make(mixing=Sparse(2))
    layer.hard = True
    x = rows(2, 9, 3).requires_grad_()
    values, codes, _ = layer(x)
    expected = torch.cdist(x.detach().flatten(0, 1), layer.codebook.weight).argmin(1).view(2, 9)
    assert torch.equal(codes.indices, expected)
    assert codes.weights is None
    assert torch.equal(layer.codes_to_values(codes), values)
    assert layer.bits_per_position == math.log2(12)
    assert torch.equal(torch.autograd.grad(values.sum(), x)[0], torch.ones_like(x))


def test_the_loss_pulls_both_ways_and_only_in_training() -> None:
    layer = make(mixing=Sparse(2), commitment=0.5, balancing=None).train()
    x = rows(6, 3).requires_grad_()
    mask = torch.tensor([True, True, False, True, True, False])
    result = layer(x, mask=mask)
    error = (x - result.values.detach())[mask].square().mean()
    assert result.aux_loss.item() == pytest.approx(1.5 * error.item(), rel=1e-6)
    (grad,) = torch.autograd.grad(result.aux_loss, x)
    torch.testing.assert_close(grad[mask], torch.autograd.grad(0.5 * error, x)[0][mask], rtol=1e-6, atol=1e-9)
    assert bool((grad[~mask] == 0).all())
    assert layer.eval()(x).aux_loss == 0


def test_the_published_relaxation_lies_between_the_nearest_code_and_the_exact_mixture() -> None:
    x = rows(100, 3)
    errors = []
    for mixing in (Exact(), Relaxed()):
        layer = make(mixing=mixing, strength=0.1)
        values, codes, _ = layer(x)
        assert codes.weights is not None
        torch.testing.assert_close(codes.weights.sum(1), torch.ones(100, dtype=torch.float64))
        assert codes.indices.shape == (100, *layer.code_shape)
        torch.testing.assert_close(layer.codes_to_values(codes), values)
        errors.append((values - x).square().sum().item())
    nearest = float(torch.cdist(x, make().codebook.weight.detach()).square().min(1).values.sum())
    assert errors[0] < errors[1] < nearest


def test_strength_is_relative_to_codes_and_has_a_floor() -> None:
    codes = rows(5, 3)
    spread = sum((codes[k] - codes.mean(0)).square().sum() for k in range(5)) / 5
    assert float(relative_strength(0.3, codes)) == pytest.approx(float(0.3 * spread))
    alike = make(4, 3, mixing=Sparse(2))
    with torch.no_grad():
        alike.codebook.weight.fill_(0.5)
    x = rows(6, 3).requires_grad_()
    values = alike(x).values
    assert torch.allclose(values, torch.full_like(values, 0.5))
    grads = torch.autograd.grad(values.square().sum(), (x, alike.codebook.weight))
    assert all(bool(grad.isfinite().all()) for grad in grads)


@pytest.mark.parametrize("mixing", [Exact(), Relaxed(), Sparse(3)], ids=str)
def test_vectors_and_codes_of_any_scale_mix_alike(mixing: Mixing) -> None:
    plain = make(mixing=mixing).float()
    x = rows(40, 3).float()
    for scale, hard in itertools.product((1e-19, 1e19), (False, True)):
        scaled = make(mixing=mixing).float()
        with torch.no_grad():
            scaled.codebook.weight.mul_(scale)
        plain.hard = scaled.hard = hard
        expected, found = plain(x), scaled(x * scale)
        assert torch.equal(found.codes.indices, expected.codes.indices)
        torch.testing.assert_close(found.values / scale, expected.values)
    plain.hard = False
    with pytest.raises(ValueError, match=r"vector at position \(4,\) is so large beside the codes .* 1 positions"):
        plain(x.index_fill(0, torch.tensor(4), 1e25))


@pytest.mark.parametrize("mixing", [Exact(), Sparse(3)], ids=str)
def test_torch_func_gives_the_gradients_of_autograd(mixing: Mixing) -> None:
    layer = make(mixing=mixing).train()
    x, weight = rows(20, 3).requires_grad_(), layer.codebook.weight

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        result = functional_call(layer, {"codebook.weight": weight}, (x,))
        return result.values.square().sum() + result.aux_loss

    expected = torch.autograd.grad(loss(x, weight), (x, weight))
    found = torch.func.grad(loss, argnums=(0, 1))(x.detach(), weight.detach())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_bad_input_gets_a_sentence() -> None:
    codebook = Codebook(4, 3, learnable=True)
    for strength in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"`strength` must be above 0 and finite; got {strength}"):
            SoftConvexQuantizer(codebook, strength=strength)
    with pytest.raises(ValueError, match=r"learn by gradients.*`learnable=False`"):
        SoftConvexQuantizer(Codebook(4, 3))
    with pytest.raises(ValueError, match="one book; got a codebook with `num_books=2`"):
        SoftConvexQuantizer(Codebook(4, 3, learnable=True, num_books=2))
    with pytest.raises(ValueError, match="`commitment` must not be negative"):
        SoftConvexQuantizer(codebook, commitment=-0.1)
    with pytest.raises(ValueError, match="cannot mix 5 different codes of a codebook of 4"):
        SoftConvexQuantizer(codebook, mixing=Sparse(5))
    with pytest.raises(ValueError, match=r"`num_mixed` must be at least 2 codes.*got 1"):
        Sparse(1)
    with pytest.raises(ValueError, match=r"`num_starts` must be at least 1.*got 0"):
        Sparse(2, num_starts=0)
    layer = make()
    with pytest.raises(ValueError, match=r"each index must have a weight; got indices of shape \(2, 3\)"):
        layer.codes_to_values(Codes(torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 2)))
