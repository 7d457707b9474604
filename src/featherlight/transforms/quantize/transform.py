"""Fake quantization as a transform of a model: prepared, moved along while training, and baked in at the end."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from featherlight.transforms.quantize.build import built_steps
from featherlight.transforms.quantize.calibration import Calibration, calibrate
from featherlight.transforms.quantize.graph import (
    FROZEN,
    NAME,
    OBSERVES,
    QUANTIZES,
    QuantizedGraph,
    quantized_graph,
)
from featherlight.transforms.quantize.quantizers import (
    ActivationGrid,
    ActivationQuantizer,
    LearnedRange,
    MovingRange,
    WeightQuantizer,
)
from featherlight.transforms.quantize.stages import attach, detach
from featherlight.transforms.quantize.steps import MOVES, ConcatStep, FloatStep, LayerStep, layer_of

_WEIGHT = "weight"


@dataclass(frozen=True, kw_only=True)
class WeightGrid:
    """The grids of weights: symmetric about 0, one for each output channel.

    Args:
        bits: 8, or 7 to 2 in simulation.
        learned: whether scales are learned (LSQ); else they follow the largest entry.
        least_squares: whether scales start as those of the least squared error and keep their share of the largest entry,
            which matters with few bits. Learned ones always start so.

    Raises:
        ValueError: bits that there are not.
    """

    bits: int = 8
    learned: bool = False
    least_squares: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"`bits` of weights must be from 2 to 8; got {self.bits}.")


class RangeRule(Protocol):
    """Says how ranges of activations are found while training."""

    def quantizer(self, grid: ActivationGrid) -> ActivationQuantizer:
        """A fresh quantizer: a module that keeps what it knows in buffers and parameters."""
        ...


@dataclass(frozen=True, kw_only=True)
class MovingAverage:
    """Ranges follow the ends of batches.

    Args:
        momentum: weight of a batch.

    Source: Jacob et al. 2018, section 3.1.
    """

    momentum: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.momentum <= 1:
            raise ValueError(f"`momentum` must lie in (0, 1]; got {self.momentum}.")

    def quantizer(self, grid: ActivationGrid) -> MovingRange:
        """A `MovingRange`."""
        return MovingRange(grid, self.momentum)


@dataclass(frozen=True)
class LearnedScale:
    """Ranges are learned with the weights. Source: Esser et al. 2020."""

    def quantizer(self, grid: ActivationGrid) -> LearnedRange:
        """A `LearnedRange`."""
        return LearnedRange(grid)


@dataclass(frozen=True, kw_only=True)
class Timetable:
    """What happens when, as shares of the budget.

    Args:
        activations_after: activations are only looked at before, and rounded from there on, so that ranges have settled.
        freeze_after: from there on ranges and the statistics of BatchNorm stay as they are, so that the weights settle to what
            the integer model computes.

    Source: Jacob et al. 2018, section 3.1; Krishnamoorthi 2018, section 3.2.2.
    """

    activations_after: float = 0.1
    freeze_after: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.activations_after <= self.freeze_after <= 1:
            raise ValueError(
                "`activations_after` and `freeze_after` must lie in [0, 1], in this order; got "
                f"{self.activations_after} and {self.freeze_after}."
            )

    def phase(self, progress: float) -> int:
        """That of a graph at a share of the budget."""
        if progress >= self.freeze_after:
            return FROZEN
        return QUANTIZES if progress >= self.activations_after else OBSERVES


@dataclass(frozen=True, kw_only=True, eq=False)
class FakeQuantization:
    """Trains a model for whole numbers: weights and activations are rounded to their grids in every forward pass.

    The model stays the object it is. While prepared it has a submodule `quantization` and runs through that; its other names in
    `state_dict` are as they were. `convert` puts the weights of convolutions and linear layers on their grids (of the layer
    as it is, not folded with its BatchNorm) and leaves plain modules and nothing else: take the integer program before, with
    `to_integer_program`.

    Where a layer's weight has parametrizations, such as a mask, what they make is rounded. The grids of weights are one for
    each channel and symmetric, so that rounding commutes with the factor g of BatchNorm: `round(w / s) s g` is
    `round(w g / (s g)) s g`. Folding with a correction to batch statistics, as the papers have it, is thereby what plain
    BatchNorm after a rounded layer computes, at the cost of one convolution, and no jitter of batch statistics comes into the
    weights while training.

    Args:
        example: a batch of the model's input, of one example or more; its values do not matter.
        weights: their grids.
        activations: their grids.
        ranges: how ranges of activations are found while training. Values that are put side by side share a grid, which follows
            moving averages in any case.
        timetable: what happens when.
        calibration: data that ranges start from; None lets them start from the first batch.
        keep_float: names of layers that stay in float, with all that is inside them. Such a model has no integer program.

    Source: Jacob et al. 2018; Krishnamoorthi 2018.
    """

    example: Tensor
    weights: WeightGrid = field(default_factory=WeightGrid)
    activations: ActivationGrid = field(default_factory=ActivationGrid)
    ranges: RangeRule = field(default_factory=MovingAverage)
    timetable: Timetable = field(default_factory=Timetable)
    calibration: Calibration | None = None
    keep_float: Collection[str] = ()

    def prepare(self, model: nn.Module) -> None:
        """Gives the model its quantized graph, and calibrates it where there are data.

        Raises:
            ValueError: a layer without an integer form, no static graph, or bad calibration data; the sentence names it.
        """
        if NAME in model._modules or "forward" in model.__dict__:
            raise ValueError(
                f"{type(model).__name__} has a forward of its own already, or a part called `{NAME}`: it was prepared before. "
                "Convert it first."
            )
        example = self.example
        if (first := next(model.parameters(), None)) is not None:
            example = example.to(first if example.is_floating_point() else first.device)
        steps, output = built_steps(model, example, self.keep_float)
        graph = QuantizedGraph(steps, output=output, grid=self.activations, example=example)
        self._add_quantizers(model, graph)
        attach(model, graph.to(example.device))
        if self.calibration is not None:
            try:
                calibrate(model, self.calibration)
            except ValueError:
                detach(model)
                raise

    def update(self, model: nn.Module, progress: float) -> None:
        """Moves to the phase of the timetable."""
        quantized_graph(model).phase.fill_(self.timetable.phase(progress))

    def convert(self, model: nn.Module) -> None:
        """Puts weights on their grids and takes everything else off the model.

        A weight with parametrizations of others gets one more that returns what it is; their own `convert` bakes it in.
        """
        graph = quantized_graph(model)
        for step in graph.steps:
            if isinstance(step, LayerStep):
                _bake(layer_of(model, step.module), cast(WeightQuantizer, graph.weights[step.output]))
        detach(model)

    def _add_quantizers(self, model: nn.Module, graph: QuantizedGraph) -> None:
        groups = _groups(graph)
        for step in graph.steps:
            name = step.output
            if isinstance(step, LayerStep):
                weight = layer_of(model, step.module).weight.detach()
                quantizer = WeightQuantizer(weight, bits=self.weights.bits, learned=self.weights.learned)
                if self.weights.least_squares:
                    quantizer.fit(weight)
                graph.weights[name] = quantizer
            leaves_sums = isinstance(step, FloatStep) or (isinstance(step, LayerStep) and step.rectifier is None)
            if isinstance(step, MOVES) or (name == graph.output and leaves_sums):
                continue
            shared = groups.get(name, ())
            rule: RangeRule = (
                MovingAverage() if len(shared) > 1 and not isinstance(self.ranges, MovingAverage) else self.ranges
            )
            graph.activations[name] = cast(nn.Module, rule.quantizer(self.activations))
            if shared:
                graph.groups[name] = shared


def quantize_after_training(
    model: nn.Module, calibration: Calibration, *, weights: WeightGrid | None = None, keep_float: Collection[str] = ()
) -> None:
    """Prepares a trained model, in place, with ranges from calibration data alone: the quick way.

    The model is then as after the last step of `FakeQuantization`: `to_integer_program` lowers it, `FakeQuantization.convert`
    bakes it.

    Args:
        model: trained.
        calibration: a few hundred examples, and the rule that chooses ranges.
        weights: grids of the weights; None is 8 bits with the least squared error.
        keep_float: as for `FakeQuantization`.

    Raises:
        ValueError: as `FakeQuantization.prepare`.

    Source: Krishnamoorthi 2018, section 3.1.
    """
    made = FakeQuantization(
        example=calibration.batches[0][:2],
        weights=WeightGrid(least_squares=True) if weights is None else weights,
        calibration=calibration,
        keep_float=keep_float,
    )
    made.prepare(model)
    made.update(model, 1.0)


def _groups(graph: QuantizedGraph) -> dict[str, tuple[str, ...]]:
    """Of each value that is put side by side with others, the names of all that so come to share its grid."""
    sources: dict[str, str] = {}
    members: dict[str, set[str]] = {}
    for step in graph.steps:
        sources[step.output] = sources[step.input] if isinstance(step, MOVES) else step.output
        if isinstance(step, ConcatStep):
            joined = {step.output, *(sources[one] for one in step.parts)}
            joined |= {name for one in joined for name in members.get(one, ())}
            members |= dict.fromkeys(joined, joined)
    return {name: tuple(sorted(group)) for name, group in members.items()}


class _Fixed(nn.Module):
    """A parametrization that returns what it was made with."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, weight: Tensor) -> Tensor:
        return self.value


@torch.no_grad()
def _bake(layer: nn.Module, quantizer: WeightQuantizer) -> None:
    weight = cast(Tensor, layer.weight)
    rounded = quantizer(weight).detach()
    if parametrize.is_parametrized(layer, _WEIGHT):
        parametrize.register_parametrization(layer, _WEIGHT, _Fixed(rounded.clone()))
    else:
        weight.copy_(rounded)
