"""Integer programs by the definition: loops over every number, Python's whole numbers, and fractions rounded once.

Legend of shapes: B examples, C channels, H rows, W columns.
"""

from fractions import Fraction
from itertools import product

import numpy as np
from numpy.typing import NDArray

from featherlight.transforms.quantize.integer_ops import (
    Add,
    AvgPool,
    Concat,
    Conv2d,
    Dequantize,
    Grid,
    Linear,
    Lookup,
    MaxPool,
    Op,
    Permute,
    Quantize,
    Reshape,
    Subsample,
    ZeroPad,
    inputs_of,
)
from featherlight.transforms.quantize.integer_program import IntegerProgram

Numbers = NDArray[np.object_]
"""Python's whole numbers."""


def run(program: IntegerProgram, x: NDArray[np.float32]) -> dict[str, Numbers]:
    """All values but the floats at the ends."""
    values: dict[str, Numbers] = {}
    for op in program.ops:
        if isinstance(op, Quantize):
            values[op.output] = quantized(op, program.grids[op.output], x)
        elif not isinstance(op, Dequantize):
            befores = [program.grids[name] for name in inputs_of(op)]
            inputs = [values[name] for name in inputs_of(op)]
            values[op.output] = computed(op, befores, program.grids.get(op.output), inputs)
    return values


def quantized(op: Quantize, grid: Grid, x: NDArray[np.float32]) -> Numbers:
    """Each float divided in float32 and rounded; halves to even, as Python rounds."""
    made = np.empty(x.shape, dtype=object)
    for at in product(*map(range, x.shape)):
        channel = at[1] if len(op.mean) > 1 else 0
        normal = (x[at] - np.float32(op.mean[channel])) / np.float32(op.std[channel])
        made[at] = clamped(round(float(normal / np.float32(grid.scale))), grid)
    return made


def computed(op: Op, befores: list[Grid], after: Grid | None, inputs: list[Numbers]) -> Numbers:
    """The numbers that one operation makes."""
    q, before = inputs[0], befores[0]
    match op:
        case Conv2d():
            return convolved(op, before, after, q)
        case Linear():
            return linear(op, before, after, q)
        case Lookup():
            return np.vectorize(lambda one: int(op.table[one]), otypes=[object])(q)
        case Reshape():
            return q.reshape(len(q), *op.shape)
        case Permute():
            return q.transpose(op.axes)
        case Subsample():
            return q[:, :, :: op.stride[0], :: op.stride[1]]
        case ZeroPad():
            return np.pad(q, ((0, 0), op.channels, op.rows, op.columns), constant_values=before.zero_point)
        case MaxPool():
            return windows(op, q, lambda seen: max(seen))
    assert after is not None
    match op:
        case Add():
            first, second = (share(one, grid, after) for one, grid in zip(inputs, befores, strict=True))
            return np.vectorize(lambda one: clamped(round(one), after), otypes=[object])(first + second)
        case Concat():
            parts = [share(one, grid, after) for one, grid in zip(inputs, befores, strict=True)]
            return np.vectorize(lambda one: clamped(round(one), after), otypes=[object])(np.concatenate(parts, op.axis))
        case AvgPool():
            return averaged(op, before, after, q)
    raise AssertionError(op)


def clamped(units: int, grid: Grid) -> int:
    return min(grid.high, max(grid.low, units + grid.zero_point))


def factor(numerator: np.float32, after: Grid) -> Fraction:
    """A quotient of scales in float32, exactly as it is."""
    return Fraction(float(numerator / np.float32(after.scale)))


def share(q: Numbers, before: Grid, after: Grid) -> Numbers:
    """What numbers come to on another grid, not rounded."""
    by = factor(np.float32(before.scale), after)
    return np.vectorize(lambda one: (one - before.zero_point) * by, otypes=[object])(q)


def placed(sums: int, scale: np.float32, before: Grid, after: Grid | None) -> int:
    if after is None:
        return sums
    return clamped(round(sums * factor(np.float32(before.scale) * scale, after)), after)


def linear(op: Linear, before: Grid, after: Grid | None, q: Numbers) -> Numbers:
    made = np.empty((len(q), len(op.weight)), dtype=object)
    for b, o in product(range(len(q)), range(len(op.weight))):
        sums = int(op.bias[o]) + sum(int(op.weight[o, i]) * (q[b, i] - before.zero_point) for i in range(q.shape[1]))
        made[b, o] = placed(sums, op.weight_scales[o].numpy(), before, after)
    return made


def convolved(op: Conv2d, before: Grid, after: Grid | None, q: Numbers) -> Numbers:
    out, per_group, rows, columns = op.weight.shape
    size = [
        (n + 2 * pad - dilation * (k - 1) - 1) // stride + 1
        for n, pad, dilation, k, stride in zip(
            q.shape[2:], op.padding, op.dilation, (rows, columns), op.stride, strict=True
        )
    ]
    made = np.empty((len(q), out, *size), dtype=object)
    for b, o, y, x in product(range(len(q)), range(out), *map(range, size)):
        sums, group = int(op.bias[o]), o // (out // op.groups)
        for i, k, m in product(range(per_group), range(rows), range(columns)):
            down = y * op.stride[0] - op.padding[0] + k * op.dilation[0]
            right = x * op.stride[1] - op.padding[1] + m * op.dilation[1]
            if 0 <= down < q.shape[2] and 0 <= right < q.shape[3]:
                sums += int(op.weight[o, i, k, m]) * (q[b, group * per_group + i, down, right] - before.zero_point)
        made[b, o, y, x] = placed(sums, op.weight_scales[o].numpy(), before, after)
    return made


def averaged(op: AvgPool, before: Grid, after: Grid, q: Numbers) -> Numbers:
    by = factor(np.float32(before.scale), after)
    if op.kernel is None:
        count = q.shape[2] * q.shape[3]
        shape = q.shape[:2] if op.flat else (*q.shape[:2], 1, 1)
        sums = (q - before.zero_point).sum((2, 3)).reshape(shape)
    else:
        count = op.kernel[0] * op.kernel[1]
        sums = windows(op, q - before.zero_point, sum)
    return np.vectorize(lambda one: clamped(round(one * by / count), after), otypes=[object])(sums)


def windows(op: MaxPool | AvgPool, q: Numbers, reduce) -> Numbers:
    """What a function makes of each window's numbers that are not padding."""
    assert op.kernel is not None
    up = isinstance(op, MaxPool) and op.ceil_mode
    size = []
    for n, pad, k, stride in zip(q.shape[2:], op.padding, op.kernel, op.stride, strict=True):
        count = -(-(n + 2 * pad - k) // stride) + 1 if up else (n + 2 * pad - k) // stride + 1
        size.append(count - (up and (count - 1) * stride >= n + pad))
    made = np.empty((*q.shape[:2], *size), dtype=object)
    for b, c, y, x in product(*map(range, made.shape)):
        rows = range(y * op.stride[0] - op.padding[0], y * op.stride[0] - op.padding[0] + op.kernel[0])
        columns = range(x * op.stride[1] - op.padding[1], x * op.stride[1] - op.padding[1] + op.kernel[1])
        inside = [(i, j) for i, j in product(rows, columns) if 0 <= i < q.shape[2] and 0 <= j < q.shape[3]]
        made[b, c, y, x] = reduce(q[b, c, i, j] for i, j in inside)
    return made
