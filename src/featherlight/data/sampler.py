"""An endless stream of shuffled rows that costs nothing to resume."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NUM_ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class IndexPermutation:
    """A pseudorandom permutation of `range(num_rows)`, a new one each epoch, that is computed and never stored.

    A Feistel network over pairs in [0, a) x [0, b), with a * b just above `num_rows` and rounds that add modulo a and b
    in turn, walked along its cycle until it lands below `num_rows` (Black & Rogaway, "Ciphers with Arbitrary Finite
    Domains", 2002, sections 3 and 4). The rounds are keyed by (seed, epoch, round). Not for secrets.

    Args:
        num_rows: number of rows N, at least 1.
        seed: in [0, 2**64).

    Raises:
        ValueError: `num_rows` or `seed` out of range.
    """

    num_rows: int
    seed: int

    def __post_init__(self) -> None:
        if not 1 <= self.num_rows < 2**62:
            raise ValueError(
                "`num_rows` must be at least 1 (and below 2**62), since there must be a row to draw; got "
                f"{self.num_rows}."
            )
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"`seed` must lie in 0..2**64 - 1, the range of the permutation's key; got {self.seed}.")

    def indices(self, start: int, count: int) -> list[int]:
        """Return the rows at stream positions `start` to `start + count`.

        Position p is entry `p % num_rows` of the permutation of epoch `p // num_rows`, so any window of the stream may
        be computed on its own: a run resumes from its position alone.

        Args:
            start: first position, at least 0.
            count: number of positions, at least 0.

        Returns:
            Row indices, `count` of them. Cost O(count) time and memory, whatever `start` and `num_rows` are.

        Raises:
            ValueError: a negative `start` or `count`.
        """
        if start < 0 or count < 0:
            raise ValueError(
                f"`start` and `count` are a place in the stream and a length, so neither is negative; got {start} and "
                f"{count}."
            )
        epoch, offset = divmod(start, self.num_rows)
        positions = np.arange(offset, offset + count, dtype=np.uint64)
        epochs = np.uint64(epoch % 2**64) + positions // np.uint64(self.num_rows)
        return self._permute(positions % np.uint64(self.num_rows), epochs).tolist()

    def _permute(self, values: NDArray[np.uint64], epochs: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Walk each value along the cycle of its epoch's permutation of [0, a * b) until it is below `num_rows`."""
        out = values.copy()
        walking = np.arange(len(values))
        while len(walking):
            out[walking] = self._feistel(out[walking], epochs[walking])
            walking = walking[out[walking] >= self.num_rows]
        return out

    def _feistel(self, values: NDArray[np.uint64], epochs: NDArray[np.uint64]) -> NDArray[np.uint64]:
        a = math.isqrt(self.num_rows - 1) + 1
        b = -(-self.num_rows // a)
        left, right = values % np.uint64(a), values // np.uint64(a)
        epoch_keys = _mix(_mix(np.full(1, self.seed, dtype=np.uint64)) + epochs * _GOLDEN)
        for number in range(_NUM_ROUNDS):
            keys = _mix(epoch_keys + np.uint64(number + 1))
            modulus = np.uint64(a if number % 2 == 0 else b)
            left, right = right, (left + _mix(keys + right * _GOLDEN) % modulus) % modulus
        return left + right * np.uint64(a)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatter 64 bits: the finaliser of SplitMix64 (Steele, Lea & Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
