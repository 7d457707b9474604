"""Exported programs: ONNX Runtime computes what the reference computes, and the certificate holds only where it should."""

import builtins
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from featherlight import export
from featherlight.nn.models import LeNet300, MobileNet, ResNet
from featherlight.nn.models.resnet import Projection
from featherlight.transforms.quantize.integer_executor import IntegerExecutor
from featherlight.transforms.quantize.integer_ops import AvgPool, Conv2d, Dequantize, Linear, Quantize, Reshape
from featherlight.transforms.quantize.integer_program import IntegerProgram
from tests.oracles.calibrated_programs import of_lenet300, of_mobile_net, of_resnet
from tests.oracles.every_operation import every_operation


def warm(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """In evaluation mode, with running statistics of some data."""
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def trained_alike(kind: str) -> tuple[IntegerProgram, torch.Tensor]:
    """A program of a network with fresh weights, and data."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, 16, 16, generator=generator)
    if kind == "padded":
        model = ResNet(10, widths=(8, 16), blocks=(1, 1))
        return of_resnet(warm(model, x), x, sums=False), x  # pyright: ignore[reportArgumentType]
    if kind == "projected":
        model = ResNet(10, widths=(8, 16), blocks=(1, 1), shortcut=Projection())
        return of_resnet(warm(model, x), x), x  # pyright: ignore[reportArgumentType]
    if kind == "depthwise":
        model = MobileNet(10, blocks=((16, 1), (24, 2)), multiplier=0.5)
        return of_mobile_net(warm(model, x), x), x  # pyright: ignore[reportArgumentType]
    return of_lenet300(LeNet300(10, num_pixels=768), x), x


def narrow() -> tuple[IntegerProgram, torch.Tensor]:
    """Rectifiers whose zero is not the lowest number, cut at the top."""
    made, x = trained_alike("projected")
    grids = {
        name: replace(grid, zero_point=30, low=30, high=170) if name in {op.output for op in made.layers} else grid
        for name, grid in made.grids.items()
    }
    mean = next(op.output for op in made.ops if isinstance(op, AvgPool))
    return IntegerProgram(ops=made.ops, grids=grids | {mean: replace(grids[mean], low=5)}), x


PROGRAMS: dict[str, Any] = {
    "every operation": every_operation,
    "every operation, rounded at the end": lambda: every_operation(sums=False),
    **{kind: (lambda kind=kind: trained_alike(kind)) for kind in ("padded", "projected", "depthwise", "perceptron")},
    "narrow": narrow,
}


@pytest.mark.parametrize("make", PROGRAMS.values(), ids=PROGRAMS)
def test_runtime_and_reference_agree_and_the_certificate_holds(make: Any, tmp_path: Path) -> None:
    made, x = make()
    path = tmp_path / "model.onnx"
    export.write_int8(made, x, path)
    onnx.checker.check_model(onnx.load(path))
    ours, run = export.certify_file(path), export.certify_as_run(path)
    assert ours.holds, ours.problems
    assert run.holds, run.problems
    assert sum(run.between[one] for one in ("QLinearConv", "QGemm") if one in run.between) + (
        made.sums is not None
    ) == len(made.layers)
    if export.vnni():  # else sums of pairs may saturate in 16 bits
        differences = export.layer_differences(made, x[:8])
        assert max(differences.values()) <= 1
        assert all(
            differences[op.output] == 0 for op in made.ops if op.output not in made.grids and op is not made.ops[-1]
        )
    found = export.compare(IntegerExecutor(made), path, x)
    assert found.examples == len(x)
    assert found.same_choice == 1 or not export.vnni()


@pytest.mark.parametrize("opset", [export.OPSETS[0], export.OPSETS[-1]])
def test_first_and_last_opset_and_any_number_of_examples(opset: int, tmp_path: Path) -> None:
    made, x = every_operation()
    path = tmp_path / "model.onnx"
    export.write_int8(made, x, path, opset=opset)
    assert {one.domain: one.version for one in onnx.load(path).opset_import}[""] == opset
    assert export.compare(IntegerExecutor(made), path, x[:1]).same_choice == 1


def with_floats_between() -> onnx.ModelProto:
    """A model that dequantizes, computes and quantizes again."""
    model = export.int8_model(*every_operation(sums=False))
    nodes = list(model.graph.node)
    at = next(number for number, node in enumerate(nodes) if node.op_type == "QLinearAdd")
    made, grid = nodes[at].output[0], nodes[at].input[6:8]
    nodes[at].output[0] = "sum"
    more = [
        helper.make_node("DequantizeLinear", ["sum", *grid], ["floats"], "back"),
        helper.make_node("Sigmoid", ["floats"], ["bent"], "bend"),
        helper.make_node("QuantizeLinear", ["bent", *grid], [made], "again"),
    ]
    del model.graph.node[:]
    model.graph.node.extend([*nodes[: at + 1], *more, *nodes[at + 1 :]])
    return model


def test_a_float_node_between_fails_the_certificate_by_its_name(tmp_path: Path) -> None:
    model = with_floats_between()
    found = export.certify(model)
    assert not found.holds
    assert "`bend` (Sigmoid) computes with floats" in str(found)
    assert "there are 2 nodes QuantizeLinear" in str(found)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert not export.certify_as_run(tmp_path / "model.onnx").holds


def test_a_float_way_around_and_an_operator_that_is_not_known_fail_the_certificate() -> None:
    around = export.int8_model(*every_operation(sums=False))
    around.graph.node.append(helper.make_node("Neg", ["x"], ["z"], "around"))
    assert "`around` (Neg) computes with floats" in str(export.certify(around))
    unknown = export.int8_model(*every_operation(sums=False))
    node = next(node for node in unknown.graph.node if node.op_type == "QLinearConcat")
    node.op_type = "Mystery"
    assert f"`{node.name}` (Mystery) computes with floats" in str(export.certify(unknown))


def test_bad_input_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = every_operation()
    with pytest.raises(ValueError, match=r"`opset` must be from 13 to 23.*got 9"):
        export.int8_model(made, x, opset=9)
    with pytest.raises(ValueError, match=r"`opset` must be from 18 to 23.*got 17"):
        export.write_onnx(nn.Linear(2, 2), torch.zeros(1, 2), tmp_path / "no.onnx", opset=17)
    (tmp_path / "broken.onnx").write_bytes(b"\x00broken")
    with pytest.raises(ValueError, match=r"ONNX Runtime cannot load .*broken\.onnx"):
        export.session(tmp_path / "broken.onnx")
    square = Linear(
        input="q",
        output="l",
        weight=torch.ones(2, 3, dtype=torch.int8),
        weight_scales=torch.ones(2),
        bias=torch.zeros(2, dtype=torch.int32),
    )
    ends = (Quantize(input="x", output="q"), square, Dequantize(input="l", output="y"))
    with pytest.raises(ValueError, match="`l` has inputs of 3 axes"):
        export.int8_model(IntegerProgram(ops=ends, grids={"q": made.grids["q"]}), torch.zeros(1, 4, 3))
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] in ("onnx", "onnxruntime"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"package onnx, which is not installed.*featherlight\[onnx\]"):
        export.int8_model(made, x)
    with pytest.raises(ValueError, match=r"package onnxruntime, which is not installed.*featherlight\[onnx\]"):
        export.session(b"")


def test_a_last_convolution_may_leave_its_sums(tmp_path: Path) -> None:
    made, x = trained_alike("projected")
    conv = next(op for op in made.ops if isinstance(op, Conv2d))
    ops = (made.ops[0], conv, Dequantize(input=conv.output, output="y"))
    short = IntegerProgram(ops=ops, grids={conv.input: made.grids[conv.input]})
    export.write_int8(short, x, tmp_path / "model.onnx")
    assert export.certify_as_run(tmp_path / "model.onnx").holds
    assert export.compare(IntegerExecutor(short), tmp_path / "model.onnx", x[:2]).largest_difference == 0
    turned = Reshape(input="q", output="r")
    flat = IntegerProgram(ops=(made.ops[0], turned, Dequantize(input="r", output="y")), grids={"q": made.grids["q"]})
    assert IntegerExecutor(flat)(x).shape == (40, 768)
