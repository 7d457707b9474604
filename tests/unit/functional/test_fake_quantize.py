"""Fake quantization against a loop over single numbers, with both kinds of gradients."""

import math

import pytest
import torch

from featherlight.functional import fake_quantize, fake_quantize_learned, grid_codes, symmetric_high
from tests.oracles.slow_quantizer import rounded


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(
    ("scale", "zero_point", "low", "high"), [(0.25, 0.0, 0, 255), (0.5, 7.0, 0, 15), (0.3, 0.0, -7, 7)]
)
def test_values_and_gradients_are_those_of_the_loop(learned, scale, zero_point, low, high):
    ties = torch.arange(-20, 20, dtype=torch.float64) * scale / 2
    x = torch.cat([ties, torch.randn(60, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 40 * scale])
    x.requires_grad_()
    unit = torch.tensor(scale, dtype=torch.float64, requires_grad=learned)
    call = fake_quantize_learned if learned else fake_quantize
    y = call(x, unit, zero_point, low, high)
    weights = torch.linspace(-1, 2, len(x), dtype=torch.float64)
    (y * weights).sum().backward()
    slow = [rounded(one, scale, zero_point, low, high) for one in x.tolist()]
    assert y.tolist() == [value for value, _, _ in slow]
    assert x.grad is not None
    assert x.grad.tolist() == [by_x * weight for (_, by_x, _), weight in zip(slow, weights.tolist(), strict=True)]
    if learned:
        damping = 1 / math.sqrt(len(x) * (high - zero_point))
        expected = sum(by_s * weight for (_, _, by_s), weight in zip(slow, weights.tolist(), strict=True)) * damping
        assert unit.grad is not None
        assert float(unit.grad) == pytest.approx(expected, rel=1e-12)


def test_scales_of_channels_each_get_their_own_gradient():
    x = torch.randn(3, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scale = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64).view(3, 1, 1).requires_grad_()
    fake_quantize_learned(x, scale, 0.0, -3, 3).sum().backward()
    for row, unit, grad in zip(x, scale.detach().flatten().tolist(), scale.grad.flatten().tolist(), strict=True):
        slopes = [rounded(one, unit, 0.0, -3, 3)[2] for one in row.flatten().tolist()]
        assert grad == pytest.approx(sum(slopes) / math.sqrt(len(slopes) * 3), rel=1e-12)


def test_codes_are_whole_and_halves_go_to_the_even_neighbour():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 300.0])
    assert grid_codes(x, torch.ones(()), 10.0, 0, 255).tolist() == [10, 12, 12, 10, 8, 255]


def test_signed_grids_are_symmetric_and_have_two_bits_or_more():
    assert [symmetric_high(bits) for bits in (8, 4, 2)] == [127, 7, 1]
    with pytest.raises(ValueError, match="`bits` of weights must be from 2 to 8; got 1"):
        symmetric_high(1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_rounded_in_float32_and_stay_halves(dtype):
    x = (torch.randn(200, generator=torch.Generator().manual_seed(3)) * 20).to(dtype).requires_grad_()
    scale = torch.tensor(0.173)
    for call in (fake_quantize, fake_quantize_learned):
        y = call(x, scale, 100.0, 0, 255)
        assert y.dtype == dtype
        assert torch.equal(y, call(x.float(), scale, 100.0, 0, 255).to(dtype))
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.dtype == dtype
