"""How operations and layers of a traced model become steps: one rule a kind. A table at the end has them by name and type."""

import copy
import operator
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from featherlight.transforms.quantize.builder import Builder
from featherlight.transforms.quantize.steps import (
    AddStep,
    AverageStep,
    ClampStep,
    ConcatStep,
    EmbeddingStep,
    FunctionStep,
    InputStep,
    LayerStep,
    MaxPoolStep,
    NormStep,
    PadStep,
    Pair,
    PermuteStep,
    Rectifier,
    ReshapeStep,
    SameStep,
    SubsampleStep,
)
from featherlight.transforms.quantize.tracing import VALUE


def _layer(builder: Builder, node: fx.Node, module: Any, path: str, x: Any) -> None:
    if path in builder.used_layers:
        raise builder.refused(node, "it is used more than once, and each use would want scales of its own")
    builder.used_layers.add(path)
    if isinstance(module, nn.Conv2d) and (module.padding_mode != "zeros" or isinstance(module.padding, str)):
        raise builder.refused(
            node, f"its padding is {module.padding_mode!r}, {module.padding!r}, not a number of zeros"
        )
    builder.put(node, LayerStep(output=node.name, input=builder.name(x, node), module=path))


def _norm(builder: Builder, node: fx.Node, module: _BatchNorm, path: str, x: Any) -> None:
    if module.running_mean is None:
        raise builder.refused(node, "it keeps no running statistics")
    if path in builder.used_layers:
        raise builder.refused(node, "it is used more than once, and each use would want scales of its own")
    builder.used_layers.add(path)
    if node.meta[VALUE].ndim == 3:
        raise builder.refused(node, "it normalizes sequences, for which there is no operation")
    if not builder.absorbed(node, x, LayerStep, norm=path):
        if node.meta[VALUE].ndim != 4:
            raise builder.refused(node, "it normalizes features and follows no layer that it could be folded into")
        builder.put(node, NormStep(output=node.name, input=builder.name(x, node), norm=path))


def _rectify(builder: Builder, node: fx.Node, rectifier: Rectifier, x: Any) -> None:
    name = builder.name(x, node)
    if not builder.absorbed(node, x, (LayerStep, NormStep, AddStep), rectifier=rectifier):
        builder.put(node, ClampStep(output=node.name, input=name, rectifier=rectifier))


def _hardtanh(builder: Builder, node: fx.Node, low: float, high: float, x: Any) -> None:
    if low == 0 and high > 0:
        _rectify(builder, node, Rectifier(top=float(high)), x)
    else:
        _function(builder, node, partial(nn.functional.hardtanh, min_val=low, max_val=high), x)


def _function(builder: Builder, node: fx.Node, function: Callable[[Tensor], Tensor], x: Any) -> None:
    name = builder.name(x, node)
    last = next((i for i, step in enumerate(builder.steps) if step.output == name), None)
    step = None if last is None else builder.steps[last]
    if last is not None and isinstance(step, FunctionStep) and len(x.users) == 1:
        builder.steps[last] = replace(step, functions=(*step.functions, function))
        builder.made[node] = name
        return
    builder.put(node, FunctionStep(output=node.name, input=name, functions=(function,)))


def _same(builder: Builder, node: fx.Node, path: str | None, x: Any) -> None:
    name = builder.name(x, node)
    if path is None:
        builder.made[node] = name
    else:
        builder.put(node, SameStep(output=node.name, input=name, module=path))


def _dropped(
    builder: Builder, node: fx.Node, x: Any, p: float = 0.5, training: bool = True, inplace: bool = False
) -> None:
    builder.put(node, SameStep(output=node.name, input=builder.name(x, node), module=None, share=p))


