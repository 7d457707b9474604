"""The nodes of ONNX that an operation of an integer program becomes.

Layers, sums and means become the operators that ONNX Runtime has kernels on whole numbers for, and not pairs of QuantizeLinear
and DequantizeLinear around float ones: so nothing depends on what a runtime manages to fuse. Those of the domain com.microsoft
are ONNX Runtime's own.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featherlight.export.packages import need_onnx
from featherlight.transforms.quantize.integer_ops import (
    HIGHEST,
    LOWEST,
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
)
from featherlight.transforms.quantize.integer_program import IntegerProgram, sum_scales

MICROSOFT = "com.microsoft"


class NodeList:
    """Collects nodes and constants of a graph.

    Args:
        program: where grids of values are looked up.
        ranks: number of axes of each value, with that of the batch.

    Attributes:
        nodes: `onnx.NodeProto`, in order.
        constants: `onnx.TensorProto`.
    """

    def __init__(self, program: IntegerProgram, ranks: dict[str, int]) -> None:
        self._onnx = need_onnx()
        self._program = program
        self._grids = program.grids
        self._ranks = ranks
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, op: Op) -> None:
        """Appends the nodes of an operation.

        Raises:
            ValueError: there is no such node for values of so many axes.
        """
        match op:
            case Quantize():
                self._quantize(op)
            case Dequantize():
                self._dequantize(op)
            case Conv2d():
                self._conv(op)
            case Linear():
                self._linear(op)
            case Add():
                self._clamped("QLinearAdd", [*self._on(op.first), *self._on(op.second), *self._grid(op)], op, MICROSOFT)
            case Concat():
                inputs = [*self._grid(op), *(one for part in op.parts for one in self._on(part))]
                self._clamped("QLinearConcat", inputs, op, MICROSOFT, axis=op.axis)
            case AvgPool():
                self._average(op)
            case _:
                self._move(op)

    def _move(self, op: Op) -> None:
        """Nodes that change no number, or look it up."""
        match op:
            case MaxPool():
                self._plain("MaxPool", [op.input], op.output, **_window(op), ceil_mode=int(op.ceil_mode))
            case Reshape():
                self._plain("Reshape", [op.input, self._ints(op, "shape", (0, *op.shape))], op.output)
            case Permute():
                self._plain("Transpose", [op.input], op.output, perm=list(op.axes))
            case Subsample():
                ends = self._ints(op, "ends", (2**31 - 1,) * 2)
                inputs = [op.input, self._ints(op, "starts", (0, 0)), ends]
                inputs += [self._ints(op, "axes", (2, 3)), self._ints(op, "steps", op.stride)]
                self._plain("Slice", inputs, op.output)
            case ZeroPad():
                sides = zip((0, 0), op.channels, op.rows, op.columns, strict=True)
                pads = self._ints(op, "pads", [one for side in sides for one in side])
                self._plain("Pad", [op.input, pads, self._grid(op)[1]], op.output)
            case Lookup():
                self._plain("Cast", [op.input], f"{op.output}.index", to=self._onnx.TensorProto.INT32)
                self._plain("Gather", [self._tensor(op, "table", op.table), f"{op.output}.index"], op.output)
            case _:
                raise AssertionError(f"no node for {type(op).__name__}")

    def _quantize(self, op: Quantize) -> None:
        shape, name = [-1] + [1] * (self._ranks[op.input] - 2), op.input
        for kind, what, values, neutral in (("Sub", "mean", op.mean, 0.0), ("Div", "std", op.std, 1.0)):
            if any(one != neutral for one in values):
                by = self._tensor(op, what, torch.tensor(values, dtype=torch.float32).view(shape))
                self._plain(kind, [name, by], f"{op.output}.{kind.lower()}")
                name = f"{op.output}.{kind.lower()}"
        self._clamped("QuantizeLinear", [name, *self._grid(op)], op, "")

    def _dequantize(self, op: Dequantize) -> None:
        if op.input in self._grids:
            self._plain("DequantizeLinear", self._on(op.input), op.output)
            return
        layer = self._program.sums
        assert layer is not None, "what has no grid is sums"
        scales = self._tensor(op, "scales", sum_scales(layer, self._grids[layer.input]))
        self._plain("DequantizeLinear", [op.input, scales], op.output, axis=1)

    def _conv(self, op: Conv2d) -> None:
        weight, zeros = self._tensor(op, "weight", op.weight), torch.zeros(len(op.weight), dtype=torch.int8)
        parts = _window(op) | {"dilations": list(op.dilation), "group": op.groups}
        if op.output in self._grids:
            weights = [weight, self._tensor(op, "weight_scales", op.weight_scales), self._tensor(op, "zeros", zeros)]
            inputs = [*self._on(op.input), *weights, *self._grid(op), self._tensor(op, "bias", op.bias)]
            self._clamped("QLinearConv", inputs, op, "", **parts)
            return
        self._plain("ConvInteger", [op.input, weight, self._on(op.input)[2]], f"{op.output}.products", **parts)
        bias = self._tensor(op, "bias", op.bias.view(-1, 1, 1))
        self._plain("Add", [f"{op.output}.products", bias], op.output)

    def _linear(self, op: Linear) -> None:
        if self._ranks[op.input] != 2:
            raise ValueError(
                f"linear layer `{op.output}` has inputs of {self._ranks[op.input]} axes, and ONNX Runtime has a kernel on whole "
                "numbers for 2. Put a Reshape before and after it."
            )
        zeros = torch.zeros(len(op.weight), dtype=torch.int8)
        if op.output in self._grids:
            weight = self._tensor(op, "weight", op.weight)
            weights = [weight, self._tensor(op, "weight_scales", op.weight_scales), self._tensor(op, "zeros", zeros)]
            inputs = [*self._on(op.input), *weights, self._tensor(op, "bias", op.bias), *self._grid(op)]
            self._clamped("QGemm", inputs, op, MICROSOFT, transB=1)
            return
        weight = self._tensor(op, "weight", op.weight.T.contiguous())
        self._plain("MatMulInteger", [op.input, weight, self._on(op.input)[2]], f"{op.output}.products")
        self._plain("Add", [f"{op.output}.products", self._tensor(op, "bias", op.bias)], op.output)

    def _average(self, op: AvgPool) -> None:
        inputs = [*self._on(op.input), *self._grid(op)]
        if op.kernel is not None:
            self._clamped("QLinearAveragePool", inputs, op, MICROSOFT, **_window(op), count_include_pad=1)
        elif not op.flat:
            self._clamped("QLinearGlobalAveragePool", inputs, op, MICROSOFT, channels_last=0)
        else:
            self._clamped("QLinearGlobalAveragePool", inputs, op, MICROSOFT, f"{op.output}.places", channels_last=0)
            self._plain("Flatten", [f"{op.output}.places"], op.output, axis=1)

    def _clamped(
        self, kind: str, inputs: Sequence[str], op: Op, domain: str, output: str | None = None, **attributes: Any
    ) -> None:
        """A node that rounds to 0 to 255, and one that clamps to the grid's ends where those are others."""
        output = op.output if output is None else output
        low, high = self._grids[op.output].low, self._grids[op.output].high
        narrower = (low, high) != (LOWEST, HIGHEST)
        self._plain(kind, inputs, f"{output}.wide" if narrower else output, domain, **attributes)
        if narrower:
            ends = [
                self._constant(f"{op.output}.{side}", np.uint8(one)) for side, one in (("low", low), ("high", high))
            ]
            self._plain("Clip", [f"{output}.wide", *ends], output)

    def _plain(self, kind: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> None:
        node = self._onnx.helper.make_node(kind, list(inputs), [output], name=output, domain=domain, **attributes)
        self.nodes.append(node)

    def _on(self, value: str) -> list[str]:
        """A value, with scale and zero point of its grid, as most operators take them."""
        return [value, *self._grid_of(value, self._grids[value])]

    def _grid(self, op: Op) -> list[str]:
        return self._grid_of(op.output, self._grids[op.output])

    def _grid_of(self, value: str, grid: Grid) -> list[str]:
        scale = self._constant(f"{value}.scale", grid.single.numpy())
        return [scale, self._constant(f"{value}.zero_point", np.uint8(grid.zero_point))]

    def _ints(self, op: Op, what: str, values: Sequence[int]) -> str:
        return self._constant(f"{op.output}.{what}", np.array(values, dtype=np.int64))

    def _tensor(self, op: Op, what: str, values: Tensor) -> str:
        return self._constant(f"{op.output}.{what}", values.cpu().numpy())

    def _constant(self, name: str, values: NDArray[Any] | np.generic) -> str:
        if all(one.name != name for one in self.constants):
            self.constants.append(self._onnx.numpy_helper.from_array(np.asarray(values), name))
        return name


def _window(op: Conv2d | MaxPool | AvgPool) -> dict[str, Any]:
    """Attributes of what looks at windows."""
    kernel = op.weight.shape[2:] if isinstance(op, Conv2d) else op.kernel
    assert kernel is not None
    return {"kernel_shape": list(kernel), "strides": list(op.stride), "pads": [*op.padding, *op.padding]}
