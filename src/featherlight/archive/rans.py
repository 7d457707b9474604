"""Bytes with a static table of odds, four coders in turn, compiled; imported only where numba is.

Source: Duda 2013 (arXiv 1311.2540); Giesen 2014 (arXiv 1402.3392) for coders in turn. States lie in [2**16, 2**32) and give
out 16 bits at a time; odds are whole numbers that sum to 4096.
"""

import numba
import numpy as np
from numpy.typing import NDArray

compiled = numba.njit(nogil=True, cache=True, error_model="numpy")
BITS = 12
_ONE = 1 << BITS
_LOWEST = 1 << 16


def odds_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Odds that sum to 4096, at least 1 for each of the 256 bytes that occurs; a byte must occur."""
    total = int(counts.sum())
    odds = np.where(counts > 0, np.maximum(counts * _ONE // total, 1), 0)
    while (spare := _ONE - int(odds.sum())) != 0:
        if spare > 0:
            odds[int(np.argmax(counts / np.maximum(odds, 1)))] += spare if spare < 8 else 1
        else:
            worth = np.where(odds > 1, counts / np.maximum(odds, 1), np.inf)
            odds[int(np.argmin(worth))] -= 1
    return odds


def bits_of(counts: NDArray[np.int64], odds: NDArray[np.int64]) -> float:
    """Bits that bytes with these counts take."""
    used = counts > 0
    return float((counts[used] * (BITS - np.log2(odds[used]))).sum())


@compiled
def encode(symbols, odds, words):
    """Writes words from the end of `words` to the front; returns the first one in use. The states come first."""
    first = np.zeros(257, dtype=np.int64)
    for s in range(256):
        first[s + 1] = first[s] + odds[s]
    states = np.full(4, _LOWEST, dtype=np.int64)
    at = words.shape[0]
    for i in range(symbols.shape[0] - 1, -1, -1):
        k, s = i & 3, symbols[i]
        x, f = states[k], odds[s]
        if x >= f << (32 - BITS):
            at -= 1
            words[at] = x & 0xFFFF
            x >>= 16
        states[k] = ((x // f) << BITS) + x % f + first[s]
    for k in range(3, -1, -1):
        at -= 2
        words[at] = states[k] >> 16
        words[at + 1] = states[k] & 0xFFFF
    return at


@compiled
def decode(words, odds, symbols):
    """Fills `symbols`, whatever the words are: past their end, zeros are read."""
    slots = np.empty(_ONE, dtype=np.uint32)
    at = 0
    for s in range(256):
        for k in range(odds[s]):
            slots[at + k] = s | k << 8 | odds[s] << 20
        at += odds[s]
    num = words.shape[0]
    states = np.zeros(4, dtype=np.uint64)
    for k in range(4):
        if 2 * k + 1 < num:
            states[k] = np.uint64(words[2 * k]) << np.uint64(16) | np.uint64(words[2 * k + 1])
    at = 8
    a, b, c, d = states[0], states[1], states[2], states[3]
    whole = symbols.shape[0] & ~3
    for i in range(0, whole, 4):
        a, at = _step(a, slots, symbols, i, words, at, num)
        b, at = _step(b, slots, symbols, i + 1, words, at, num)
        c, at = _step(c, slots, symbols, i + 2, words, at, num)
        d, at = _step(d, slots, symbols, i + 3, words, at, num)
    states[0], states[1], states[2] = a, b, c
    for i in range(whole, symbols.shape[0]):
        states[i & 3], at = _step(states[i & 3], slots, symbols, i, words, at, num)


@numba.njit(nogil=True, inline="always", error_model="numpy")
def _step(x, slots, symbols, i, words, at, num):
    slot = slots[x & np.uint64(_ONE - 1)]
    symbols[i] = slot & np.uint32(255)
    odds = np.uint64(slot >> np.uint32(20))
    # odds of 4096 stand as 0 in twelve bits
    odds = odds if odds else np.uint64(_ONE)
    x = odds * (x >> np.uint64(BITS)) + np.uint64((slot >> np.uint32(8)) & np.uint32(_ONE - 1))
    if x < np.uint64(_LOWEST) and at < num:
        x = x << np.uint64(16) | np.uint64(words[at])
        at += 1
    return x, at
