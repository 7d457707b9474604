"""From a network to an implicit model: its graph is traced and followed with signals in place of tensors."""

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.nn import functional
from torch.nn.utils.parametrize import type_before_parametrizations

from featherlight.nn.implicit.activations import RELU, SIGMOID, TANH, leaky_relu
from featherlight.nn.implicit.convert.assembly import assembled
from featherlight.nn.implicit.convert.in_place import VIEWS, SharedMemory
from featherlight.nn.implicit.convert.modules import REASONS, RULES, Rule
from featherlight.nn.implicit.convert.signal import Signal, joined
from featherlight.nn.implicit.convert.sparse import sparse
from featherlight.nn.implicit.convert.system import ImplicitSystem


def to_implicit(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    rules: Mapping[type[nn.Module], Rule] | None = None,
    dtype: torch.dtype | None = None,
) -> ImplicitSystem:
    """The implicit model that gives the same outputs as a feed-forward network, with a strictly triangular A.

    Each activation makes a block of states, the last layer's first; linear layers between two activations are multiplied
    out. max(l, r) is l + relu(r - l). The graph is traced with `torch.fx`, so residual sums, concatenations, reshapes and
    slices in a module's own `forward` are followed; a branch that depends on values cannot be.

    Args:
        model: in eval mode if it has parts that differ.
        input_shape: of one sample, without the samples' axis.
        rules: for modules of your own, or in place of those of torch's: from the module and the signals it is called with
            to a signal; see `Signal` for what it can do.
        dtype: of a model without parameters; None is torch's default.

    Returns:
        A system of as many inputs and outputs as a sample has, in the order of its flattened axes; in the dtype and on
        the device of the model's parameters.

    Raises:
        ValueError: names the layer or operation that has no such form, why, and what to do.

    Cost: one entry a multiplication of the network for one sample. A convolution's matrix is sparse.

    Source: El Ghaoui et al. 2021, section 3.
    """
    every = {**RULES, **(rules or {})}
    root = nn.Sequential(model)
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0, dtype=dtype))
    inputs = Signal.of_inputs(torch.Size(input_shape), dtype=first.dtype, device=first.device)
    with torch.no_grad():
        output = _followed(root, _traced(root, tuple(every)), inputs, every)
        if not isinstance(output, Signal):
            raise ValueError(
                f"the model returns a {type(output).__name__}, but one tensor is wanted; wrap it in a module that picks it."
            )
        return assembled(output, len(inputs.bias))


class _Value(fx.Proxy):
    """Records `x += y` as what it is; a Proxy of torch.fx takes it for `x = x + y`."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    def __init__(self, leaves: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.leaves = leaves

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in self.leaves or super().is_leaf_module(m, module_qualified_name)


def _traced(root: nn.Module, leaves: tuple[type[nn.Module], ...]) -> fx.Graph:
    try:
        return _Tracer(leaves).trace(root)
    except (TraceError, TypeError) as error:
        raise ValueError(
            f"the model cannot be traced: {error}. Where its path depends on values it is no implicit model; give a module of "
            "your own a rule (`rules=`)."
        ) from error


def _followed(root: nn.Module, graph: fx.Graph, inputs: Signal, rules: Mapping[type[nn.Module], Rule]) -> Any:
    found: dict[fx.Node, Any] = {}
    memory = SharedMemory(root, graph)

    def value(node: fx.Node) -> Any:
        return found[node]

    for node in graph.nodes:
        if node.op == "placeholder":
            found[node] = inputs
            continue
        args, kwargs = fx.map_arg(node.args, value), fx.map_arg(node.kwargs, value)
        if node.op == "output":
            return args[0]
        if node.op == "get_attr":
            found[node] = operator.attrgetter(node.target)(root)
        else:
            found[node] = _made(root, node, rules, args, kwargs)
            if memory.is_in_place(node):
                memory.update(node, found)
    raise AssertionError("a graph ends in its output")


def _made(root: nn.Module, node: fx.Node, rules: Mapping[type[nn.Module], Rule], args: Any, kwargs: Any) -> Any:
    """What one node gives; errors get its name in front."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        kind = type_before_parametrizations(module)
        place = str(node.target).removeprefix("0").removeprefix(".")
        name = f"layer `{place}` ({kind.__name__})" if place else f"layer ({kind.__name__})"
        call: Callable[..., Any] | None = rules.get(kind)
        if call is None:
            why = REASONS.get(kind, "there is no rule for it; give one by `rules=`, or leave it outside.")
            raise ValueError(f"{name} has no implicit form: {why}")
        call = partial(call, module)
    else:
        shown = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
        name = f"operation `{shown}`"
        call = _operation(node, args)
        if call is None:
            raise ValueError(
                f"{name} has no implicit form known here; use the module of torch.nn that does it, or give the module around it "
                "a rule (`rules=`)."
            )
    try:
        return call(*args, **kwargs)
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise ValueError(f"{name} has no implicit form: {error}") from error


def _operation(node: fx.Node, args: Any) -> Callable[..., Any] | None:
    if args and args[0] is None:
        raise ValueError(
            "the last states of a recurrent layer are asked for, whose samples are not on the first axis; take its outputs at "
            "the last time, `outputs[:, -1]`."
        )
    if not any(isinstance(each, Signal) for each in _flat(args)) or (
        isinstance(args[0], tuple) and node.target is operator.getitem
    ):
        return getattr(type(args[0]), node.target) if isinstance(node.target, str) else node.target  # plain values
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name in _REARRANGING:
        return partial(_moved, name)
    return _OPERATIONS.get(name)


