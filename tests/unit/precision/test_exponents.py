"""Histograms of exponents, and what rounding to a format loses."""

import math

import pytest
import torch

from featherlight.functional import FORMATS
from featherlight.precision import count_exponents, lost_shares


def test_every_entry_is_counted_at_its_power_of_two() -> None:
    x = torch.tensor([0.0, -0.0, 1.0, 1.99, -2.0, 2.0**-149, 3e38, math.inf, math.nan])
    counts = count_exponents(x)
    assert counts.counts == {0: 2, 1: 1, -149: 1, 127: 1}
    assert (counts.zeros, counts.non_finite, counts.total) == (2, 2, 9)
    assert counts.shares(range(-1, 2)) == [1 / 9, 2 / 9, 2 / 9]
    assert count_exponents(torch.empty(0)).total == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_each_format_loses_is_what_a_cast_loses(dtype: torch.dtype) -> None:
    x = torch.exp2(torch.linspace(-30, 20, 51)).to(dtype)
    x = x[x.isfinite()]
    lost = lost_shares(x, FORMATS["fp16"])
    cast = x.float().half()
    non_zero = int((x != 0).sum())
    zeroed = int(((x != 0) & (cast == 0)).sum())
    assert lost.zeroed == zeroed / non_zero
    assert lost.subnormal == int(((cast > 0) & (cast < 2.0**-14)).sum()) / non_zero
    assert lost.overflowed == int(cast.isinf().sum()) / non_zero
    assert 0 <= lost.error < 1e-3
    by_blocks = lost_shares(x, FORMATS["mxfp8"])
    assert by_blocks.overflowed == by_blocks.subnormal == 0
    assert by_blocks.zeroed > 0.1


def test_numbers_that_round_down_to_the_largest_do_not_overflow() -> None:
    x = torch.tensor([464.0, 465.0, 448.0, 2.0**-10, 2.0**-9])
    lost = lost_shares(x, FORMATS["e4m3"])
    assert (lost.overflowed, lost.zeroed, lost.subnormal) == (1 / 5, 1 / 5, 1 / 5)
    assert lost_shares(torch.zeros(4), FORMATS["fp16"]).error == 0
