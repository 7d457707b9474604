"""From a prepared model to its integer program.

Legend of shapes: O channels out.
"""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.functional import grid_codes
from featherlight.transforms.quantize.graph import QuantizedGraph, quantized_graph
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
)
from featherlight.transforms.quantize.integer_program import IntegerProgram, table_between
from featherlight.transforms.quantize.quantizers import WeightQuantizer
from featherlight.transforms.quantize.steps import (
    AddStep,
    AverageStep,
    ClampStep,
    ConcatStep,
    EmbeddingStep,
    FloatStep,
    FunctionStep,
    InputStep,
    LayerStep,
    MaxPoolStep,
    NormStep,
    PadStep,
    PermuteStep,
    ReshapeStep,
    SameStep,
    Step,
    SubsampleStep,
    computed,
    layer_of,
    norm_of,
)

OUTPUT = "output"
"""Name of a program's output."""
_MOST_BIAS = 2.0**30
_HIGHEST = 127


def to_integer_program(model: nn.Module) -> IntegerProgram:
    """The integer program of a prepared model.

    BatchNorm is folded into the layer before it, with its running statistics: the scales of channels take its factor and the
    bias its shift, while the whole numbers of the weights stay those of the unfolded layer, up to the sign of the factor.
    A last layer without a rectifier leaves its 32-bit sums. A channel whose bias is so large that it would leave 32 bits in
    units of its scale gets a coarser one.

    Args:
        model: prepared by `FakeQuantization` (or `quantize_after_training`), with 8 bits throughout and all ranges known.

    Raises:
        ValueError: the model is not prepared, a layer stays in float or has other bits, or a range was never seen.

    Source: Jacob et al. 2018, sections 2.2 to 2.4; folding: section 3.2.
    """
    graph = quantized_graph(model)
    check_lowers(model)
    lowering = Lowering(model, graph)
    ops = [op for step in graph.steps for op in lowering.ops(step)]
    last = lowering.name(graph.output)
    ops.append(Dequantize(input=last, output=OUTPUT))
    grids = {step.output: graph.integer_grid(step.output) for step in graph.steps if graph.has_grid(step.output)}
    placed = {op.output for op in ops}
    return IntegerProgram(ops=tuple(ops), grids={name: grid for name, grid in grids.items() if name in placed})


@dataclass(frozen=True)
class Lowering:
    """Steps of a prepared model as operations.

    Attributes:
        model: prepared.
        graph: of it.
    """

    model: nn.Module
    graph: QuantizedGraph

    def ops(self, step: Step) -> tuple[Op, ...]:
        """The operations of one step; none for dropout."""
        out = step.output
        match step:
            case SameStep():
                return ()
            case InputStep():
                return (Quantize(input=step.input, output=out, mean=step.mean, std=step.std),)
            case LayerStep() | NormStep():
                return (self.layer(step),)
            case AddStep():
                return (Add(first=self.name(step.first), second=self.name(step.second), output=out),)
            case ConcatStep():
                return (Concat(parts=tuple(map(self.name, step.parts)), output=out, axis=step.axis),)
            case AverageStep():
                shape = {"kernel": step.kernel, "stride": step.stride, "padding": step.padding, "flat": step.flat}
                return (AvgPool(input=self.name(step.input), output=out, **shape),)
            case FunctionStep():
                return (Lookup(input=self.name(step.input), output=out, table=self.table(step)),)
            case ClampStep():
                table = table_between(self.graph.integer_grid(step.input), self.graph.integer_grid(out))
                return (Lookup(input=self.name(step.input), output=out, table=table),)
            case FloatStep() | EmbeddingStep():
                raise AssertionError("these are refused before")
            case _:
                return (self._move(step),)

    def name(self, value: str) -> str:
        """Of the value that stands for another where a step has no operation."""
        made = {step.output: step for step in self.graph.steps}
        while isinstance(step := made.get(value), SameStep):
            value = step.input
        return value

    def layer(self, step: LayerStep | NormStep) -> Layer:
        """A layer with what is folded into it."""
        codes, scales, bias = self._folded(step)
        before = self.graph.integer_grid(step.input)
        codes, scales = _within_32_bits(codes, scales, bias, before)
        units = before.single.to(scales) * scales
        made = {
            "input": self.name(step.input),
            "output": step.output,
            "weight": codes.to(torch.int8).cpu(),
            "weight_scales": scales.cpu(),
            "bias": torch.round(bias / units.to(torch.float64)).to(torch.int32).cpu(),
        }
        if isinstance(step, NormStep):
            return Conv2d(**made, groups=len(codes))
        module = layer_of(self.model, step.module)
        if isinstance(module, nn.Linear):
            return Linear(**made)
        shape = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
        return Conv2d(**made, **shape, groups=module.groups)  # pyright: ignore[reportArgumentType]

    def _folded(self, step: LayerStep | NormStep) -> tuple[Tensor, Float[Tensor, "O"], Float[Tensor, "O"]]:
        """Whole numbers of the weights, their scales and the bias in float64."""
        if isinstance(step, NormStep):
            factor, shift = _factor_and_shift(self.model, step.norm)
            ones = torch.full_like(factor, _HIGHEST).view(-1, 1, 1, 1)
            return ones * _signs(factor, ones), factor.abs() / _HIGHEST, shift
        module = layer_of(self.model, step.module)
        codes, scales = cast(WeightQuantizer, self.graph.weights[step.output]).codes(module.weight)
        codes, scales = codes.to(torch.float64), scales.to(torch.float64)
        bias = torch.zeros_like(scales) if module.bias is None else module.bias.detach().to(torch.float64)
        if step.norm is not None:
            factor, shift = _factor_and_shift(self.model, step.norm)
            codes, scales, bias = codes * _signs(factor, codes), scales * factor.abs(), bias * factor + shift
        return codes, scales, bias

    def _move(self, step: MaxPoolStep | ReshapeStep | PermuteStep | SubsampleStep | PadStep) -> Op:
        before, out = self.name(step.input), step.output
        match step:
            case MaxPoolStep():
                windows = {"kernel": step.kernel, "stride": step.stride, "padding": step.padding}
                return MaxPool(input=before, output=out, **windows, ceil_mode=step.ceil_mode)
            case ReshapeStep():
                return Reshape(input=before, output=out, shape=step.shape)
            case PermuteStep():
                return Permute(input=before, output=out, axes=step.axes)
            case SubsampleStep():
                return Subsample(input=before, output=out, stride=step.stride)
            case PadStep():
                sides = {"channels": step.channels, "rows": step.rows, "columns": step.columns}
                return ZeroPad(input=before, output=out, **sides)

    def table(self, step: FunctionStep) -> Tensor:
        """What stands for each whole number after functions of one number."""
        before, after = self.graph.integer_grid(step.input), self.graph.integer_grid(step.output)
        numbers = (torch.arange(256) - before.zero_point) * before.single
        with torch.no_grad():
            made = computed(step, self.model, self.graph.weights, numbers.to(self.graph.mean), frozen=True)
        made = made.to(torch.float32).cpu()
        return grid_codes(made, after.single, after.zero_point, after.low, after.high).to(torch.uint8)


