"""The static graph of a model, followed with an example batch so that shapes are known wherever the model asks for them."""

import inspect
import operator
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

VALUE = "value"
"""Key of `Node.meta` under which the value of a node on the example stands."""
_PLACE = "place"
_QUESTIONS = ("shape", "ndim", "dtype", "device", "is_cuda", "requires_grad")


def traced(model: nn.Module, example: Tensor, leaves: Collection[str]) -> fx.Graph:
    """The graph of a model in evaluation mode; each node has its value on the example.

    Args:
        model: takes one tensor.
        example: a batch of it.
        leaves: names of modules that are not looked into.

    Raises:
        ValueError: the path through the model depends on values, or it does not take the example.
    """
    arguments = list(inspect.signature(model.forward).parameters.values())
    first, *others = (one for one in arguments if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD))
    required = [one.name for one in others if one.default is one.empty]
    if required:
        raise ValueError(
            f"{type(model).__name__} takes `{required[0]}` beside `{first.name}`, but only models of one tensor have an integer "
            "form here. Wrap it in a module that takes one tensor."
        )
    tracer = _Tracer(model, example, set(leaves))
    with _as_in_evaluation(model), torch.no_grad():
        try:
            return tracer.trace(model, concrete_args={one.name: one.default for one in others} or None)
        except (TraceError, TypeError, RuntimeError, ValueError, AttributeError, IndexError, KeyError) as error:
            place = f"the layer `{tracer.place}`" if tracer.place else type(model).__name__
            why = str(error).rstrip(".")
            raise ValueError(
                f"{place} cannot be traced with an example of shape {tuple(example.shape)}: {why}. Where a path depends on "
                "values there is no static graph. Give an example that the model takes, or leave that layer in float."
            ) from error
        finally:
            tracer.tidy()


def place_of(node: fx.Node) -> str:
    """The layer in whose forward a node stands; the model itself is ''."""
    return node.meta.get(_PLACE, "")


class _Known(fx.Proxy):
    """A value whose shape is told and not recorded."""

    def __getattr__(self, name: str) -> Any:
        if name in _QUESTIONS:
            return getattr(self.node.meta[VALUE], name)
        return super().__getattr__(name)

    def size(self, dim: int | None = None) -> Any:
        shape = self.node.meta[VALUE].shape
        return shape if dim is None else shape[dim]

    def dim(self) -> int:
        return self.node.meta[VALUE].ndim

    def numel(self) -> int:
        return self.node.meta[VALUE].numel()

    def __len__(self) -> int:
        return len(self.node.meta[VALUE])

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.add, (self, other), {})


class _Tracer(fx.Tracer):
    def __init__(self, model: nn.Module, example: Tensor, leaves: set[str]) -> None:
        super().__init__()
        self._model, self._example, self._leaves = model, example, leaves
        self._before = set(model.__dict__) | set(model._buffers)
        self.place = ""
        self._computing = False

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Known(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._leaves or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._computing:
            return forward(*args, **kwargs)
        outside, self.place = self.place, self.path_of_module(m)
        made = super().call_module(m, forward, args, kwargs)
        self.place = outside
        return made

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta[_PLACE] = self.place
        return node

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        made = super().create_proxy(*args, **kwargs)
        self._known(made.node)
        return made

    def _value(self, node: fx.Node) -> Any:
        """What a node is on the example."""
        if node.op == "output":
            return None
        args: Any = fx.map_arg(node.args, self._known)
        kwargs: Any = fx.map_arg(node.kwargs, self._known)
        match node.op:
            case "placeholder":
                is_first = all(one is node or one.op != "placeholder" for one in node.graph.nodes)
                return self._example if is_first else None
            case "get_attr":
                return operator.attrgetter(str(node.target))(self.root)
            case "call_module":
                return self._model.get_submodule(str(node.target))(*args, **kwargs)
            case "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _known(self, node: fx.Node) -> Any:
        if VALUE not in node.meta:
            outer, self._computing = self._computing, True
            node.meta[VALUE] = self._value(node)
            self._computing = outer
        return node.meta[VALUE]

    def tidy(self) -> None:
        """Takes off the model what the tracer has put on it."""
        for name in [one for one in (*self._model.__dict__, *self._model._buffers) if one not in self._before]:
            delattr(self._model, name)


@contextmanager
def _as_in_evaluation(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
