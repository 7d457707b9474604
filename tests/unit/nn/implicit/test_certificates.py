"""Certificates against eigenvalues, attacks and what they say where nothing is proven."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.implicit_certificates import Size, measure
from featherlight.nn.implicit import (
    RELU,
    TANH,
    Activation,
    ImplicitLayer,
    Unconstrained,
    output_interval,
    perron_frobenius,
    scaled_system,
    sensitivity,
)

S, I, Y = 20, 6, 4  # noqa: E741


def system(value: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A model whose |A| has that Perron-Frobenius value, with states of very different scales."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    a, scales = normal(S, S), torch.logspace(-2, 2, S, dtype=torch.float64)[torch.randperm(S, generator=generator)]
    a = a * scales[:, None] / scales
    a = a * value / torch.linalg.eigvals(a.abs()).abs().max()
    return a, normal(S, I) * scales[:, None], normal(Y, S) / scales, normal(Y, I)


@pytest.mark.parametrize("value", [1e-3, 0.6, 0.95, 3.0])
def test_the_value_and_the_scaling_that_reaches_it(value: float) -> None:
    a = system(value)[0]
    found = perron_frobenius(a)
    assert found.lower <= value * (1 + 1e-12)
    assert value * (1 - 1e-12) <= found.upper
    assert found.upper - found.lower < 1e-9 * value
    assert found.well_posed == (value < 1)
    s = found.scaling
    assert float((a / s[:, None] * s).abs().sum(1).max()) <= found.upper
    assert found.upper < found.norm


def test_matrices_in_parts_have_bounds_too() -> None:
    a = torch.ones(30, 30, dtype=torch.float64).triu(1)
    assert perron_frobenius(a).upper < 1
    assert perron_frobenius(torch.zeros(3, 3)).upper == 0
    apart = (
        torch.block_diag(torch.full((3, 3), 0.1), torch.full((2, 2), 0.3), torch.zeros(1, 1)).double().round(decimals=1)
    )
    found = perron_frobenius(apart)
    assert found.lower <= 0.6 + 1e-12
    assert 0.6 - 1e-12 <= found.upper < 0.61
    assert found.lower > 0.59


def test_a_scaled_relu_model_is_the_same_model() -> None:
    a, b, c, d = system(0.9)
    value = perron_frobenius(a)
    scaled = ImplicitLayer.from_matrices(*scaled_system(a, b, c, value.scaling), d)
    plain = ImplicitLayer.from_matrices(a, b, c, d, well_posed=Unconstrained())
    u = torch.randn(7, I, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(scaled(u).values, plain(u).values)
    assert float(scaled.A.detach().abs().sum(1).max()) < 0.91


def attack(layer: ImplicitLayer, u: Tensor, radius: float, output: int, sign: int) -> Tensor:
    """Projected gradient steps by the sign, from the center, towards one end of an output."""
    point = u.clone()
    for _ in range(8):
        point.requires_grad_()
        gradient = torch.autograd.grad(sign * layer(point).values[:, output].sum(), point)[0]
        point = (point + radius / 2 * gradient.sign()).clamp(u - radius, u + radius).detach()
    return layer(point).values[:, output].detach()


@pytest.mark.parametrize("activation", [RELU, TANH])
def test_no_attack_leaves_the_interval_which_is_tighter_than_norms(activation: Activation) -> None:
    a, b, c, d = system(0.7, seed=3)
    layer = ImplicitLayer.from_matrices(a, b, c, d, activation=activation, well_posed=Unconstrained())
    for p in layer.parameters():
        p.requires_grad_(False)
    proven, radius = sensitivity(a, b, c, d), 0.1
    u = torch.randn(40, I, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    center = layer(u)
    bounds = output_interval(proven, activation, u, center.states, radius)
    assert proven.norm <= proven.norm_product
    for output in range(Y):
        high, low = (attack(layer, u, radius, output, sign) for sign in (1, -1))
        assert (high <= bounds.high[:, output]).all()
        assert (low >= bounds.low[:, output]).all()
        assert (high > center.values[:, output]).all()


def test_the_matrix_is_an_upper_bound_and_a_close_one() -> None:
    a, b, c, d = system(0.95)
    exact = c.abs() @ torch.linalg.inv(torch.eye(S, dtype=torch.float64) - a.abs()) @ b.abs() + d.abs()
    found = sensitivity(a, b, c, d).matrix
    assert (found >= exact * (1 - 1e-13)).all()
    torch.testing.assert_close(found, exact, rtol=1e-8, atol=0)


def test_the_interval_is_tight_for_a_model_without_signs() -> None:
    a, b, c, d = (m.abs() for m in system(0.8))
    layer = ImplicitLayer.from_matrices(a, b, c, d, well_posed=Unconstrained())
    u = torch.rand(5, I, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 1
    bounds = output_interval(sensitivity(a, b, c, d), RELU, u, layer(u).states.detach(), 0.5)
    torch.testing.assert_close(layer(u + 0.5).values.detach(), bounds.high, rtol=1e-8, atol=0)
    torch.testing.assert_close(layer(u - 0.5).values.detach(), bounds.low, rtol=1e-8, atol=0)


def test_states_that_are_not_exact_widen_the_interval_enough() -> None:
    a, b, c, d = system(0.7, seed=3)
    layer = ImplicitLayer.from_matrices(a, b, c, d, well_posed=Unconstrained())
    u = torch.randn(10, I, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    exact = layer(u)
    rough = exact.states.detach() * 1.01
    bounds = output_interval(sensitivity(a, b, c, d), RELU, u, rough, 0.0)
    assert ((bounds.low <= exact.values) & (exact.values <= bounds.high)).all()
    close = output_interval(sensitivity(a, b, c, d), RELU, u, exact.states, 0.0)
    assert float((close.high - close.low).max()) < 1e-8


def test_no_attack_on_real_images_leaves_its_interval(real_data: Path) -> None:
    """A short form of `benchmarks/implicit_certificates.py`."""
    (found,) = measure(Size(states=20, steps=60, images=30, pushes=4), radii=(8 / 255,))
    assert found["violations"] == 0
    assert found["attacks"] == 2 * 30 * 10
    assert found["norm_product_over_half_width"]["min"] > 1
    assert found["half_width_over_attack"]["min"] > 1
    assert found["certified"] <= found["robust"] <= found["accuracy"]
    assert found["accuracy"] > 0.5


def test_bad_input_gets_a_sentence() -> None:
    a, b, c, d = system(1.25)
    with pytest.raises(ValueError, match=r"between 1\.25 and 1\.25, and must be below 1.*by less than 0\.8"):
        sensitivity(a, b, c, d)
    with pytest.raises(ValueError, match=r"A must be a square matrix"):
        perron_frobenius(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"nan or inf"):
        perron_frobenius(torch.full((2, 2), float("nan")))
    with pytest.raises(ValueError, match=r"got \(20, 20\), \(20, 6\), \(20, 4\) and \(4, 6\)"):
        sensitivity(a, b, c.T, d)
    with pytest.raises(ValueError, match=r"`scaling` must be positive"):
        scaled_system(a, b, c, torch.zeros(S))
    proven = sensitivity(*system(0.5))
    with pytest.raises(ValueError, match=r"`radius` must be at least 0"):
        output_interval(proven, RELU, torch.zeros(1, I), torch.zeros(1, S), -0.1)
