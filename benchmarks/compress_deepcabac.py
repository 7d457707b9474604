"""DeepCABAC's arithmetic, written anew from its papers: how many bytes its context models give a matrix of levels.

This is a re-implementation to compare with, not the authors' build: the binarisation and the contexts of Wiedemann et al.
2020 (arXiv
1907.11900, section III) as the standard ISO/IEC 15938-17 (NNC) fixed them, with its two-speed probability estimators. It is
favoured twice: what is counted is the sum of -log2 of the odds, without the arithmetic coder's own loss and with exact odds in
place of 15 bits; and the speeds of its estimators are the best of several, found for each weight at no cost.

Decisions of a level: zero or not, 3 contexts (the level before was zero, negative or positive); negative or not, 3 contexts
of the
same kind; size above 1, ..., 10, a context each for both signs; the rest Exp-Golomb with a context for each digit of its prefix.
A weight of several rows has a flag for each row that is all zeros, where that is smaller.
"""

import numba
import numpy as np
from numpy.typing import NDArray

_GREATER = 10
_SPEEDS = ((4, 7), (5, 7), (5, 8), (6, 9))


def num_bytes(levels_RC: NDArray[np.int64]) -> float:
    """Bytes that DeepCABAC's odds take for a matrix of levels, at the best of its settings."""
    bits = [_bits(levels_RC, fast, slow, skip) for fast, slow in _SPEEDS for skip in (False, True)]
    return min(bits) / 8


@numba.njit(cache=True)
def _decide(odds, context, bit, fast, slow):
    """Bits of a decision; moves both estimators of its context."""
    p = 0.5 * (odds[context, 0] + odds[context, 1])
    p = min(max(p, 1 / 32768), 1 - 1 / 32768)
    odds[context, 0] += (bit - odds[context, 0]) / (1 << fast)
    odds[context, 1] += (bit - odds[context, 1]) / (1 << slow)
    return -np.log2(p if bit else 1 - p)


@numba.njit(cache=True)
def _bits(levels_RC, fast, slow, skip):
    odds = np.full((64, 2), 0.5)
    bits = 0.0
    before = 0
    for r in range(levels_RC.shape[0]):
        if skip:
            empty = not levels_RC[r].any()
            bits += _decide(odds, 63, empty, fast, slow)
            if empty:
                continue
        for c in range(levels_RC.shape[1]):
            level = levels_RC[r, c]
            bits += _decide(odds, before, level != 0, fast, slow)
            if level != 0:
                bits += _decide(odds, 3 + before, level < 0, fast, slow)
                bits += _size(odds, abs(level), level < 0, fast, slow)
            before = 0 if level == 0 else (1 if level < 0 else 2)
    return bits


@numba.njit(cache=True)
def _size(odds, size, negative, fast, slow):
    bits = 0.0
    for k in range(_GREATER):
        bits += _decide(odds, 6 + 2 * k + negative, size > k + 1, fast, slow)
        if size <= k + 1:
            return bits
    rest = size - _GREATER
    digits = 0
    while rest >> (digits + 1):
        bits += _decide(odds, 30 + digits, True, fast, slow)
        digits += 1
    return bits + _decide(odds, 30 + digits, False, fast, slow) + digits
