"""Pooling against a loop over sentences."""

import pytest
import torch

from featherlight.nn.models.sentence_classifier import POOLING_MODES, pool


@pytest.mark.parametrize("mode", POOLING_MODES.values())
@pytest.mark.parametrize("left", [False, True])
def test_pooling_reads_only_the_real_tokens(mode: str, left: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 6, 5, generator=generator)
    lengths = [6, 1, 3, 4]
    mask = torch.zeros(4, 6, dtype=torch.int64)
    for row, length in enumerate(lengths):
        mask[row, 6 - length :] = 1 if left else mask[row, 6 - length :]
        mask[row, :length] = mask[row, :length] if left else 1
    real = [states[kept.bool()] for states, kept in zip(hidden, mask, strict=True)]
    expected = {
        "cls": [states[0] for states in hidden],
        "mean": [states.mean(0) for states in real],
        "max": [states.amax(0) for states in real],
        "lasttoken": [states[-1] for states in real],
    }[mode]
    torch.testing.assert_close(pool(hidden, mask, mode), torch.stack(expected))
