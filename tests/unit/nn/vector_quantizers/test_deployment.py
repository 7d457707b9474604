"""Compiled without breaks, exported, and run by ONNX Runtime."""

import copy
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from featherlight.nn.vector_quantizers import (
    Codebook,
    Cosine,
    GradientUpdate,
    KMeans,
    ReplaceDead,
    RotationTrick,
    VectorQuantizer,
)


def _quantizers() -> dict[str, VectorQuantizer]:
    """Parts that the table of all quantizers has not."""
    replace = ReplaceDead(threshold=2.0)
    return {
        "heads": VectorQuantizer(
            Codebook(8, 3, num_books=2), heads=2, assign=Cosine(), gradient=RotationTrick(), channel_axis=1
        ),
        "shared": VectorQuantizer(
            Codebook(8, 3, learnable=True), heads=2, learn=GradientUpdate(replace=replace), channel_axis=1
        ),
        "many": VectorQuantizer(Codebook(5000, 6, init=None), channel_axis=1),
    }


def _train(layer: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    outcomes = []
    for x, mask in batches:
        x = x.clone().requires_grad_()
        values, codes, aux_loss = layer(x, mask=mask)
        ((values * x.detach()).sum() + aux_loss).backward()
        outcomes += [values.detach(), codes.indices, aux_loss.detach(), x.grad]
    return outcomes


@pytest.mark.parametrize("name", ["shared", "many"])
def test_compiling_breaks_no_graph_and_changes_nothing(name: str) -> None:
    torch.compiler.reset()
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 6, 5, 5)] * 5
    batches = [(torch.randn(s, generator=generator), torch.rand(4, 5, 5, generator=generator) > 0.2) for s in shapes]
    torch.manual_seed(0)
    eager = _quantizers()[name]
    torch.manual_seed(0)
    layer = _quantizers()[name]
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    for expected, found in zip(_train(eager, batches), _train(compiled, batches), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(layer.state_dict(), eager.state_dict())
    x, _ = batches[0]
    with torch.no_grad():
        assert torch.equal(compiled.eval()(x).values, eager.eval()(x).values)


def test_compiled_training_asks_no_more_once_codes_have_started() -> None:
    torch.compiler.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return graph

    eager = VectorQuantizer(Codebook(4, 6, init=KMeans(batches=2)))
    layer = copy.deepcopy(eager)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        compiled(x)
        eager(x)
    assert layer.codebook.batches == 2
    layer.train()
    compiled(x)
    eager(x)
    assert ["featherlight.kmeans_codes.default" in graph for graph in graphs] == [True, False]
    torch.testing.assert_close(layer.state_dict(), eager.state_dict())


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's exporter warns of itself
def test_onnx_runtime_gives_the_same_codes_for_any_number_of_images(tmp_path: Path) -> None:
    quantizers = _quantizers()
    model = _SideBySide(nn.Conv2d(2, 6, 3), [quantizers["heads"], quantizers["many"]]).eval()
    x = torch.randn(2, 2, 7, 7, generator=torch.Generator().manual_seed(0))
    images = torch.export.Dim("images", min=1, max=64)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: images},))
    path = tmp_path / "model.onnx"
    torch.onnx.export(exported, (x,), str(path), verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    many = torch.randn(9, 2, 7, 7, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(many)
        torch.testing.assert_close(exported.module()(many), expected)
    outputs = session.run(None, {session.get_inputs()[0].name: many.numpy()})
    for output, one in zip(outputs, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(output), one, rtol=1e-5, atol=1e-6)


class _SideBySide(nn.Module):
    """Values and indices of several quantizers behind one layer, so that all are exported at once."""

    def __init__(self, first: nn.Module, quantizers: list[VectorQuantizer]) -> None:
        super().__init__()
        self.first, self.quantizers = first, nn.ModuleList(quantizers)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.first(x)
        results = [quantizer(features) for quantizer in self.quantizers]
        return tuple(one for values, codes, _ in results for one in (values, codes.indices))