def _flat(args: Any) -> list[Any]:
    return [each for arg in args for each in (arg if isinstance(arg, tuple | list) else (arg,))]


_REARRANGING = VIEWS | {"clone", "flip", "roll"}


def _moved(name: str, x: Signal, *args: Any, **kwargs: Any) -> Signal:
    move = operator.getitem if name == "getitem" else getattr(torch.Tensor, name)
    return x.rearranged(lambda index: move(index, *args, **kwargs))


def _added(x: Any, y: Any, *, alpha: float = 1.0) -> Signal:
    if isinstance(x, Signal) and isinstance(y, Signal):
        return x.plus(y, alpha)
    return x.scaled(1.0, alpha * y) if isinstance(x, Signal) else y.scaled(alpha, x)


def _subtracted(x: Any, y: Any, *, alpha: float = 1.0) -> Signal:
    return _added(x, y, alpha=-alpha)


def _multiplied(x: Any, y: Any) -> Signal:
    if isinstance(x, Signal) and isinstance(y, Signal):
        raise ValueError("a product of two signals is not affine; leave it outside.")
    return x.scaled(y) if isinstance(x, Signal) else y.scaled(x)


def _divided(x: Any, y: Any) -> Signal:
    if isinstance(y, Signal):
        raise ValueError("a quotient by a signal is not affine; leave it outside.")
    return x.scaled(1 / y)


def _reduced(mean: bool) -> Callable[..., Signal]:
    def reduce(x: Signal, dim: int | Sequence[int], keepdim: bool = False) -> Signal:
        image = torch.empty(1, *x.shape, device="meta")
        dims = [dim] if isinstance(dim, int) else list(dim)
        if any(one % image.ndim == 0 for one in dims):
            raise ValueError("it goes over the samples' axis; samples must stay apart, along the first axis.")
        kept = image.sum(dims, keepdim=True).shape
        device = x.bias.device
        rows = torch.arange(kept.numel(), device=device).reshape(kept).expand(image.shape).reshape(-1)
        weight = kept.numel() / len(rows) if mean else 1.0
        entries = torch.stack((rows, torch.arange(len(rows), device=device)))
        values = torch.full((len(rows),), weight, dtype=x.bias.dtype, device=device)
        matrix = sparse(entries, values, (kept.numel(), len(rows)))
        return x.affine(matrix, shape=image.sum(dims, keepdim=keepdim).shape[1:])

    return reduce


def _concatenated(signals: Sequence[Signal], dim: int = 0) -> Signal:
    dim = dim % (len(signals[0].shape) + 1)
    if dim == 0:
        raise ValueError("it joins samples; they must stay apart, along the first axis.")
    return joined(list(signals), dim)


def _stacked(signals: Sequence[Signal], dim: int = 0) -> Signal:
    dim = dim % (len(signals[0].shape) + 2)
    return _concatenated([x.rearranged(lambda index: index.unsqueeze(dim)) for x in signals], dim)


def _by_module(kind: type[nn.Module]) -> Callable[..., Signal]:
    """A function of torch.nn.functional by the layer that does the same."""
    return lambda x, *args, **kwargs: RULES[kind](kind(*args, **kwargs), x)


def _dropped(x: Signal, p: float = 0.5, training: bool = True, inplace: bool = False) -> Signal:
    if training and p > 0:
        raise ValueError("it draws at each call while training; put the model into eval mode.")
    return x


def _size(x: Signal, dim: int | None = None) -> Any:
    shape = torch.Size((1, *x.shape))
    return shape if dim is None else shape[dim]


def _attribute(x: Signal, name: str) -> Any:
    if name in ("shape", "ndim"):
        shape = _size(x)
        return shape if name == "shape" else len(shape)
    raise ValueError(f"an attribute `{name}` is asked for.")


def _weighted(x: Signal, weight: Tensor, bias: Tensor | None = None) -> Signal:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight)
    layer.register_parameter("bias", None if bias is None else nn.Parameter(bias))
    return RULES[nn.Linear](layer, x)


_OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "add": _added,
    "iadd": _added,
    "sub": _subtracted,
    "isub": _subtracted,
    "mul": _multiplied,
    "imul": _multiplied,
    "truediv": _divided,
    "itruediv": _divided,
    "div": _divided,
    "neg": lambda x: x.scaled(-1.0),
    "relu": lambda x, inplace=False: x.activated(RELU),
    "relu_": lambda x: x.activated(RELU),
    "tanh": lambda x: x.activated(TANH),
    "sigmoid": lambda x: x.activated(SIGMOID),
    "elu": lambda x, alpha=1.0, inplace=False: _by_module(nn.ELU)(x, alpha),
    "leaky_relu": lambda x, negative_slope=0.01, inplace=False: x.activated(leaky_relu(negative_slope)),
    "mean": _reduced(mean=True),
    "sum": _reduced(mean=False),
    "cat": _concatenated,
    "concat": _concatenated,
    "stack": _stacked,
    "dropout": _dropped,
    "linear": _weighted,
    "size": _size,
    "getattr": _attribute,
    "dim": lambda x: len(x.shape) + 1,
} | {
    function.__name__: _by_module(kind)
    for function, kind in {
        functional.max_pool1d: nn.MaxPool1d,
        functional.max_pool2d: nn.MaxPool2d,
        functional.avg_pool1d: nn.AvgPool1d,
        functional.avg_pool2d: nn.AvgPool2d,
        functional.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
        functional.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
        functional.hardtanh: nn.Hardtanh,
        functional.relu6: nn.ReLU6,
    }.items()
}
