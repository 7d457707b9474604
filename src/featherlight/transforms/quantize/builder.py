"""What rules build steps with."""

from dataclasses import replace
from typing import Any, cast

from torch import fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from featherlight.transforms.quantize.steps import Step
from featherlight.transforms.quantize.tracing import VALUE, place_of


class NoIntegerFormError(ValueError):
    """A part of a model that whole numbers cannot compute; says which, why, and what to do."""


class Builder:
    """The steps so far, and which value each node of the graph is.

    Args:
        model: that is traced.
        keep_float: names of layers that stay in float.
        batch: examples of the example.

    Attributes:
        model: as given.
        keep_float: as given.
        batch: as given.
        steps: in order.
        made: names of the values of nodes.
        used_layers: names of layers that have a step.
    """

    def __init__(self, model: nn.Module, keep_float: set[str], batch: int) -> None:
        self.model, self.keep_float, self.batch = model, keep_float, batch
        self.steps: list[Step] = []
        self.made: dict[fx.Node, str] = {}
        self.used_layers: set[str] = set()

    def name(self, x: Any, node: fx.Node) -> str:
        """The value that an argument stands for."""
        if not isinstance(x, fx.Node):
            raise self.refused(node, "it combines the input with a constant in a way that is not known")
        return self.made[x]

    def put(self, node: fx.Node, step: Step) -> None:
        """Adds a step that makes the value of a node."""
        self.steps.append(step)
        self.made[node] = step.output

    def refused(self, node: fx.Node, why: str) -> NoIntegerFormError:
        """The error for a node without an integer form."""
        place = place_of(node)
        where = f"the layer `{place}`" if place else f"{type(self.model).__name__} itself"
        kind = f" ({type_before_parametrizations(self.model.get_submodule(place)).__name__})" if place else ""
        hint = f'Leave it in float with keep_float=("{place}",)' if place else "Move that part into a layer of its own"
        return NoIntegerFormError(
            f"{where}{kind} has no integer form: {why}. {hint}, or take another layer in its place."
        )

    def absorbed(self, node: fx.Node, x: fx.Node, kinds: type | tuple[type, ...], **changes: Any) -> bool:
        """Whether the step that makes `x` could take a node over, which it has then done."""
        index = next((i for i, step in enumerate(self.steps) if step.output == self.made[x]), None)
        step = None if index is None else self.steps[index]
        if index is None or step is None or not isinstance(step, kinds) or len(x.users) > 1 or self._is_shared(x):
            return False
        if any(getattr(step, name) is not None for name in (*changes, "rectifier")):
            return False
        self.steps[index] = replace(cast(Any, step), **changes)
        self.made[node] = step.output
        return True

    def _is_shared(self, x: fx.Node) -> bool:
        """Whether a value has another name that is used as well."""
        aliases = [node for node, name in self.made.items() if name == self.made[x]]
        return sum(user not in aliases for node in aliases for user in node.users) > 1

    def or_constant(self, node: fx.Node) -> Any:
        """A node that depends on the input, or the constant that it is."""
        return node if node in self.made else node.meta[VALUE]
