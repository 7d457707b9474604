"""A network as operations on whole numbers: what a fake-quantized model is lowered to, run from and exported from.

Legend of shapes: O channels out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from featherlight.transforms.quantize.fixed_point import Multipliers
from featherlight.transforms.quantize.integer_ops import (
    MOVES,
    Add,
    Concat,
    Dequantize,
    Grid,
    Layer,
    Lookup,
    Op,
    Quantize,
    inputs_of,
)

_MOST = 2**31 - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class IntegerProgram:
    """Floats quantized once, whole numbers alone, and one dequantization at the end.

    The operations stand in the order in which they run: first the only `Quantize`, last the only `Dequantize`. Values between
    are unsigned 8-bit numbers. The last layer may leave its 32-bit sums as they are, which spares the logits a rounding: it is
    the one before `Dequantize`, and has no grid. All fixed-point factors follow from the scales (`layer_factors`, `ratio`).

    Args:
        ops: the operations.
        grids: of each value by name; values that are only moved (`MOVES`) may be left out, as theirs is that of their input.

    Attributes:
        grids: of all values on a grid, complete.

    Raises:
        ValueError: a value that is not there, twice there or never used; a grid that is missing or does not fit; sums that could
            leave 32 bits; or quantize and dequantize elsewhere than at the ends.

    Source: Jacob et al. 2018, section 2.
    """

    ops: tuple[Op, ...]
    grids: Mapping[str, Grid]

    def __post_init__(self) -> None:
        self._check_ends()
        complete: dict[str, Grid] = {}
        made = {inputs_of(self.ops[0])[0]}
        used: set[str] = set()
        for op in self.ops:
            missing = [name for name in inputs_of(op) if name not in made]
            if missing or op.output in made:
                raise ValueError(
                    f"operation `{op.output}` reads {missing}, which no operation before it makes."
                    if missing
                    else f"the value `{op.output}` is made twice. Give each value a name of its own."
                )
            made.add(op.output)
            used.update(inputs_of(op))
            self._place(op, complete)
        unused = made - used - {self.ops[-1].output} | (set(self.grids) - made)
        if unused:
            raise ValueError(f"the values {sorted(unused)} are never used. Leave them, and what makes them, out.")
        object.__setattr__(self, "grids", MappingProxyType(complete))

    @property
    def input(self) -> str:
        """Name of the floats that come in."""
        return inputs_of(self.ops[0])[0]

    @property
    def output(self) -> str:
        """Name of the floats that go out."""
        return self.ops[-1].output

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Operations with weights, in order."""
        return tuple(op for op in self.ops if isinstance(op, Layer))

    @property
    def sums(self) -> Layer | None:
        """The last layer if its 32-bit sums are dequantized as they are, else None."""
        last = next((op for op in self.ops if op.output == inputs_of(self.ops[-1])[0]), None)
        return last if isinstance(last, Layer) and last.output not in self.grids else None

    def _check_ends(self) -> None:
        inner = self.ops[1:-1]
        ends = len(self.ops) >= 2 and isinstance(self.ops[0], Quantize) and isinstance(self.ops[-1], Dequantize)
        if not ends or any(isinstance(op, Quantize | Dequantize) for op in inner):
            kinds = ", ".join(type(op).__name__ for op in self.ops) or "nothing"
            raise ValueError(
                f"an integer program begins with its only Quantize and ends with its only Dequantize; got {kinds}."
            )

    def _place(self, op: Op, grids: dict[str, Grid]) -> None:
        """Checks the grids of what an operation reads, and notes that of what it makes."""
        if isinstance(op, Dequantize):
            return
        given = self.grids.get(op.output)
        befores = tuple(grids[name] for name in inputs_of(op) if name in grids)
        if not isinstance(op, Quantize) and len(befores) < len(inputs_of(op)):
            raise ValueError(
                f"operation `{op.output}` reads {inputs_of(op)}, of which one is the 32-bit sums of a layer without a grid. Only "
                "Dequantize takes those; give the layer a grid."
            )
        if isinstance(op, MOVES):
            if given is not None and given != befores[0]:
                raise ValueError(
                    f"`{op.output}` only moves numbers, so that its grid is that of `{op.input}`; got {given} and {befores[0]}. "
                    "Put a Lookup between them."
                )
            given = befores[0]
        if given is not None:
            grids[op.output] = given
        elif not isinstance(op, Layer):
            raise ValueError(f"the value `{op.output}` has no grid, and only a layer's sums need none. Give it one.")
        _check_factors(op, befores, given)


def layer_factors(op: Layer, before: Grid, after: Grid) -> Multipliers:
    """The factors `M = S1 S2 / S3` of a layer's channels, formed in float32 as ONNX Runtime forms them.

    Raises:
        ValueError: one of them is not between 0 and 2**30.

    Source: Jacob et al. 2018, equation 5.
    """
    return Multipliers.nearest(sum_scales(op, before) / after.single)


def ratio(before: Grid, after: Grid) -> Multipliers:
    """The factor that leads from one grid to another, formed in float32.

    Raises:
        ValueError: it is not between 0 and 2**30.
    """
    return Multipliers.nearest((before.single / after.single).reshape(1))


def sum_scales(op: Layer, before: Grid) -> Float[Tensor, "O"]:
    """What a unit of each channel's sum is worth: `S1 S2`, formed in float32."""
    return before.single * op.weight_scales.cpu()


def largest_sums(op: Layer, before: Grid) -> Int[Tensor, "O"]:
    """The largest magnitude that a channel's sum, or any part of it, can have for inputs on a grid, bias included.

    It is `sum |w| max|q - zero_point| + |bias|`, at most 127 * 255 * I * K * L + |bias|.
    """
    reach = max(abs(before.low - before.zero_point), abs(before.high - before.zero_point))
    weight = op.weight.to(torch.int64).flatten(1).abs().sum(1)
    return weight * reach + op.bias.to(torch.int64).abs()


def table_between(before: Grid, after: Grid) -> Int[Tensor, "256"]:
    """The table of a `Lookup` that brings numbers from one grid to another: a rectifier by itself, for one."""
    numbers = torch.arange(256, dtype=torch.int64) - before.zero_point
    moved = ratio(before, after).times(numbers, axis=0) + after.zero_point
    return moved.clamp(after.low, after.high).to(torch.uint8)


def _check_factors(op: Op, befores: tuple[Grid, ...], after: Grid | None) -> None:
    """Raises ValueError where sums, factors or a table would leave their range."""
    if isinstance(op, Layer):
        _check_sums(op, befores[0])
        if after is not None:
            layer_factors(op, befores[0], after)
    elif after is not None and isinstance(op, Add | Concat):
        for before in befores:
            ratio(before, after)
    elif after is not None and isinstance(op, Lookup):
        least, most = int(op.table.min()), int(op.table.max())
        if least < after.low or most > after.high:
            raise ValueError(
                f"the table of `{op.output}` has numbers from {least} to {most}, beyond its grid, {after.low} to {after.high}."
            )


def _check_sums(op: Layer, before: Grid) -> None:
    largest = largest_sums(op, before)
    if int(largest.max()) > _MOST:
        at = int(largest.argmax())
        raise ValueError(
            f"sums of layer `{op.output}` could reach {int(largest[at]):,} in channel {at}, beyond the {_MOST:,} of 32 bits: its "
            "bias is too large for the scales, or it has too many inputs. Split the layer, or calibrate its input again."
        )
