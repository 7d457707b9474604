"""Philox 4x32-10 on Python integers, and the signs that the library makes of it; slow and obvious."""

MASK = 0xFFFFFFFF


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Ten rounds, straight from the paper's figure."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = x0 * 0xD2511F53, x2 * 0xCD9E8D57
        x0, x1, x2, x3 = (b >> 32) ^ x1 ^ k0, b & MASK, (a >> 32) ^ x3 ^ k1, a & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return x0, x1, x2, x3


def word(index: int, *, seed: int, step: int, parameter: int, direction: int) -> int:
    """Word `index` of a stream."""
    block = philox((index // 4, parameter, direction, step), (seed & MASK, seed >> 32))
    return block[index % 4]


def sign(element: int, *, seed: int, step: int, parameter: int, direction: int) -> int:
    """+1 where the element's bit is 0, -1 where it is 1."""
    drawn = word(element // 32, seed=seed, step=step, parameter=parameter, direction=direction)
    return 1 - 2 * (drawn >> element % 32 & 1)


def direction_of(shape: tuple[int, ...], *, seed: int, step: int, parameter: int, direction: int) -> list[int]:
    """The direction of one parameter, flat: rank one where it has two or more dimensions, a sign for each else."""
    stream = {"seed": seed, "step": step, "parameter": parameter, "direction": direction}
    size = 1
    for length in shape:
        size *= length
    if len(shape) < 2:
        return [sign(element, **stream) for element in range(size)]
    rows, columns = shape[0], size // shape[0]
    behind = -(-rows // 128) * 128
    left = [sign(row, **stream) for row in range(rows)]
    right = [sign(behind + column, **stream) for column in range(columns)]
    return [one * other for one in left for other in right]
