"""What each operation of an integer program computes, as functions of tensors on the CPU.

Legend of shapes: B examples, C channels, H rows, W columns.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from featherlight.transforms.quantize.fixed_point import Multipliers, divided, on_one_shift, shifted
from featherlight.transforms.quantize.integer_ops import (
    Add,
    AvgPool,
    Concat,
    Conv2d,
    Dequantize,
    Grid,
    Layer,
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
from featherlight.transforms.quantize.integer_program import IntegerProgram, layer_factors, ratio, sum_scales

Step = Callable[..., Tensor]
"""From the values that an operation reads to the one it makes."""


def step_of(op: Op, program: IntegerProgram) -> Step:
    """An operation as a function, with all that the program says worked out before."""
    grids = program.grids
    if isinstance(op, Quantize):
        return partial(_quantize, op, grids[op.output])
    if isinstance(op, Dequantize):
        return _dequantize(op, program)
    befores, after = [grids[name] for name in inputs_of(op)], grids.get(op.output)
    if isinstance(op, Layer):
        factors = None if after is None else layer_factors(op, befores[0], after)
        return partial(_layer, op, befores[0], after, factors)
    assert after is not None, "only a layer may go without a grid"
    ratios = [ratio(before, after) for before in befores]
    match op:
        case Add():
            return partial(_add, befores, after, on_one_shift(*ratios))
        case Concat():
            return partial(_concat, op.axis, befores, after, ratios)
        case AvgPool():
            return partial(_average, op, befores[0], after, ratios[0])
        case Lookup():
            return lambda q: op.table[q.to(torch.int64)]
        case MaxPool():
            return partial(_largest, op)
        case Reshape():
            return lambda q: q.reshape(len(q), *op.shape)
        case Permute():
            return lambda q: q.permute(op.axes)
        case Subsample():
            return lambda q: q[:, :, :: op.stride[0], :: op.stride[1]]
        case ZeroPad():
            sides = (*op.columns, *op.rows, *op.channels)
            return lambda q: functional.pad(q, sides, value=after.zero_point)


def _quantize(op: Quantize, grid: Grid, x: Tensor) -> Tensor:
    if torch.isnan(x).any():
        raise ValueError("the input of an integer program holds NaN, which no whole number stands for.")
    shape = [-1] + [1] * (x.ndim - 2)
    mean, std = (torch.tensor(one, dtype=torch.float32).view(shape) for one in (op.mean, op.std))
    units = ((x.to(torch.float32) - mean) / std / grid.single).round()
    return (units + grid.zero_point).clamp(grid.low, grid.high).to(torch.uint8)


def _dequantize(op: Dequantize, program: IntegerProgram) -> Step:
    grid = program.grids.get(op.input)
    if grid is not None:
        return lambda q: (q.to(torch.int32) - grid.zero_point).to(torch.float32) * grid.single
    layer = program.sums
    assert layer is not None, "what has no grid is sums"
    scales = sum_scales(layer, program.grids[layer.input])
    scales = scales.view(-1, 1, 1) if isinstance(layer, Conv2d) else scales
    return lambda sums: sums.to(torch.float32) * scales


def _layer(op: Layer, before: Grid, after: Grid | None, factors: Multipliers | None, q: Tensor) -> Tensor:
    x, weight = q.to(torch.int32) - before.zero_point, op.weight.to(torch.int32)
    if isinstance(op, Linear):
        sums, axis = x @ weight.T + op.bias, -1
    else:
        weight = _spread(weight, op.dilation)  # torch's kernels on whole numbers know no dilation
        sums = functional.conv2d(x, weight, op.bias, op.stride, op.padding, groups=op.groups)
        axis = 1
    if after is None or factors is None:
        return sums
    return _placed(factors.times(sums, axis), after)


def _spread(weight: Tensor, dilation: tuple[int, int]) -> Tensor:
    """A kernel with zeros between its places."""
    if dilation == (1, 1):
        return weight
    size = [(count - 1) * step + 1 for count, step in zip(weight.shape[2:], dilation, strict=True)]
    spread = weight.new_zeros(*weight.shape[:2], *size)
    spread[:, :, :: dilation[0], :: dilation[1]] = weight
    return spread


def _add(befores: list[Grid], after: Grid, factors: tuple[int, int, int], first: Tensor, second: Tensor) -> Tensor:
    m1, m2, shift = factors
    sums = m1 * (first.to(torch.int64) - befores[0].zero_point) + m2 * (second.to(torch.int64) - befores[1].zero_point)
    return _placed(shifted(sums, shift), after)


def _concat(axis: int, befores: list[Grid], after: Grid, ratios: list[Multipliers], *parts: Tensor) -> Tensor:
    moved = [
        factor.times(part.to(torch.int64) - before.zero_point)
        for part, before, factor in zip(parts, befores, ratios, strict=True)
    ]
    return _placed(torch.cat(moved, axis), after)


def _average(op: AvgPool, before: Grid, after: Grid, factor: Multipliers, q: Tensor) -> Tensor:
    x = q.to(torch.int64) - before.zero_point
    if op.kernel is None:
        sums, count = x.sum((-2, -1), keepdim=not op.flat), x.shape[-2] * x.shape[-1]
    else:
        (rows, columns), (down, right), (above, left) = op.kernel, op.stride, op.padding
        x = functional.pad(x, (left, left, above, above))
        sums, count = x.unfold(2, rows, down).unfold(3, columns, right).sum((-2, -1)), rows * columns
    divisor = count << int(factor.shift_C)
    if divisor >= 1 << 61:
        raise ValueError(
            f"the mean `{op.output}` of {count:,} places, times {float(factor.factors()):.3g}, leaves 64 bits. Average "
            "in two steps."
        )
    return _placed(divided(sums * factor.mantissa_C, divisor), after)


def _largest(op: MaxPool, q: Tensor) -> Tensor:
    pooled = functional.max_pool2d(q.to(torch.int32), op.kernel, op.stride, op.padding, ceil_mode=op.ceil_mode)
    return pooled.to(torch.uint8)


def _placed(units: Tensor, grid: Grid) -> Tensor:
    return (units + grid.zero_point).clamp_(grid.low, grid.high).to(torch.uint8)
