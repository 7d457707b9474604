"""The steps of a quantized graph: what each computes with fake-quantized floats.

Names of values are those of the traced graph. Modules are held by their names, so that a copy of the model has steps of its own.

Legend of shapes: B examples, C channels, H rows, W columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from featherlight.transforms.quantize.quantizers import WeightQuantizer
from featherlight.transforms.statistics import statistics_are_frozen

Pair = tuple[int, int]


@dataclass(frozen=True)
class Rectifier:
    """`max(x, 0)`, cut at `top` unless that is None."""

    top: float | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        return x.relu() if self.top is None else x.clamp(0.0, self.top)


@dataclass(frozen=True, kw_only=True)
class InputStep:
    """The model's input, with a mean and a standard deviation of channels taken off."""

    output: str
    input: str
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, kw_only=True)
class LayerStep:
    """A convolution or linear layer, with what follows it: BatchNorm, a rectifier."""

    output: str
    input: str
    module: str
    norm: str | None = None
    rectifier: Rectifier | None = None


@dataclass(frozen=True, kw_only=True)
class NormStep:
    """BatchNorm that follows no layer of its own; as whole numbers it is a depthwise convolution of 1x1."""

    output: str
    input: str
    norm: str
    rectifier: Rectifier | None = None


@dataclass(frozen=True, kw_only=True)
class AddStep:
    """A sum of two values."""

    output: str
    first: str
    second: str
    rectifier: Rectifier | None = None


@dataclass(frozen=True, kw_only=True)
class ConcatStep:
    """Values side by side; all of them share a grid, so that nothing is rounded again. Jacob et al. 2018, appendix A.3."""

    output: str
    parts: tuple[str, ...]
    axis: int


@dataclass(frozen=True, kw_only=True)
class MaxPoolStep:
    """The largest of each window."""

    output: str
    input: str
    kernel: Pair
    stride: Pair
    padding: Pair
    ceil_mode: bool


@dataclass(frozen=True, kw_only=True)
class AverageStep:
    """The mean of each window; of all places where `kernel` is None, and then without their axes if `flat`."""

    output: str
    input: str
    kernel: Pair | None = None
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    flat: bool = False


@dataclass(frozen=True, kw_only=True)
class ReshapeStep:
    """The same numbers in another shape, which is without the batch."""

    output: str
    input: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PermuteStep:
    """The axes in another order."""

    output: str
    input: str
    axes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SubsampleStep:
    """Every so many rows and columns."""

    output: str
    input: str
    stride: Pair


@dataclass(frozen=True, kw_only=True)
class PadStep:
    """Zeros around it."""

    output: str
    input: str
    channels: Pair
    rows: Pair
    columns: Pair

    @property
    def sides(self) -> tuple[int, ...]:
        """As torch wants them: the last axis first."""
        return (*self.columns, *self.rows, *self.channels)


@dataclass(frozen=True, kw_only=True)
class SameStep:
    """What changes nothing outside of training: a module, or dropout of a share where a function does it."""

    output: str
    input: str
    module: str | None
    share: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ClampStep:
    """A rectifier that follows nothing it could be part of; it stays on the grid."""

    output: str
    input: str
    rectifier: Rectifier


@dataclass(frozen=True, kw_only=True)
class FunctionStep:
    """Functions of each number by itself, one after the other: as whole numbers, a table."""

    output: str
    input: str
    functions: tuple[Callable[[Tensor], Tensor], ...]


@dataclass(frozen=True, kw_only=True)
class FloatStep:
    """A module that stays in float."""

    output: str
    input: str
    module: str


@dataclass(frozen=True, kw_only=True)
class EmbeddingStep:
    """Rows of a table, whose grid is that of what comes out."""

    output: str
    input: str
    module: str


Step = (
    InputStep
    | LayerStep
    | NormStep
    | AddStep
    | ConcatStep
    | MaxPoolStep
    | AverageStep
    | ReshapeStep
    | PermuteStep
    | SubsampleStep
    | PadStep
    | SameStep
    | ClampStep
    | FunctionStep
    | FloatStep
    | EmbeddingStep
)
"""All kinds."""

MOVES = (MaxPoolStep, ReshapeStep, PermuteStep, SubsampleStep, PadStep, SameStep, ClampStep)
"""Steps whose output is on the grid of their input."""


