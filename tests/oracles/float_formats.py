"""Formats of few bits by brute force: every number of a format is written out, and the nearest is looked for."""

import numpy as np

LAYOUTS = {  # bits of the exponent and of the mantissa, and the bias
    "fp16": (5, 10, 15),
    "bf16": (8, 7, 127),
    "e4m3": (4, 3, 7),
    "e5m2": (5, 2, 15),
    "e2m1": (2, 1, 1),
}


def numbers(name: str) -> np.ndarray:
    """All finite numbers from zero on, by bit pattern, so that the parity of an index is that of its mantissa."""
    exponent_bits, mantissa_bits, bias = LAYOUTS[name]
    found = []
    for pattern in range(1 << (exponent_bits + mantissa_bits)):
        exponent, mantissa = pattern >> mantissa_bits, pattern & ((1 << mantissa_bits) - 1)
        top = exponent == (1 << exponent_bits) - 1
        if name in ("fp16", "bf16", "e5m2") and top:
            continue  # infinity and NaN
        if name == "e4m3" and top and mantissa == 7:
            continue  # NaN
        if exponent:
            found.append((1 + mantissa / 2**mantissa_bits) * 2.0 ** (exponent - bias))
        else:
            found.append(mantissa / 2**mantissa_bits * 2.0 ** (1 - bias))
    return np.array(found)


def nearest(x: np.ndarray, name: str, *, saturate: bool = False) -> np.ndarray:
    """Each of `x` (float64) by comparing with all numbers; ties go to the even pattern, what overflows to the end of a format."""
    table = numbers(name)
    half = table[-1] + (table[-1] - table[-2]) / 2
    beyond = table[-1] if saturate else {"e4m3": np.nan, "e2m1": table[-1]}.get(name, np.inf)
    size = np.abs(x)
    above = np.clip(np.searchsorted(table, size), 0, len(table) - 1)
    below = np.clip(above - 1, 0, None)
    low, high = size - table[below], table[above] - size
    found = table[np.where((high < low) | ((high == low) & (above % 2 == 0)), above, below)]
    last_is_odd = len(table) % 2 == 0
    found = np.where((size > half) | ((size == half) & last_is_odd), beyond, found)
    return np.where(np.isnan(x), np.nan, np.copysign(found, x))


def blocks(x: np.ndarray, element: str, block: int, kind: str) -> np.ndarray:
    """A vector by blocks, in float64: `kind` is "power_of_two" or "two_level"."""
    table = numbers(element)
    of_tensor = np.float32(np.abs(x).max() / np.float32(448 * table[-1])) or np.float32(1)
    out = np.empty_like(x)
    for start in range(0, len(x), block):
        part = x[start : start + block]
        largest = np.abs(part).max()
        if kind == "power_of_two":
            exponent = np.floor(np.log2(largest)) - np.floor(np.log2(table[-1])) if largest else 0.0
            scale = 2.0 ** min(max(exponent, -127), 127)
        else:
            units = np.float32(np.float32(largest / np.float32(table[-1])) / of_tensor)
            scale = nearest(np.array([float(units)]), "e4m3", saturate=True)[0] * float(of_tensor)
        narrow = np.float64 if kind == "power_of_two" else np.float32  # what the products are rounded to
        scale = float(narrow(scale))
        units = (part / scale).astype(narrow).astype(np.float64) if scale else np.zeros_like(part)
        out[start : start + block] = (nearest(units, element, saturate=True) * scale).astype(narrow)
    return out
