"""Elements of floats put together from their planes, compiled; imported only where numba is."""

import numpy as np

from featherlight.archive.rans import compiled


@compiled
def join_2(top, low, block):
    """Of 16 bits: the byte behind the sign, and the sign with the other seven."""
    for i in range(block.shape[0]):
        a, b = np.uint32(top[i]), np.uint32(low[i])
        block[i] = (b >> 7) << 15 | a << 7 | (b & 127)


@compiled
def join_4(top, high, middle, low, block):
    """Of 32 bits."""
    for i in range(block.shape[0]):
        a, b = np.uint32(top[i]), np.uint32(high[i])
        block[i] = (b >> 7) << 31 | a << 23 | (b & 127) << 16 | np.uint32(middle[i]) << 8 | np.uint32(low[i])


@compiled
def join_8(planes, block):
    """Of 64 bits; planes are (8, n)."""
    for i in range(block.shape[0]):
        rest = np.uint64(0)
        for k in range(1, 8):
            rest = rest << np.uint64(8) | np.uint64(planes[k, i])
        sign = rest >> np.uint64(55)
        body = rest & np.uint64((1 << 55) - 1)
        block[i] = sign << np.uint64(63) | np.uint64(planes[0, i]) << np.uint64(55) | body
