"""What a config of compression refuses."""

from dataclasses import replace

import pytest

from featherlight.recipes.compress.config import DistillConfig, PruneConfig, ShareConfig
from featherlight.recipes.compress.recipes import lenet300


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PruneConfig(sparsity=1.0), r"`sparsity` must lie in \[0, 1\); got 1.0"),
        (lambda: PruneConfig(epochs=0), "`epochs` must be at least 1"),
        (lambda: ShareConfig(codes=0), "`codes` and `bias_codes` must be at least 1"),
        (lambda: ShareConfig(rate=-0.1), "`rate` and `penalty` must be at least 0"),
        (lambda: ShareConfig(codebook_lr=float("inf")), "`lr` a finite positive number"),
        (lambda: DistillConfig(temperature=0), "`temperature` must be a finite positive"),
        (lambda: replace(lenet300(), classify=replace(lenet300().classify, method="zo")), "must be adamw"),
    ],
)
def test_bad_input_gets_a_sentence(make, says):
    with pytest.raises(ValueError, match=says):
        make()
