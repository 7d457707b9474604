"""Operations of an integer program, and the grids their values lie on.

Each operation names what it reads and what it makes. There is none for a rectifier: it is the lower end of the grid of the
operation before it.

Legend of shapes: O channels out, I channels in, G groups, K and L rows and columns of a kernel.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from featherlight.transforms.quantize.integer_checks import check_layer, check_pool, check_positive

LOWEST, HIGHEST = 0, 255
Pair = tuple[int, int]
"""Of rows and of columns, as in torch."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Whole numbers q from `low` to `high`, each of which stands for `scale * (q - zero_point)`.

    A rectifier is a `low` of `zero_point`; one that is cut at 6 has a `high` of `zero_point + round(6 / scale)`.

    Args:
        scale: a float32 number is meant: it is rounded to one where it is used.
        zero_point: what stands for zero exactly, from 0 to 255.
        low: lowest number a value is clamped to.
        high: highest.

    Raises:
        ValueError: a scale that is not positive and finite as a float32 number, or numbers outside of 0 to 255.

    Source: Jacob et al. 2018, equation 1.
    """

    scale: float
    zero_point: int
    low: int = LOWEST
    high: int = HIGHEST

    def __post_init__(self) -> None:
        single = float(torch.tensor(self.scale, dtype=torch.float32))
        if not 0 < single < float("inf"):
            raise ValueError(
                f"`scale` must be positive and finite as a float32 number; got {self.scale}. The range it comes from is empty, "
                "infinite or NaN: calibrate on other data."
            )
        if not (LOWEST <= self.low < self.high <= HIGHEST and LOWEST <= self.zero_point <= HIGHEST):
            raise ValueError(
                "`low` must be below `high`, and both and `zero_point` lie in 0 to 255; got "
                f"{self.low}, {self.high} and {self.zero_point}."
            )

    @property
    def single(self) -> Float[Tensor, ""]:
        """The scale as a float32 number."""
        return torch.tensor(self.scale, dtype=torch.float32)

    def same_numbers(self, other: "Grid") -> bool:
        """Whether a number stands for the same on both, whatever they are clamped to."""
        return bool(self.single == other.single) and self.zero_point == other.zero_point


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """`clamp(round((x - mean) / std / scale) + zero_point)` of the floats that come in: the only floats before `Dequantize`.

    Args:
        input: name of the program's input.
        output: name of what it makes.
        mean: of each channel (axis 1), or one for all.
        std: of each channel, or one for all.
    """

    input: str
    output: str
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std) or not all(0 < one < float("inf") for one in self.std):
            raise ValueError(
                f"`mean` and `std` must have a number for each channel or one for all, `std` above 0; got {list(self.mean)} and "
                f"{list(self.std)}."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv2d:
    """A convolution as `torch.nn.Conv2d` with zero padding; depthwise with as many groups as channels.

    Args:
        input: name of what it reads.
        output: name of what it makes.
        weight: int8, symmetric about 0.
        weight_scales: float32, one for each channel out.
        bias: int32, in units of the input's scale times the channel's.
        stride: of rows and columns.
        padding: of rows and columns, on either side, with numbers that stand for zero.
        dilation: of rows and columns.
        groups: G.

    Raises:
        ValueError: other dtypes or shapes, scales that are not positive and finite, or numbers out of range.
    """

    input: str
    output: str
    weight: Int[Tensor, "O I/G K L"]
    weight_scales: Float[Tensor, "O"]
    bias: Int[Tensor, "O"]
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        check_layer(self.output, self.weight, self.weight_scales, self.bias, 4)
        check_positive(self.output, stride=self.stride, dilation=self.dilation, groups=(self.groups,))
        if min(self.padding) < 0 or len(self.weight) % self.groups:
            raise ValueError(
                f"convolution `{self.output}`: `padding` must be at least 0 and `groups` divide the {len(self.weight)} channels "
                f"out; got {self.padding} and {self.groups}."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear:
    """A linear layer over the last axis, as `torch.nn.Linear`.

    Args:
        input: name of what it reads.
        output: name of what it makes.
        weight: int8, symmetric about 0.
        weight_scales: float32, one for each output.
        bias: int32, in units of the input's scale times the output's.

    Raises:
        ValueError: other dtypes or shapes, or scales that are not positive and finite.
    """

    input: str
    output: str
    weight: Int[Tensor, "O I"]
    weight_scales: Float[Tensor, "O"]
    bias: Int[Tensor, "O"]

    def __post_init__(self) -> None:
        check_layer(self.output, self.weight, self.weight_scales, self.bias, 2)


@dataclass(frozen=True, kw_only=True)
class Add:
    """The sum of two values of one shape, brought onto the output's grid with one rounding.

    Args:
        first: name of one.
        second: name of the other.
        output: name of what it makes.
    """

    first: str
    second: str
    output: str


@dataclass(frozen=True, kw_only=True)
class Concat:
    """Values side by side, each brought onto the output's grid; those on it already are copied.

    Args:
        parts: names of what it reads.
        output: name of what it makes.
        axis: counted from that of the batch, 0, and not that.
    """

    parts: tuple[str, ...]
    output: str
    axis: int = 1

    def __post_init__(self) -> None:
        if not self.parts or self.axis < 1:
            raise ValueError(
                f"concatenation `{self.output}` needs one or more parts and an axis after that of the batch; got "
                f"{list(self.parts)} and {self.axis}."
            )


@dataclass(frozen=True, kw_only=True)
class MaxPool:
    """The largest of each window, as `torch.nn.MaxPool2d`; it stays on its grid.

    Args:
        input: name of what it reads.
        output: name of what it makes.
        kernel: rows and columns.
        stride: of rows and columns.
        padding: on either side, at most half the kernel; what comes in never is the largest.
        ceil_mode: whether windows that stick out at the end count.

    Raises:
        ValueError: numbers out of range.
    """

    input: str
    output: str
    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        check_pool(self.output, self.kernel, self.stride, self.padding)


@dataclass(frozen=True, kw_only=True)
class AvgPool:
    """The mean of each window, as `torch.nn.AvgPool2d` (padding counts), or of all rows and columns.

    Args:
        input: name of what it reads.
        output: name of what it makes.
        kernel: rows and columns; None takes all there are and leaves one of each.
        stride: of rows and columns.
        padding: on either side, at most half the kernel, with numbers that stand for zero.
        flat: whether the two axes are dropped, as `x.mean((-2, -1))` does; only with no `kernel`.

    Raises:
        ValueError: numbers out of range.
    """

    input: str
    output: str
    kernel: Pair | None = None
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    flat: bool = False

    def __post_init__(self) -> None:
        if self.kernel is not None:
            check_pool(self.output, self.kernel, self.stride, self.padding)
        if self.flat and self.kernel is not None:
            raise ValueError(
                f"pooling `{self.output}`: only the mean of all places is `flat`; got a kernel {self.kernel}."
            )


@dataclass(frozen=True, kw_only=True)
class Reshape:
    """The same numbers in another shape.

    Args:
        input: name of what it reads.
        output: name of what it makes.
        shape: without the batch; one number may be -1, which is what is left. `(-1,)` flattens.
    """

    input: str
    output: str
    shape: tuple[int, ...] = (-1,)

    def __post_init__(self) -> None:
        if not self.shape or self.shape.count(-1) > 1 or any(one < 1 and one != -1 for one in self.shape):
            raise ValueError(f"`shape` must be positive numbers, at most one of them -1; got {list(self.shape)}.")


@dataclass(frozen=True, kw_only=True)
class Permute:
    """The axes in another order.

    Args:
        input: name of what it reads.
        output: name of what it makes.
        axes: where each comes from; the batch stays the first, 0.
    """

    input: str
    output: str
    axes: tuple[int, ...]

    def __post_init__(self) -> None:
        if sorted(self.axes) != list(range(len(self.axes))) or self.axes[:1] != (0,):
            raise ValueError(
                f"`axes` must be 0, for the batch, and then the others in some order; got {list(self.axes)}."
            )


@dataclass(frozen=True, kw_only=True)
class Subsample:
    """Every so many rows and columns of (B, C, H, W), from the first on: `x[:, :, ::rows, ::columns]`.

    Args:
        input: name of what it reads.
        output: name of what it makes.
        stride: of rows and columns.
    """

    input: str
    output: str
    stride: Pair

    def __post_init__(self) -> None:
        check_positive(self.output, stride=self.stride)


@dataclass(frozen=True, kw_only=True)
class ZeroPad:
    """(B, C, H, W) with numbers that stand for zero around it.

    Args:
        input: name of what it reads.
        output: name of what it makes.
        channels: how many before and after.
        rows: how many before and after.
        columns: how many before and after.
    """

    input: str
    output: str
    channels: Pair = (0, 0)
    rows: Pair = (0, 0)
    columns: Pair = (0, 0)

    def __post_init__(self) -> None:
        if min(*self.channels, *self.rows, *self.columns) < 0:
            raise ValueError(
                f"padding `{self.output}` must be at least 0; got {self.channels}, {self.rows} and {self.columns}."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Lookup:
    """`table[q]`: any function of one number, such as a hyperbolic tangent, or the way from one grid to another.

    Args:
        input: name of what it reads.
        output: name of what it makes.
        table: uint8, what stands for each of the 256 numbers.

    Raises:
        ValueError: another dtype or shape.
    """

    input: str
    output: str
    table: Int[Tensor, "256"]

    def __post_init__(self) -> None:
        if self.table.dtype != torch.uint8 or self.table.shape != (HIGHEST + 1,):
            raise ValueError(
                f"`table` of `{self.output}` must be 256 numbers of uint8; got {self.table.dtype} {tuple(self.table.shape)}."
            )


@dataclass(frozen=True, kw_only=True)
class Dequantize:
    """The floats that numbers on a grid, or the sums of the last layer, stand for.

    Args:
        input: name of what it reads.
        output: name of the program's output.
    """

    input: str
    output: str


Layer = Conv2d | Linear
"""Operations with weights."""

Op = (
    Quantize
    | Conv2d
    | Linear
    | Add
    | Concat
    | MaxPool
    | AvgPool
    | Reshape
    | Permute
    | Subsample
    | ZeroPad
    | Lookup
    | Dequantize
)
"""All operations."""

MOVES = (MaxPool, Reshape, Permute, Subsample, ZeroPad)
"""Operations that change no number: what comes out is on the grid of what goes in."""


def inputs_of(op: Op) -> tuple[str, ...]:
    """Names of the values that an operation reads."""
    match op:
        case Add():
            return op.first, op.second
        case Concat():
            return op.parts
        case _:
            return (op.input,)
