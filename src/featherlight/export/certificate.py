"""A certificate that a model computes with whole numbers between one quantization and one dequantization, read off its graph."""

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featherlight.export.packages import need_onnx
from featherlight.export.sessions import session

_WHOLE_RESULTS = {
    "QuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "QLinearAdd",
    "QLinearConcat",
    "QLinearAveragePool",
    "QLinearGlobalAveragePool",
    "ConvInteger",
    "MatMulInteger",
    "QGemm",
}
_KEEPS_KIND = {
    "Add",
    "Clip",
    "Flatten",
    "Gather",
    "Identity",
    "MaxPool",
    "NhwcMaxPool",
    "Pad",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
_QGEMM_WITH_GRID = 9


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What stands in a graph, and why it is not one of whole numbers alone if it is not.

    Attributes:
        before: operators on floats before the quantization, such as the standardization of images.
        between: how often each operator stands between the two ends.
        problems: sentences; none if the certificate holds.
    """

    before: tuple[str, ...]
    between: Mapping[str, int]
    problems: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether there is one quantization, one dequantization, and no operator on floats between or after them."""
        return not self.problems

    def __str__(self) -> str:
        parts = ", ".join(f"{count} {name}" for name, count in sorted(self.between.items()))
        start = f"{', '.join(self.before)}; " if self.before else ""
        end = "; ".join(self.problems) or "no float operator between"
        return f"{start}1 QuantizeLinear, {parts}, 1 DequantizeLinear: {end}" if self.holds else end


def certify(model: Any) -> Certificate:
    """Reads a certificate off an `onnx.ModelProto`.

    Each node is taken to give floats unless it is of an operator known to give whole numbers, or one that moves or adds what
    is known to be whole. So an operator that is not known fails the certificate, as does one inside of a subgraph.
    """
    graph, whole = model.graph, _whole_constants(model.graph)
    dequantized, later = set[str](), set[str]()
    before, between, problems = list[str](), Counter[str](), list[str]()
    for node in graph.node:
        is_later = bool(later.intersection(node.input))
        if node.op_type == "DequantizeLinear":
            dequantized.update(node.output)
            if not whole.issuperset(node.input[:1]):
                problems.append(f"`{_name(node)}` (DequantizeLinear) is handed floats")
        elif _gives_whole(node, whole):
            whole.update(node.output)
            if node.op_type != "QuantizeLinear":
                between[node.op_type] += 1
            elif is_later:
                problems.append(f"`{_name(node)}` (QuantizeLinear) quantizes a second time")
        elif is_later or not _feeds_quantize(node, graph):
            problems.append(
                f"`{_name(node)}` ({node.op_type}) computes with floats, and not for the quantization alone"
            )
        else:
            before.append(node.op_type)
        if is_later or node.op_type == "QuantizeLinear":
            later.update(node.output)
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        count = sum(node.op_type == kind for node in graph.node)
        if count != 1:
            problems.append(f"there are {count} nodes {kind}, and there must be 1")
    missing = [one.name for one in graph.output if one.name not in dequantized]
    if missing:
        problems.append(f"the output `{missing[0]}` is not what was dequantized")
    return Certificate(before=tuple(before), between=dict(between), problems=tuple(problems))


def certify_file(path: Path) -> Certificate:
    """Reads a certificate off an ONNX file; raises ValueError where onnx is not installed."""
    return certify(need_onnx().load(path))


def certify_as_run(path: Path) -> Certificate:
    """Reads the certificate off the graph that ONNX Runtime makes of a file on this machine, after all of its optimizations.

    Raises:
        ValueError: the file cannot be loaded, or onnx or onnxruntime is not installed.
    """
    onnx = need_onnx()
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        session(path, optimized=optimized)
        return certify(onnx.load(optimized))


def _whole_constants(graph: Any) -> set[str]:
    """Names of constants that are not floats."""
    onnx = need_onnx()
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
    return {one.name for one in graph.initializer if one.data_type not in floats}


def _gives_whole(node: Any, whole: set[str]) -> bool:
    """Whether what a node makes is known to be whole numbers."""
    if node.op_type == "QGemm":
        return len(node.input) == _QGEMM_WITH_GRID and bool(node.input[-1])
    if node.op_type == "Cast":
        onnx = need_onnx()
        kinds = {onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.UINT8, onnx.TensorProto.INT8}
        return node.input[0] in whole and any(one.name == "to" and one.i in kinds for one in node.attribute)
    if node.op_type in _KEEPS_KIND:
        return whole.issuperset(name for name in node.input if name)
    return node.op_type in _WHOLE_RESULTS


def _feeds_quantize(node: Any, graph: Any) -> bool:
    """Whether a node leads only to the quantization."""
    reached, todo = set[str](), list(node.output)
    while todo:
        name = todo.pop()
        readers = [one for one in graph.node if name in one.input]
        if not readers:
            return False
        for one in readers:
            if one.op_type != "QuantizeLinear" and one.output[0] not in reached:
                reached.update(one.output)
                todo += one.output
    return True


def _name(node: Any) -> str:
    return node.name or (node.output[0] if node.output else node.op_type)
