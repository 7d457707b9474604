"""How coarse weights may become: the smallest file that loses little enough, or the best one of some bytes."""

import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from featherlight.functional.entropy_model import EntropyModel
from featherlight.recipes.compress_trained.models import Score
from featherlight.recipes.compress_trained.rounding import Coarseness, round_all, roundable

BITS = (0.0, 0.03, 0.1)
"""Worth of a bit that are tried, in squared steps."""
HALVINGS = 6
"""Trials for the first of them."""
MOST_TRIALS = HALVINGS + (len(BITS) - 1) * (HALVINGS - 2)
"""By which a loss is bounded."""
_FINEST, _COARSEST = 2.0**-6, 2.0**1.5


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting.

    Attributes:
        how: step and worth of a bit.
        estimated_bytes: of the rounded tensors, by the entropy model; infinite where too much is lost.
        score: in points; None where there are no data.
    """

    how: Coarseness
    estimated_bytes: float
    score: float | None


def within_loss(tensors: Mapping[str, Tensor], score: Score, *, least: float) -> Iterator[Trial]:
    """Trials that look for the coarsest step at each worth of a bit whose score is `least` or more, by halving.

    Where a bit is worth something steps are sought around the one found where it is worth nothing, at a fourth of its range.
    """
    low, high = math.log2(_FINEST), math.log2(_COARSEST)
    low = yield from _halved(tensors, score, least, BITS[0], HALVINGS, low, high)
    if low is None:
        return
    for bit in BITS[1:]:
        yield from _halved(tensors, score, least, bit, HALVINGS - 2, low - 1.5, low + 0.5)


def _halved(
    tensors: Mapping[str, Tensor], score: Score, least: float, bit: float, trials: int, low: float, high: float
) -> Generator[Trial, None, float | None]:
    """Halves a range of logarithms of steps; returns the coarsest that did, if any."""
    found = None
    for _ in range(trials):
        middle = (low + high) / 2
        trial = _tried(tensors, Coarseness(step=2**middle, bit=bit), score, least)
        yield trial
        assert trial.score is not None
        if trial.score >= least:
            low = found = middle
        else:
            high = middle
    return found


def within_bytes(tensors: Mapping[str, Tensor], score: Score | None, *, most: float) -> Iterator[Trial]:
    """A trial for each worth of a bit, at the finest step whose estimated bytes are `most` or fewer."""
    for bit in BITS:
        low, high = math.log2(_FINEST), math.log2(_COARSEST)
        for _ in range(HALVINGS + 2):
            middle = (low + high) / 2
            size = estimated_bytes(tensors, round_all(tensors, Coarseness(step=2**middle, bit=bit)))
            low, high = (low, middle) if size <= most else (middle, high)
        yield _tried(tensors, Coarseness(step=2**high, bit=bit), score, -math.inf)


def estimated_bytes(tensors: Mapping[str, Tensor], rounded: Mapping[str, Tensor]) -> float:
    """What the levels of rounded tensors take, with two bytes for each element of the others."""
    chosen = set(roundable(tensors))
    total = 0.0
    for name, one in rounded.items():
        if name not in chosen:
            total += 2 * one.numel()
            continue
        step = _step(one)
        levels = (one.float() / step).round().to(torch.int32)
        total += EntropyModel.fitted_bits(levels) / 8
    return total


def _tried(tensors: Mapping[str, Tensor], how: Coarseness, score: Score | None, least: float) -> Trial:
    rounded = round_all(tensors, how)
    found = None if score is None else score(rounded)
    size = math.inf if found is not None and found < least else estimated_bytes(tensors, rounded)
    return Trial(how=how, estimated_bytes=size, score=found)


def _step(rounded: Tensor) -> float:
    """Of a tensor that was rounded: its smallest magnitude that is not zero divides all others, or nearly."""
    sizes = torch.unique(rounded.float().abs())
    gaps = sizes.diff()
    return float(gaps.min()) if len(gaps) else 1.0