def inputs_of(step: Step) -> tuple[str, ...]:
    """Names of the values that a step reads."""
    match step:
        case AddStep():
            return step.first, step.second
        case ConcatStep():
            return step.parts
        case _:
            return (step.input,)


def computed(
    step: Step, model: nn.Module, weights: nn.ModuleDict, *x: Tensor, frozen: bool, quantizes: bool = True
) -> Tensor:
    """What a step makes, before it is rounded to its grid.

    Args:
        step: of a graph.
        model: its modules.
        weights: its weight quantizers.
        x: the values it reads; of the input, with mean and deviation taken off already.
        frozen: whether BatchNorm uses its running statistics, also in training.
        quantizes: whether weights are rounded.
    """
    match step:
        case InputStep() | ConcatStep():
            return x[0] if isinstance(step, InputStep) else torch.cat(x, step.axis)
        case LayerStep():
            return _layer(step, model, weights, x[0], frozen=frozen, quantizes=quantizes)
        case NormStep():
            return _rectified(step.rectifier, normalized(norm_of(model, step.norm), x[0], frozen=frozen))
        case AddStep():
            return _rectified(step.rectifier, x[0] + x[1])
        case FunctionStep():
            return reduce(lambda value, call: call(value), step.functions, x[0])
        case SameStep(module=None):
            return functional.dropout(x[0], step.share, training=weights.training)
        case FloatStep() | EmbeddingStep() | SameStep():
            assert step.module is not None, "dropout by a function stands above"
            return model.get_submodule(step.module)(x[0])
        case ClampStep():
            return step.rectifier(x[0])
        case AverageStep():
            return averaged(step, x[0])
        case _:
            return moved(step, x[0])


def moved(
    step: MaxPoolStep | ReshapeStep | PermuteStep | SubsampleStep | PadStep, x: Tensor, zero: float = 0.0
) -> Tensor:
    """Numbers in other places; `zero` is what stands for 0."""
    match step:
        case MaxPoolStep():
            return functional.max_pool2d(x, step.kernel, step.stride, step.padding, ceil_mode=step.ceil_mode)
        case ReshapeStep():
            return x.reshape(len(x), *step.shape)
        case PermuteStep():
            return x.permute(step.axes)
        case SubsampleStep():
            return x[:, :, :: step.stride[0], :: step.stride[1]]
        case PadStep():
            return functional.pad(x, step.sides, value=zero)


def averaged(step: AverageStep, x: Tensor) -> Tensor:
    """The mean of each window."""
    if step.kernel is None:
        return x.mean((-2, -1), keepdim=not step.flat)
    return functional.avg_pool2d(x, step.kernel, step.stride, step.padding)


def normalized(norm: _BatchNorm, x: Tensor, *, frozen: bool) -> Tensor:
    """BatchNorm, with its running statistics where `frozen`; statistics of a pass that is made again are not taken twice."""
    if frozen or not norm.training:
        return functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    if statistics_are_frozen():
        assert norm.running_mean is not None, "norms without running statistics are refused"
        assert norm.running_var is not None, "as above"
        copies = norm.running_mean.clone(), norm.running_var.clone()
        return functional.batch_norm(x, *copies, norm.weight, norm.bias, training=True, eps=norm.eps)
    return norm(x)


def product(module: nn.Conv2d | nn.Linear, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a layer makes with a weight and a bias that are not its own."""
    if isinstance(module, nn.Linear):
        return functional.linear(x, weight, bias)
    return functional.conv2d(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)


def layer_of(model: nn.Module, name: str) -> nn.Conv2d | nn.Linear:
    """The convolution or linear layer of a name."""
    return cast("nn.Conv2d | nn.Linear", model.get_submodule(name))


def norm_of(model: nn.Module, name: str) -> _BatchNorm:
    """The BatchNorm of a name."""
    return cast(_BatchNorm, model.get_submodule(name))


def _layer(
    step: LayerStep, model: nn.Module, weights: nn.ModuleDict, x: Tensor, *, frozen: bool, quantizes: bool
) -> Tensor:
    module = layer_of(model, step.module)
    quantizer = cast(WeightQuantizer, weights[step.output])
    y = product(module, x, quantizer(module.weight) if quantizes else module.weight, module.bias)
    if step.norm is not None:
        y = normalized(norm_of(model, step.norm), y, frozen=frozen)
    return _rectified(step.rectifier, y)


def _rectified(rectifier: Rectifier | None, x: Tensor) -> Tensor:
    return x if rectifier is None else rectifier(x)
