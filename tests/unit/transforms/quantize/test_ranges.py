"""Rules for ranges against direct searches."""

import numpy as np
import torch

from featherlight.transforms.quantize import Histogram, LeastSquares, MinMax, Percentile
from featherlight.transforms.quantize.ranges import least_squares_scales


def histogram(values, bins=2048):
    low, high = float(values.min()), float(values.max())
    counts = torch.histc(values.float(), bins, low, high).double()
    return Histogram(counts_N=counts, low=low, high=high)


def test_percentiles_are_those_of_numpy_to_a_bin():
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(0)).exp() - 0.5
    seen = histogram(values)
    width = (seen.high - seen.low) / 2048
    low, high = Percentile(share=0.99).ends(seen, levels=255)
    expected = np.quantile(values.numpy(), [0.01, 0.99])
    assert abs(low - expected[0]) <= width
    assert abs(high - expected[1]) <= width
    assert MinMax().ends(seen, levels=255) == (seen.low, seen.high)


def test_least_squares_beats_both_ends_and_is_the_best_of_its_candidates():
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(1)) ** 3
    seen = histogram(values)

    def error(low, high, levels):
        scale = (high - low) / levels
        zero = np.round(-low / scale)
        codes = np.clip(np.round(values.numpy() / scale) + zero, 0, levels)
        return float(np.square((codes - zero) * scale - values.numpy()).sum())

    rule = LeastSquares(candidates=24)
    for levels in (255, 15):
        found = error(*rule.ends(seen, levels=levels), levels)
        shrink = np.linspace(1, 1 / 24, 24)
        best = min(error(a * seen.low, b * seen.high, levels) for a in shrink for b in shrink)
        assert found <= 1.02 * best
        assert levels == 255 or found < 0.7 * error(seen.low, seen.high, levels)


def test_weight_scales_with_the_least_error_are_never_worse_than_the_largest_entry():
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(2))
    weight[3] = 0.0
    for high in (127, 7, 1):
        best, largest = least_squares_scales(weight, high), weight.abs().amax(1) / high

        def error(scale, high=high):
            scale = scale.clamp(min=1e-30)[:, None]
            return ((weight / scale).round().clamp(-high, high) * scale - weight).square().sum(1)

        assert (error(best) <= error(largest)).all()
        assert high == 127 or (error(best)[0] < error(largest)[0])