def _max_pool(
    builder: Builder,
    node: fx.Node,
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> None:
    if _pair(dilation) != (1, 1) or return_indices:
        raise builder.refused(node, "it is a pooling with gaps, or one that returns places")
    kernel = _pair(kernel_size)
    made = MaxPoolStep(
        output=node.name,
        input=builder.name(x, node),
        kernel=kernel,
        stride=kernel if stride in (None, []) else _pair(stride),
        padding=_pair(padding),
        ceil_mode=ceil_mode,
    )
    builder.put(node, made)


def _average_pool(
    builder: Builder,
    node: fx.Node,
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> None:
    kernel, pads = _pair(kernel_size), _pair(padding)
    if ceil_mode or divisor_override is not None or (pads != (0, 0) and not count_include_pad):
        raise builder.refused(
            node, "it is an average with `ceil_mode`, `divisor_override` or without the padding it has"
        )
    steps = kernel if stride in (None, []) else _pair(stride)
    name = builder.name(x, node)
    builder.put(node, AverageStep(output=node.name, input=name, kernel=kernel, stride=steps, padding=pads))


def _adaptive(builder: Builder, node: fx.Node, x: Any, output_size: Any) -> None:
    if output_size not in (1, (1, 1), [1, 1]):
        raise builder.refused(node, f"it averages to {output_size} places, and only 1 is known")
    builder.put(node, AverageStep(output=node.name, input=builder.name(x, node)))


def _mean(builder: Builder, node: fx.Node, x: Any, dim: Any = None, keepdim: bool = False) -> None:
    name, axes = builder.name(x, node), x.meta[VALUE].ndim
    over = sorted(one % axes for one in ([dim] if isinstance(dim, int) else dim or ()))
    if axes != 4 or over != [2, 3]:
        raise builder.refused(node, f"it is a mean over the axes {dim}, and only that over all places of maps is known")
    builder.put(node, AverageStep(output=node.name, input=name, flat=not keepdim))


def _reshape(builder: Builder, node: fx.Node, x: Any, *_: Any, **__: Any) -> None:
    before, shape = x.meta[VALUE].shape, node.meta[VALUE].shape
    if not shape or before[0] != builder.batch or shape[0] != builder.batch or len(shape) < 2:
        raise builder.refused(node, "it mixes examples of a batch, or leaves them no axis")
    builder.put(node, ReshapeStep(output=node.name, input=builder.name(x, node), shape=tuple(shape[1:])))


def _permute(builder: Builder, node: fx.Node, x: Any, *axes: Any, dims: Any = None) -> None:
    order = list(axes[0] if axes and not isinstance(axes[0], int) else axes or dims or ())
    _place_axes(builder, node, x, [axis % x.meta[VALUE].ndim for axis in order])


def _transpose(builder: Builder, node: fx.Node, x: Any, dim0: int, dim1: int) -> None:
    order = list(range(x.meta[VALUE].ndim))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    _place_axes(builder, node, x, order)


def _place_axes(builder: Builder, node: fx.Node, x: Any, order: list[int]) -> None:
    if order[0] != 0:
        raise builder.refused(node, "it moves the axis of the batch")
    builder.put(node, PermuteStep(output=node.name, input=builder.name(x, node), axes=tuple(order)))


def _add(builder: Builder, node: fx.Node, x: Any, other: Any, *, alpha: float = 1) -> None:
    if not (isinstance(x, fx.Node) and isinstance(other, fx.Node)):
        _affine(builder, node, x, other, operator.add)
        return
    if alpha != 1 or x.meta[VALUE].shape != other.meta[VALUE].shape:
        raise builder.refused(node, "it is a sum of different shapes or with a factor")
    made = AddStep(output=node.name, first=builder.name(x, node), second=builder.name(other, node))
    builder.put(node, made)


def _affine(builder: Builder, node: fx.Node, x: Any, other: Any, function: Callable[[Any, Any], Any]) -> None:
    """The input with mean and deviation taken off, or a function with one number."""
    value, constant = (x, other) if isinstance(x, fx.Node) else (other, x)
    if not isinstance(value, fx.Node) or isinstance(constant, fx.Node):
        raise builder.refused(node, f"it is a {function.__name__} of two values, which is known of sums alone")
    first = builder.steps[0]
    from_input = isinstance(first, InputStep) and builder.made[value] == first.output and len(value.users) == 1
    if from_input and isinstance(first, InputStep) and len(builder.steps) == 1 and _is_standard(x, constant, function):
        _standardize(builder, node, first, constant, function)
        return
    if isinstance(constant, Tensor):
        if constant.numel() > 1 or constant.requires_grad:
            raise builder.refused(node, "it has numbers of channels that are trained or follow no layer")
        constant = float(constant)
    known = partial(_with_right, function, constant) if value is x else partial(_with_left, function, constant)
    _function(builder, node, known, value)


def _with_right(function: Callable[[Any, Any], Any], constant: float, x: Tensor) -> Tensor:
    return function(x, constant)


def _with_left(function: Callable[[Any, Any], Any], constant: float, x: Tensor) -> Tensor:
    return function(constant, x)


def _is_standard(x: Any, constant: Any, function: Callable[[Any, Any], Any]) -> bool:
    """Whether an operation on the input takes a mean or a deviation of channels off."""
    if isinstance(constant, Tensor):
        sizes = [size for size in constant.shape if size != 1]
        of_channels = not sizes or (len(sizes) == 1 and constant.ndim >= 3 and constant.shape[-3] == sizes[0])
        return of_channels and not constant.requires_grad and isinstance(x, fx.Node)
    return isinstance(x, fx.Node)


def _standardize(
    builder: Builder, node: fx.Node, first: InputStep, constant: Any, function: Callable[[Any, Any], Any]
) -> None:
    channels = torch.as_tensor(constant, dtype=torch.float64).flatten().cpu()
    mean, std = (torch.tensor(one, dtype=torch.float64) for one in (first.mean, first.std))
    mean, std, channels = torch.broadcast_tensors(mean, std, channels)
    if function in (operator.sub, operator.add):
        mean = mean + std * channels * (1 if function is operator.sub else -1)
    else:
        std = std * channels if function is operator.truediv else std / channels
    if not (std > 0).all():
        raise builder.refused(node, "the input is divided by a number that is not positive")
    builder.steps[0] = replace(first, mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    builder.made[node] = first.output


def _concat(builder: Builder, node: fx.Node, tensors: Any, dim: int = 0) -> None:
    axis = dim % node.meta[VALUE].ndim
    if axis == 0:
        raise builder.refused(node, "it joins examples")
    parts = tuple(builder.name(one, node) for one in tensors)
    builder.put(node, ConcatStep(output=node.name, parts=parts, axis=axis))


def _item(builder: Builder, node: fx.Node, x: Any, index: Any) -> None:
    index = index if isinstance(index, tuple) else (index,)
    strides = [
        one.step or 1 if isinstance(one, slice) and (one.start, one.stop) == (None, None) else 0 for one in index
    ]
    if node.meta[VALUE].ndim != 4 or not 3 <= len(index) <= 4 or strides[:2] != [1, 1] or min(strides) < 1:
        raise builder.refused(node, "it picks places other than every so many rows and columns of maps")
    stride: Pair = (strides[2], strides[3] if len(strides) > 3 else 1)
    builder.put(node, SubsampleStep(output=node.name, input=builder.name(x, node), stride=stride))


def _pad(builder: Builder, node: fx.Node, x: Any, pad: Any, mode: str = "constant", value: float | None = None) -> None:
    sides = [*map(int, pad), *[0] * (6 - len(pad))]
    if mode != "constant" or value not in (None, 0) or x.meta[VALUE].ndim != 4 or len(sides) > 6 or min(sides) < 0:
        raise builder.refused(node, "it pads with something else than zeros, or not maps")
    columns, rows, channels = ((sides[i], sides[i + 1]) for i in (0, 2, 4))
    made = PadStep(output=node.name, input=builder.name(x, node), channels=channels, rows=rows, columns=columns)
    builder.put(node, made)


def _embed(builder: Builder, node: fx.Node, path: str, x: Any) -> None:
    builder.put(node, EmbeddingStep(output=node.name, input=builder.name(x, node), module=path))


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _plain(name: str) -> Callable[..., None]:
    """A function of one number as torch has it."""
    function = getattr(torch, name, None) or getattr(nn.functional, name)

    def rule(builder: Builder, node: fx.Node, x: Any, *args: Any, inplace: bool = False, **kwargs: Any) -> None:
        _function(builder, node, partial(function, *args, **kwargs), x)

    return rule


def _elementwise(builder: Builder, node: fx.Node, module: nn.Module, path: str, x: Any) -> None:
    if vars(module).get("inplace"):
        module = copy.copy(module)
        vars(module)["inplace"] = False
    _function(builder, node, module, x)


_FUNCTIONS = (
    "tanh",
    "sigmoid",
    "silu",
    "hardswish",
    "hardsigmoid",
    "gelu",
    "elu",
    "leaky_relu",
    "softplus",
    "square",
    "abs",
)
_SHAPES = ("flatten", "reshape", "view", "unsqueeze", "squeeze", "unflatten")

OPERATIONS: dict[str, Callable[..., None]] = {
    "add": _add,
    "iadd": _add,
    "sub": lambda b, n, x, y: _affine(b, n, x, y, operator.sub),
    "mul": lambda b, n, x, y: _affine(b, n, x, y, operator.mul),
    "truediv": lambda b, n, x, y: _affine(b, n, x, y, operator.truediv),
    "div": lambda b, n, x, y: _affine(b, n, x, y, operator.truediv),
    "relu": lambda b, n, x, inplace=False: _rectify(b, n, Rectifier(), x),
    "relu6": lambda b, n, x, inplace=False: _rectify(b, n, Rectifier(top=6.0), x),
    "hardtanh": lambda b, n, x, min_val=-1.0, max_val=1.0, inplace=False: _hardtanh(b, n, min_val, max_val, x),
    "cat": _concat,
    "concat": _concat,
    "concatenate": _concat,
    "max_pool2d": _max_pool,
    "avg_pool2d": _average_pool,
    "adaptive_avg_pool2d": _adaptive,
    "mean": _mean,
    "permute": _permute,
    "transpose": _transpose,
    "getitem": _item,
    "pad": _pad,
    "dropout": _dropped,
    "contiguous": lambda b, n, x: _same(b, n, None, x),
    **dict.fromkeys(_SHAPES, _reshape),
    **{name: _plain(name) for name in _FUNCTIONS},
}
"""Functions and methods of tensors by their names, without the underscores around them."""

_ELEMENTWISE = (
    *(nn.Tanh, nn.Sigmoid, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.GELU, nn.ELU, nn.LeakyReLU, nn.Softplus, nn.Mish),
    *(nn.SELU, nn.CELU, nn.Softsign, nn.Hardshrink, nn.Softshrink),
)

MODULES: dict[type[nn.Module], Callable[..., None]] = {
    nn.Conv2d: _layer,
    nn.Linear: _layer,
    nn.BatchNorm2d: _norm,
    nn.BatchNorm1d: _norm,
    nn.ReLU: lambda b, n, m, path, x: _rectify(b, n, Rectifier(), x),
    nn.ReLU6: lambda b, n, m, path, x: _rectify(b, n, Rectifier(top=6.0), x),
    nn.Hardtanh: lambda b, n, m, path, x: _hardtanh(b, n, m.min_val, m.max_val, x),
    nn.MaxPool2d: lambda b, n, m, path, x: _max_pool(
        b, n, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices
    ),
    nn.AvgPool2d: lambda b, n, m, path, x: _average_pool(
        b, n, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    ),
    nn.AdaptiveAvgPool2d: lambda b, n, m, path, x: _adaptive(b, n, x, m.output_size),
    nn.Flatten: lambda b, n, m, path, x: _reshape(b, n, x),
    nn.Unflatten: lambda b, n, m, path, x: _reshape(b, n, x),
    nn.Identity: lambda b, n, m, path, x: _same(b, n, None, x),
    nn.Dropout: lambda b, n, m, path, x: _same(b, n, path, x),
    nn.Dropout2d: lambda b, n, m, path, x: _same(b, n, path, x),
    nn.Embedding: lambda b, n, m, path, x: _embed(b, n, path, x),
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
}
"""Layers of torch by their types."""
