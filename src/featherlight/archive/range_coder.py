"""A binary range coder in whole numbers, compiled; imported only where numba is.

A coder is an array of seven: LOW, RANGE, CODE, AT (the next byte), CACHE, PENDING, and ENCODING, which is 2 once there is a byte
in the cache. The range is kept above 2**40, so that odds of 16 bits lose nothing that counts. Behind its last byte, a
decoder reads zeros.

Source: Martin 1979 for the carry; Subbotin's and Pavlov's range coders for the form.
"""

import numba
import numpy as np
from numpy.typing import NDArray

compiled = numba.njit(nogil=True, cache=True, error_model="numpy")
inlined = numba.njit(nogil=True, inline="always", error_model="numpy")

LOW, RANGE, CODE, AT, CACHE, PENDING, ENCODING = range(7)
PROBABILITY_BITS = 16
_TOP = 48
_LEAST = 1 << 40


def new_coder(*, encoding: bool) -> NDArray[np.int64]:
    """A coder at the begin of a run of bytes; a decoder must be handed to `start_decoding`."""
    return np.array([0, 1 << _TOP, 0, 0, 0, 0, int(encoding)], dtype=np.int64)


@compiled
def start_decoding(coder, data):
    """Reads the first six bytes."""
    for _ in range(6):
        coder[CODE] = coder[CODE] << 8 | _next(coder, data)


@compiled
def code_bit(coder, data, bit, odds):
    """Writes a bit, or reads one, whose odds of being 1 are `odds` in 65,536; returns it."""
    bound = (coder[RANGE] >> PROBABILITY_BITS) * odds
    if coder[ENCODING]:
        if bit:
            coder[RANGE] = bound
        else:
            coder[LOW] += bound
            coder[RANGE] -= bound
        while coder[RANGE] < _LEAST:
            coder[RANGE] <<= 8
            _shift(coder, data)
        return bit
    if coder[CODE] < bound:
        bit = 1
        coder[RANGE] = bound
    else:
        bit = 0
        coder[CODE] -= bound
        coder[RANGE] -= bound
    while coder[RANGE] < _LEAST:
        coder[RANGE] <<= 8
        coder[CODE] = coder[CODE] << 8 | _next(coder, data)
    return bit


@compiled
def finish_encoding(coder, data):
    """Writes the fewest bytes that tell the last range from others; returns how many there are, or -1 if there was no room."""
    for kept in range(7):
        unit = 1 << (_TOP - 8 * kept)
        value = (coder[LOW] + unit - 1) // unit * unit
        if value < coder[LOW] + coder[RANGE]:
            coder[LOW] = value
            break
    for _ in range(7):
        _shift(coder, data)
    end = coder[AT]
    if end > data.shape[0]:
        return np.int64(-1)
    while end > 0 and data[end - 1] == 0:
        end -= 1
    return end


@compiled
def _next(coder, data):
    at = coder[AT]
    coder[AT] = at + 1
    return np.int64(data[at]) if at < data.shape[0] else np.int64(0)


@compiled
def _shift(coder, data):
    """Gives the top byte out, once no carry can reach it any more; the very first is none."""
    low = coder[LOW]
    carry = low >> _TOP
    top = (low >> (_TOP - 8)) & 0xFF
    if carry or top != 0xFF:
        if coder[ENCODING] == 2:
            _put(coder, data, coder[CACHE] + carry)
        for _ in range(coder[PENDING]):
            _put(coder, data, 0xFF + carry)
        coder[PENDING] = 0
        coder[CACHE] = top
        coder[ENCODING] = 2
    else:
        coder[PENDING] += 1
    coder[LOW] = (low & ((1 << (_TOP - 8)) - 1)) << 8


@compiled
def _put(coder, data, byte):
    if coder[AT] < data.shape[0]:
        data[coder[AT]] = byte & 0xFF
    coder[AT] += 1
