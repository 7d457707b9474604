"""Steps of a prepared model computed with whole numbers, held in float64, as its integer program computes them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from featherlight.transforms.quantize.fixed_point import divided, on_one_shift, shifted
from featherlight.transforms.quantize.graph import FROZEN, QuantizedGraph, quantized_graph
from featherlight.transforms.quantize.integer_program import layer_factors, ratio, sum_scales
from featherlight.transforms.quantize.lowering import Lowering, check_lowers
from featherlight.transforms.quantize.steps import (
    AddStep,
    AverageStep,
    FunctionStep,
    LayerStep,
    NormStep,
    Step,
    averaged,
    layer_of,
    product,
)


class ExactSteps:
    """What each step of a prepared model is, rounded as with fixed-point factors.

    Args:
        model: prepared.
        graph: of it.
    """

    def __init__(self, model: nn.Module, graph: QuantizedGraph) -> None:
        self._model, self._graph = model, graph
        self._lowering = Lowering(model, graph)

    @torch.no_grad()
    def __call__(self, step: Step, made: Tensor, *x: Tensor) -> Tensor:
        """The value of a step.

        Args:
            step: of the graph.
            made: the same by fake quantization.
            x: what it reads, on their grids.
        """
        match step:
            case LayerStep() | NormStep():
                return self._layer(step, x[0]).to(made)
            case AddStep():
                return self._add(step, *x).to(made)
            case AverageStep():
                return self._average(step, x[0]).to(made)
            case FunctionStep():
                table = self._lowering.table(step).to(x[0].device)
                return self._value(step.output, table[self._graph.codes(step.input, x[0]).long()].double()).to(made)
            case _:
                return made

    def _units(self, name: str, x: Tensor) -> Tensor:
        """Whole numbers counted from the zero point, float64."""
        return self._graph.codes(name, x) - self._graph.integer_grid(name).zero_point

    def _value(self, name: str, codes: Tensor) -> Tensor:
        grid = self._graph.integer_grid(name)
        return (codes - grid.zero_point).to(torch.float32) * grid.single.to(codes.device)

    def _placed(self, name: str, units: Tensor) -> Tensor:
        grid = self._graph.integer_grid(name)
        return self._value(name, (units.double() + grid.zero_point).clamp(grid.low, grid.high))

    def _layer(self, step: LayerStep | NormStep, x: Tensor) -> Tensor:
        op, before = self._lowering.layer(step), self._graph.integer_grid(step.input)
        weight, bias = op.weight.to(x.device, torch.float64), op.bias.to(x.device, torch.float64)
        units = self._units(step.input, x)
        if isinstance(step, NormStep):
            sums = torch.nn.functional.conv2d(units, weight, bias, groups=len(weight))
        else:
            sums = product(layer_of(self._model, step.module), units, weight, bias)
        axis = 1 if weight.ndim == 4 else -1
        if not self._graph.has_grid(step.output):
            scales = sum_scales(op, before).to(x.device)
            return sums.to(torch.float32) * (scales.view(-1, 1, 1) if weight.ndim == 4 else scales)
        factors = layer_factors(op, before, self._graph.integer_grid(step.output))
        return self._placed(step.output, factors.times(sums.long().cpu(), axis).to(x.device))

    def _add(self, step: AddStep, first: Tensor, second: Tensor) -> Tensor:
        after = self._graph.integer_grid(step.output)
        factors = [ratio(self._graph.integer_grid(name), after) for name in (step.first, step.second)]
        m1, m2, shift = on_one_shift(*factors)
        sums = m1 * self._units(step.first, first).long() + m2 * self._units(step.second, second).long()
        return self._placed(step.output, shifted(sums, shift))

    def _average(self, step: AverageStep, x: Tensor) -> Tensor:
        units = self._units(step.input, x)
        count = x.shape[-2] * x.shape[-1] if step.kernel is None else step.kernel[0] * step.kernel[1]
        sums = torch.round(averaged(step, units) * count).long()
        factor = ratio(self._graph.integer_grid(step.input), self._graph.integer_grid(step.output))
        return self._placed(step.output, divided(sums * int(factor.mantissa_C), count << int(factor.shift_C)))


@contextmanager
def simulated_integers(model: nn.Module) -> Iterator[None]:
    """Inside the block a prepared model computes what its integer program computes, bit for bit.

    Sums are formed with whole numbers and scaled by the fixed-point factors of the program; gradients are those of fake
    quantization. BatchNorm uses its running statistics. Values are what the whole numbers stand for.

    Args:
        model: prepared, with 8 bits throughout and all ranges known.

    Raises:
        ValueError: the model has no integer program.

    Cost: sums are formed in float64, and everything is computed twice.
    """
    graph = quantized_graph(model)
    check_lowers(model)
    phase = graph.phase.clone()
    graph.exact = ExactSteps(model, graph)
    graph.phase.fill_(FROZEN)
    try:
        yield
    finally:
        graph.exact = None
        graph.phase.copy_(phase)
