"""The quantized graph of a model: its steps and quantizers, as a submodule that the model's own forward runs through."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.functional import fake_quantize, grid_codes
from featherlight.transforms.quantize.integer_ops import Grid
from featherlight.transforms.quantize.quantizers import ActivationGrid, ActivationQuantizer, MovingRange
from featherlight.transforms.quantize.steps import (
    MOVES,
    AddStep,
    ClampStep,
    InputStep,
    LayerStep,
    NormStep,
    Rectifier,
    Step,
    computed,
    inputs_of,
)

NAME = "quantization"
"""Of the submodule that a prepared model has."""

OBSERVES, QUANTIZES, FROZEN = 0, 1, 2
"""Phases: activations are only looked at; they are rounded too; ranges and BatchNorm stay as they are."""


class QuantizedGraph(nn.Module):
    """Runs a model's steps, rounding weights and activations to their grids on the way.

    Args:
        steps: in order.
        output: name of the value that the model returns.
        grid: kind of the grids of activations.
        example: has the device and dtype.

    Attributes:
        steps: as given.
        output: as given.
        grid: as given.
        example_shape: of one example.
        weights: weight quantizers by the names of steps.
        activations: activation quantizers by the names of values.
        stages: parts of the steps that follow each other, as modules, such as activation checkpointing wants them.
        groups: names of the quantizers whose values share one grid, for each value that has one.
        phase: `OBSERVES`, `QUANTIZES` or `FROZEN`.
        exact: computes a step with whole numbers, as `simulated_integers` has it; None otherwise.
        recorder: is handed values that are to be put on grids, while calibrating; None otherwise.
    """

    phase: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, steps: Sequence[Step], *, output: str, grid: ActivationGrid, example: Tensor) -> None:
        super().__init__()
        self.steps = tuple(steps)
        self.output, self.grid = output, grid
        self.weights, self.activations = nn.ModuleDict(), nn.ModuleDict()
        self.groups: dict[str, tuple[str, ...]] = {}
        self.stages = nn.ModuleList()
        self.example_shape = tuple(example.shape[1:])
        self.exact: Callable[..., Tensor] | None = None
        self.recorder: Recorder | None = None
        first = self.steps[0]
        shape = [-1] + [1] * (example.ndim - 2)
        mean, std = (first.mean, first.std) if isinstance(first, InputStep) else ((0.0,), (1.0,))
        kind = example.dtype if example.is_floating_point() else torch.float32
        for name, values in (("mean", mean), ("std", std)):
            made = torch.tensor(values, dtype=kind, device=example.device).view(shape)
            self.register_buffer(name, made, persistent=False)
        self.register_buffer("phase", torch.full((), OBSERVES, device=example.device))
        self._sources = self._grid_names()

    @property
    def input(self) -> str:
        """Name of the model's input."""
        return inputs_of(self.steps[0])[0]

    def forward(self, model: nn.Module, x: Tensor) -> Tensor:
        """What the model returns for a batch."""
        if not self.stages:
            return self.run(model, x, self.steps, self.output)
        for stage in self.stages:
            x = stage(x)
        return x

    def run(self, model: nn.Module, x: Tensor, steps: Sequence[Step], output: str) -> Tensor:
        """Some steps, one after the other, from the value that the first of them reads to `output`."""
        phase = int(self.phase)
        entry = inputs_of(steps[0])[0]
        values = {entry: self._standardized(x) if entry == self.input else x}
        left = Counter(name for step in steps for name in inputs_of(step))
        left[output] += 1
        for step in steps:
            read = [values[name] for name in inputs_of(step)]
            made = self._placed(step, computed(step, model, self.weights, *read, frozen=phase == FROZEN), phase)
            if self.exact is not None:
                made = _InPlaceOf.apply(made, self.exact(step, made, *read))
            values[step.output] = made
            for name in inputs_of(step):
                left[name] -= 1
                if not left[name]:
                    del values[name]
        return values[output]

    def quantizer(self, name: str) -> ActivationQuantizer:
        """That of one value."""
        return cast(ActivationQuantizer, self.activations[name])

    def has_grid(self, name: str) -> bool:
        """Whether a value is on a grid; sums of the last layer and what follows a float layer at the end are not."""
        return self._sources[name] in self.activations

    def scale_and_zero(self, name: str) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The grid that a value is on, shared or its own."""
        source = self._sources[name]
        members = self.groups.get(source, (source,))
        if len(members) == 1:
            return self.quantizer(source).scale_and_zero()
        ranges = [cast(MovingRange, self.activations[one]) for one in members]
        lows, highs = (torch.stack(ends) for ends in ([one.low for one in ranges], [one.high for one in ranges]))
        return self.grid.fitted(lows.amin(), highs.amax())

    def integer_grid(self, name: str) -> Grid:
        """The same as the grid of an integer program, cut by the rectifier that the value went through."""
        scale, zero = (float(one.detach()) for one in self.scale_and_zero(name))
        zero_point, low, high = round(zero), 0, self.grid.levels
        for rectifier in self._rectifiers(name):
            low = zero_point
            if rectifier.top is not None:
                high = min(high, zero_point + round(rectifier.top / scale))
        return Grid(scale=scale, zero_point=zero_point, low=low, high=max(high, low + 1))

    def codes(self, name: str, value: Tensor) -> Tensor:
        """The whole numbers, as float64, of a value that is on its grid."""
        scale, zero = self.scale_and_zero(name)
        return grid_codes(value, scale, zero, 0, self.grid.levels).to(torch.float64)

    def _standardized(self, x: Tensor) -> Tensor:
        """The model's input with mean and deviation taken off; token numbers as they are."""
        return (x - self.mean) / self.std if isinstance(self.steps[0], InputStep) else x

    def _placed(self, step: Step, value: Tensor, phase: int) -> Tensor:
        """A value on its grid, once grids are in use."""
        name = step.output
        if isinstance(step, MOVES) or name not in self.activations:
            return value
        quantizer = self.quantizer(name)
        if self.recorder is not None:
            self.recorder.record(name, value)
            return value
        if self.training and phase != FROZEN:
            quantizer.observe(value)
        if phase == OBSERVES:
            return value
        if len(self.groups.get(name, ())) < 2:
            return quantizer.rounded(value)
        return fake_quantize(value, *self.scale_and_zero(name), 0, self.grid.levels)

    def _grid_names(self) -> dict[str, str]:
        """Of each value, the value whose grid it is on."""
        found = {inputs_of(self.steps[0])[0]: ""}
        for step in self.steps:
            found[step.output] = found[step.input] if isinstance(step, MOVES) else step.output
        return found

    def _rectifiers(self, name: str) -> Iterator[Rectifier]:
        made = {step.output: step for step in self.steps}
        step = made[name]
        while isinstance(step, MOVES):
            if isinstance(step, ClampStep):
                yield step.rectifier
            step = made[step.input]
        if isinstance(step, LayerStep | NormStep | AddStep) and step.rectifier is not None:
            yield step.rectifier


class Recorder(Protocol):
    """Looks at the values of activations by name."""

    def record(self, name: str, value: Tensor) -> None:
        """Looks at one."""
        ...


def quantized_graph(model: nn.Module) -> QuantizedGraph:
    """The graph of a prepared model.

    Raises:
        ValueError: the model is not prepared.
    """
    found = model._modules.get(NAME)
    if not isinstance(found, QuantizedGraph):
        raise ValueError(
            f"{type(model).__name__} is not prepared for quantization. Call `prepare` of FakeQuantization on it first."
        )
    return found


class _InPlaceOf(torch.autograd.Function):
    """The second of two tensors, with the gradient of the first."""

    @staticmethod
    def forward(ctx: Any, differentiated: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None
