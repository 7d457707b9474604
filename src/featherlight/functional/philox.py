"""Philox 4x32-10, the counter-based generator of Random123, as tensor arithmetic.

A counter-based generator is a keyed bijection of counters: any word of the stream can be had alone, in any order,
on any device and in any number of threads, and is always the same word.
"""

import torch
from jaxtyping import Int64
from torch import Tensor

_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF
_ROUNDS = 10


def philox_4x32(counter: Int64[Tensor, "*batch 4"], key: tuple[int, int]) -> Int64[Tensor, "*batch 4"]:
    """Philox 4x32 with ten rounds.

    Args:
        counter: four 32-bit words each, held in int64, (..., 4).
        key: two 32-bit words.

    Returns:
        Four random 32-bit words per counter, held in int64 with values in [0, 2**32), (..., 4).

    Cost: about 120 element operations per counter, in int64.
    Source: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", section 4.3; the known
    answers of Random123's `kat_vectors` are in the tests.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key[0] & _MASK, key[1] & _MASK
    for _ in range(_ROUNDS):
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        high_0, high_1 = (product_0 >> 32).bitwise_and_(_MASK), (product_1 >> 32).bitwise_and_(_MASK)
        c0, c2 = high_1.bitwise_xor_(c1).bitwise_xor_(k0), high_0.bitwise_xor_(c3).bitwise_xor_(k1)
        c1, c3 = product_1.bitwise_and_(_MASK), product_0.bitwise_and_(_MASK)
        k0, k1 = (k0 + _WEYL_0) & _MASK, (k1 + _WEYL_1) & _MASK
    return torch.stack((c0, c1, c2, c3), dim=-1)