def check_lowers(model: nn.Module) -> None:
    """Raises ValueError unless a prepared model has an integer program; the sentence says why not."""
    graph = quantized_graph(model)
    for step in graph.steps:
        if isinstance(step, FloatStep | EmbeddingStep):
            why = "stays in float" if isinstance(step, FloatStep) else "reads token numbers and not floats"
            raise ValueError(
                f"the layer `{step.module}` ({type(model.get_submodule(step.module)).__name__}) {why}, so that the model has no "
                "program of whole numbers alone. Use it as it is, fake-quantized."
            )
        if isinstance(step, LayerStep):
            high = cast(WeightQuantizer, graph.weights[step.output]).high
            if high != _HIGHEST:
                raise ValueError(
                    f"the weights of `{step.module}` have {high.bit_length() + 1} bits, and integer programs have 8. Fewer bits "
                    "are simulated only."
                )
    if graph.grid.levels != 255:
        raise ValueError(
            f"activations have {graph.grid.bits} bits, and integer programs have 8. Fewer are simulated only."
        )
    for name in graph.activations:
        if not int(cast(Tensor, graph.activations[name].batches)):
            raise ValueError(
                f"the range of `{name}` is not known: the model has seen no batch in training mode since it was prepared. Train, "
                "or calibrate it."
            )


def _factor_and_shift(model: nn.Module, name: str) -> tuple[Float[Tensor, "O"], Float[Tensor, "O"]]:
    """What BatchNorm multiplies by and then adds, in float64."""
    norm = norm_of(model, name)
    assert norm.running_mean is not None, "only norms with running statistics have steps"
    assert norm.running_var is not None, "as above"
    mean, variance = norm.running_mean.to(torch.float64), norm.running_var.to(torch.float64)
    factor = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight.detach().to(torch.float64)
    shift = -mean * factor
    return factor, shift if norm.bias is None else shift + norm.bias.detach().to(torch.float64)


def _signs(factor: Tensor, like: Tensor) -> Tensor:
    return torch.sign(factor).view(-1, *[1] * (like.ndim - 1))


def _within_32_bits(codes: Tensor, scales: Tensor, bias: Tensor, before: Grid) -> tuple[Tensor, Float[Tensor, "O"]]:
    """Whole numbers and float32 scales, coarser where the bias needs it and any where all weights are 0."""
    least = bias.abs() / (before.scale * _MOST_BIAS)
    largest = scales.amax() if float(scales.amax()) > 0 else torch.ones_like(scales.amax())
    wanted = torch.where(scales > 0, scales, largest)
    wanted = torch.maximum(wanted, least).clamp(min=2.0**-100).to(torch.float32)
    ratio = scales / wanted.to(torch.float64)
    coarser = ratio < 0.999
    moved = torch.round(codes * ratio.view(-1, *[1] * (codes.ndim - 1)))
    return torch.where(coarser.view(-1, *[1] * (codes.ndim - 1)), moved, codes), wanted
