"""What the report of a classifier for whole numbers shows: accuracies, ranges of layers, and their weights as whole numbers."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from featherlight.data import ImageSet
from featherlight.recipes.classify.experiment import outputs
from featherlight.report import LineChart, Section, Table
from featherlight.transforms.quantize.graph import QuantizedGraph, quantized_graph
from featherlight.transforms.quantize.integer_executor import IntegerExecutor
from featherlight.transforms.quantize.integer_program import IntegerProgram
from featherlight.transforms.quantize.quantizers import WeightQuantizer
from featherlight.transforms.quantize.steps import LayerStep, layer_of

_BATCH = 256
_MOST_LINES = 6


def sections_of(
    rounded: nn.Module, program: IntegerProgram | None, images: ImageSet, before: Sequence[float]
) -> Sequence[Section]:
    """All sections.

    Args:
        rounded: the prepared model as training left it.
        program: of it, or None.
        images: held out.
        before: accuracies in float, and calibrated only.
    """
    graph = quantized_graph(rounded)
    return [_accuracies(rounded, program, images, before), _ranges(graph), _weights(rounded, graph)]


def accuracy_of(logits: Tensor, images: ImageSet) -> float:
    """Share of images whose largest logit is that of their label."""
    return float((logits.argmax(-1) == images.labels.to(logits.device)).double().mean())


@torch.no_grad()
def _accuracies(
    rounded: nn.Module, program: IntegerProgram | None, images: ImageSet, before: Sequence[float]
) -> Section:
    simulated = outputs(rounded, images)
    rows: list[tuple[str, float, float]] = []

    def add(name: str, accuracy: float) -> None:
        rows.append((name, 100 * accuracy, 100 * (accuracy - before[0])))

    for name, accuracy in zip(("float", "calibrated, not trained"), before, strict=True):
        add(name, accuracy)
    add("trained, fake-quantized", accuracy_of(simulated, images))
    text = f"Accuracy on {len(images):,} held-out images, in percent, and how far it is from float, in points."
    if program is not None:
        run = IntegerExecutor(program)
        parts = torch.arange(len(images), device=images.labels.device).split(_BATCH)
        whole = torch.cat([run(images.floats(part).cpu()) for part in parts])
        add("trained, whole numbers", accuracy_of(whole, images))
        same = float((whole.argmax(-1) == simulated.argmax(-1).cpu()).double().mean())
        text += f" Of the integer program's answers, {same:.3%} are those of the fake-quantized model."
    table = Table(columns=("model", "accuracy, %", "from float, points"), rows=tuple(rows))
    return Section(title="Whole numbers", text=text, blocks=(table,))


def _ranges(graph: QuantizedGraph) -> Section:
    rows = []
    for step in graph.steps:
        if step.output in graph.activations:
            scale, zero = (float(one.detach()) for one in graph.scale_and_zero(step.output))
            low, high = -zero * scale, (graph.grid.levels - zero) * scale
            kind = type(step).__name__.removesuffix("Step").lower()
            rows.append((step.output, kind, low, high, scale, round(zero)))
    columns = ("value", "made by", "lowest", "highest", "one unit", "number of zero")
    return Section(title="Ranges", blocks=(Table(columns=columns, rows=tuple(rows)),))


def _weights(model: nn.Module, graph: QuantizedGraph) -> Section:
    rows, lines = [], {}
    layers = [step for step in graph.steps if isinstance(step, LayerStep)]
    shown = {layers[round(i * (len(layers) - 1) / max(1, _MOST_LINES - 1))].output for i in range(_MOST_LINES)}
    for step in layers:
        weight = layer_of(model, step.module).weight.detach()
        quantizer = cast(WeightQuantizer, graph.weights[step.output])
        codes, scales = quantizer.codes(weight)
        error = (codes * scales.view(-1, *[1] * (weight.ndim - 1)) - weight).square().sum() / weight.square().sum()
        zeros = float((codes == 0).double().mean())
        spread = float(scales.max() / scales.min())
        rows.append((step.module, " x ".join(map(str, weight.shape)), 100 * float(error.sqrt()), 100 * zeros, spread))
        if step.output in shown:
            counts = torch.bincount((codes + quantizer.high).long().flatten(), minlength=2 * quantizer.high + 1)
            numbers = list(range(-quantizer.high, quantizer.high + 1))
            lines[step.module] = (numbers, (100 * counts / codes.numel()).tolist())
    columns = ("layer", "weights", "error, % of their norm", "zeros, %", "largest scale / smallest")
    chart = LineChart(
        x_label="whole number",
        y_label="share of weights, %",
        lines=lines,
        caption="How often a layer's weights are each whole number.",
        log_y=True,
    )
    return Section(title="Weights", blocks=(Table(columns=columns, rows=tuple(rows)), chart))
