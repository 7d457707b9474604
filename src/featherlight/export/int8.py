"""Integer programs as ONNX models.

Legend of shapes: B examples.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from featherlight.export.int8_nodes import MICROSOFT, NodeList
from featherlight.export.packages import DEFAULT_OPSET, OPSETS, check_opset, need_onnx
from featherlight.files import write_atomically
from featherlight.transforms.quantize.integer_executor import IntegerExecutor
from featherlight.transforms.quantize.integer_ops import Op, inputs_of
from featherlight.transforms.quantize.integer_program import IntegerProgram

BATCH = "batch"
"""Name of the axis of examples, whose number is free."""


def int8_model(program: IntegerProgram, example: Float[Tensor, "B ..."], *, opset: int = DEFAULT_OPSET) -> Any:
    """An `onnx.ModelProto` that computes what an integer program computes, each operation to at most one unit.

    Weights are signed with a scale a channel and activations unsigned, which is the form that ONNX Runtime is quickest with on
    CPUs with 8-bit dot products (VNNI). Without those its AVX2 and AVX512 kernels add pairs of products in 16 bits, which can
    saturate where a weight of over 64 meets large activations; `vnni` says what this CPU has.

    Args:
        program: what is exported.
        example: input of the shape that will be used; only the number of examples stays free.
        opset: version of ONNX's operators.

    Raises:
        ValueError: an opset that cannot be written, an example the program does not take, or onnx is not installed.
    """
    check_opset(opset, OPSETS)
    onnx = need_onnx()
    values = IntegerExecutor(program).values(example[:1])
    nodes = NodeList(program, {name: value.ndim for name, value in values.items()})
    for op in program.ops:
        nodes.add(op)
    ends = [
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [BATCH, *values[name].shape[1:]])]
        for name in (program.input, program.output)
    ]
    return _model(onnx, nodes, ends, opset)


def write_int8(
    program: IntegerProgram, example: Float[Tensor, "B ..."], path: Path, *, opset: int = DEFAULT_OPSET
) -> None:
    """Writes what `int8_model` makes to a file.

    Raises:
        ValueError: as `int8_model`.
    """
    content = int8_model(program, example, opset=opset).SerializeToString()
    write_atomically(path, lambda file: file.write(content))


def single_op_model(program: IntegerProgram, op: Op, inputs: list[Tensor], *, opset: int = DEFAULT_OPSET) -> Any:
    """An `onnx.ModelProto` of one operation, from whole numbers to whole numbers, by which each can be looked at alone."""
    onnx = need_onnx()
    ranks = {name: value.ndim for name, value in zip(inputs_of(op), inputs, strict=True)}
    nodes = NodeList(program, ranks)
    nodes.add(op)
    kinds = {
        torch.uint8: onnx.TensorProto.UINT8,
        torch.int32: onnx.TensorProto.INT32,
        torch.float32: onnx.TensorProto.FLOAT,
    }
    given = dict(zip(inputs_of(op), inputs, strict=True))
    into = [onnx.helper.make_tensor_value_info(name, kinds[one.dtype], list(one.shape)) for name, one in given.items()]
    is_sum = program.sums is not None and op.output == program.sums.output
    made = torch.float32 if op.output == program.output else torch.int32 if is_sum else torch.uint8
    out = [onnx.helper.make_tensor_value_info(op.output, kinds[made], None)]
    return _model(onnx, nodes, [into, out], opset)


def _model(onnx: Any, nodes: NodeList, ends: list[list[Any]], opset: int) -> Any:
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(MICROSOFT, 1)]
    graph = onnx.helper.make_graph(nodes.nodes, "integer_program", *ends, initializer=nodes.constants)
    made = onnx.helper.make_model(graph, opset_imports=opsets, producer_name="featherlight")
    made.ir_version = onnx.helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    return made
