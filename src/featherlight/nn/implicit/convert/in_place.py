"""Operations that change the tensor that they are handed: what else in a graph sees the change."""

from typing import Any

from torch import fx, nn

from featherlight.nn.implicit.convert.signal import Signal

_METHODS = frozenset({"iadd", "isub", "imul", "itruediv", "relu_", "tanh_", "sigmoid_"})
_BY_FLAG = frozenset({"relu", "elu", "leaky_relu", "hardtanh", "relu6", "dropout"})
VIEWS = frozenset(
    {"view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "expand", "unflatten", "movedim"}
    | {"contiguous", "detach", "getitem", "select", "narrow"}
)
"""Operations whose result may share the memory of their argument."""


class SharedMemory:
    """Which nodes of a graph may stand for one memory.

    Args:
        root: the modules of the graph.
        graph: in the order in which it runs.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self._root = root
        self._place = {node: number for number, node in enumerate(graph.nodes)}
        self._owner: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            shares = node.args and isinstance(node.args[0], fx.Node) and (self._is_view(node) or self.is_in_place(node))
            self._owner[node] = self._owner[node.args[0]] if shares else node

    def is_in_place(self, node: fx.Node) -> bool:
        """Whether a node changes its first argument."""
        if node.op == "call_module":
            return bool(getattr(self._root.get_submodule(str(node.target)), "inplace", False))
        name = _name(node)
        by_flag = node.kwargs.get("inplace") is True or any(arg is True for arg in node.args[1:])
        return name in _METHODS or (name in _BY_FLAG and by_flag)

    def update(self, node: fx.Node, found: dict[fx.Node, Any]) -> None:
        """Gives what a node in place made to all that stands for the tensor it changed.

        Raises:
            ValueError: a part of the tensor, or it in another shape, is used afterwards.
        """
        changed = node.args[0]
        if not isinstance(changed, fx.Node) or not isinstance(before := found[changed], Signal):
            return
        for other in [one for one in found if self._owner[one] is self._owner[node] and one is not node]:
            if found[other] is before:
                found[other] = found[node]
            elif any(self._place[user] > self._place[node] for user in other.users):
                raise ValueError(
                    f"`{node.name}` changes a tensor in place of which `{other.name}` is a view (or the other way round) that is "
                    "used again. Set `inplace=False` there, or write `x = x + y` for `x += y`."
                )

    def _is_view(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            module = self._root.get_submodule(str(node.target))
            return isinstance(module, nn.Flatten | nn.Unflatten | nn.Identity | nn.modules.dropout._DropoutNd)
        return _name(node) in VIEWS


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
