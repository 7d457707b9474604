"""From a model to the steps of its quantized graph, with a sentence where a part has no integer form."""

from collections.abc import Collection
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from featherlight.transforms.quantize.builder import Builder, NoIntegerFormError
from featherlight.transforms.quantize.rules import MODULES, OPERATIONS
from featherlight.transforms.quantize.steps import FloatStep, InputStep, Step
from featherlight.transforms.quantize.tracing import VALUE, traced


def built_steps(model: nn.Module, example: Tensor, keep_float: Collection[str]) -> tuple[tuple[Step, ...], str]:
    """The steps of a model, and the name of the value that it returns.

    Raises:
        ValueError: the model has no static graph, or a part without an integer form, which is named.
    """
    modules = dict(model.named_modules())
    if missing := [name for name in keep_float if not name or name not in modules]:
        some = ", ".join(list(modules)[1:4])
        raise ValueError(f"`keep_float` names {missing[0]!r}, which is no layer of the model (it has {some}, ...).")
    builder = Builder(model, set(keep_float), len(example))
    graph = traced(model, example, keep_float)
    _erase_unneeded(graph)
    for node in graph.nodes:
        if node.op == "output":
            return tuple(builder.steps), _output(builder, node)
        if node.op == "placeholder":
            _input(builder, node)
        elif any(one in builder.made for one in node.all_input_nodes):
            (_module if node.op == "call_module" else _operation)(builder, node)
    raise AssertionError("a graph ends in its output")


def _erase_unneeded(graph: fx.Graph) -> None:
    """Takes out what the output does not depend on, such as a slice that was asked for its shape alone."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("output", "placeholder"):
            graph.erase_node(node)


def _input(builder: Builder, node: fx.Node) -> None:
    """Floats get a grid of their own; token numbers are looked up."""
    if node.meta[VALUE] is None:
        return
    builder.made[node] = node.name
    if node.meta[VALUE].is_floating_point():
        builder.put(node, InputStep(output=f"{node.name}_grid", input=node.name))


def _output(builder: Builder, node: fx.Node) -> str:
    result = node.args[0]
    if not isinstance(result, fx.Node) or result not in builder.made:
        raise NoIntegerFormError("the model must return one tensor that depends on its input; wrap it so that it does.")
    return builder.made[result]


def _operation(builder: Builder, node: fx.Node) -> None:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    rule = OPERATIONS.get(name.strip("_"))
    if rule is None:
        raise builder.refused(node, f"nothing is known of `{name}` with whole numbers")
    args: Any = fx.map_arg(node.args, builder.or_constant)
    kwargs: Any = fx.map_arg(node.kwargs, builder.or_constant)
    try:
        rule(builder, node, *args, **kwargs)
    except TypeError as error:
        raise builder.refused(node, f"`{name}` with these arguments is not known ({error})") from error


def _module(builder: Builder, node: fx.Node) -> None:
    path = str(node.target)
    module, x = builder.model.get_submodule(path), node.args[0]
    if path in builder.keep_float:
        builder.put(node, FloatStep(output=node.name, input=builder.name(x, node), module=path))
        return
    kind = type_before_parametrizations(module)
    rule = MODULES.get(kind)
    if rule is None:
        raise builder.refused(node, f"nothing is known of a {kind.__name__} with whole numbers")
    if len(node.args) > 1 or node.kwargs:
        raise builder.refused(node, "it is called with more than one tensor")
    rule(builder, node, module, path, x)
