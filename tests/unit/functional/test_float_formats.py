"""Formats of few bits against the list of all their numbers."""

import math

import numpy as np
import pytest
import torch

from featherlight.functional import FORMATS, BlockFormat, round_to
from featherlight.functional.float_formats import BF16, E2M1, E4M3, E5M2, FP16, FloatFormat
from tests.oracles.float_formats import blocks, nearest, numbers

SMALL = [E4M3, E5M2, E2M1]
ALL = [FP16, BF16, *SMALL]


def probes(format: FloatFormat) -> torch.Tensor:
    """All numbers of a format, the middles between neighbours, and what lies just off both; beyond the end as well."""
    table = numbers(format.name)
    beyond = table[-1] + (table[-1] - table[-2]) * np.array([0.25, 0.5, 0.75, 1, 4])
    ends = np.concatenate((table, (table[1:] + table[:-1]) / 2, beyond[beyond < 3.4e38]))
    at = torch.from_numpy(ends).float().double()
    off = torch.cat([torch.nextafter(at.float(), torch.tensor(end)).double() for end in (0.0, math.inf)])
    found = torch.cat((at, off, torch.tensor([math.inf, math.nan, 2.0**-149])))
    return torch.cat((found, -found))


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(one.signbit() | one.isnan(), other.signbit() | other.isnan())


@pytest.mark.parametrize("format", ALL, ids=lambda one: one.name)
def test_every_number_and_every_tie_is_rounded_as_by_looking_for_the_nearest(format: FloatFormat) -> None:
    assert numbers(format.name)[[1, -1]].tolist() == [format.smallest, format.largest]
    x = probes(format)
    expected = torch.from_numpy(nearest(x.numpy(), format.name))
    same(round_to(x, format), expected)
    same(round_to(x.float(), format), expected)
    same(format.saturate(x.float()), torch.from_numpy(nearest(x.numpy(), format.name, saturate=True)))


@pytest.mark.parametrize(("format", "dtype"), [(E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2)], ids=str)
def test_all_patterns_of_torch_are_numbers_of_the_format(format: FloatFormat, dtype: torch.dtype) -> None:
    patterns = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    same(round_to(patterns, format), patterns)
    inside = torch.linspace(-format.largest, format.largest, 20001)
    same(round_to(inside, format), inside.to(dtype).float())


def test_double_rounding_is_avoided_from_float64() -> None:
    just_above_a_tie = torch.tensor([1 + 2.0**-11 + 2.0**-40, 65519.99999999], dtype=torch.float64)
    same(round_to(just_above_a_tie, FP16), torch.tensor([1 + 2.0**-10, 65504.0]))


KINDS = {"mxfp8": "power_of_two", "mxfp8_e5m2": "power_of_two", "mxfp4": "power_of_two", "nvfp4": "two_level"}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("scale", [1.0, 2.0**-130, 3e35])
def test_blocks_are_rounded_as_one_after_the_other(name: str, scale: float) -> None:
    format = FORMATS[name]
    assert isinstance(format, BlockFormat)
    assert format.block is not None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 75, generator=generator) * torch.exp2(6 * torch.randn(3, 75, generator=generator))
    x[1, : format.block] = 0
    x = x.clamp(-900, 900) * scale
    rounded = round_to(x, format)
    expected = blocks(
        torch.nn.functional.pad(x, (0, -75 % format.block)).double().flatten().numpy(),
        format.element.name,
        format.block,
        KINDS[name],
    ).reshape(3, -1)[:, :75]
    same(rounded, torch.from_numpy(expected).float())
    same(round_to(x.T, format, axis=0), rounded.T)
    if KINDS[name] == "power_of_two":
        same(round_to(x.double(), format), torch.from_numpy(expected))
        same(round_to(rounded, format), rounded)


def test_a_scale_for_the_whole_tensor_reaches_its_largest_entry() -> None:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1)) * 1e-6
    for name in ("scaled_e4m3", "scaled_e5m2"):
        rounded = round_to(x, FORMATS[name])
        assert float((rounded - x).abs().max()) <= float(x.abs().max()) / 8
        torch.testing.assert_close(rounded.abs().max(), x.abs().max(), rtol=1e-6, atol=0)
        same(round_to(torch.zeros(3), FORMATS[name]), torch.zeros(3))


@pytest.mark.parametrize("name", FORMATS)
def test_gradients_pass_straight_through_in_every_dtype_and_shape(name: str) -> None:
    for shape in ((), (0, 3), (5, 33), (2, 3, 4, 5)):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            x = torch.ones(shape, dtype=dtype, requires_grad=True)
            rounded = round_to(x, FORMATS[name], axis=0)
            assert rounded.shape == x.shape
            assert rounded.dtype == dtype
            rounded.sum().backward()
            assert x.grad is not None
            assert torch.equal(x.grad, torch.ones_like(x))


def test_a_block_with_a_nan_or_an_infinity_is_lost_and_no_other() -> None:
    x = torch.ones(64)
    x[3] = math.inf
    rounded = round_to(x, FORMATS["mxfp4"])
    assert rounded[:32].isnan().all()
    assert torch.equal(rounded[32:], x[32:])


def test_wrong_input_is_refused_with_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"must hold floating-point numbers to be rounded to e4m3; got torch\.int64"):
        round_to(torch.arange(3), E4M3)
    with pytest.raises(ValueError, match="`axis` must be one of the 1 axes of `x`; got 1"):
        round_to(torch.ones(3), E4M3, axis=1)
    with pytest.raises(ValueError, match="`block` must be at least 1 entry"):
        BlockFormat(name="none", element=E4M3, block=0, scales=lambda largest, element: largest)
