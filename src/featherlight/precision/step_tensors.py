"""What goes through the layers of a model in one step: weights, activations and gradients, to be looked at."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The layers whose products low formats are for."""

KINDS = ("weights", "activations", "gradients", "weight gradients")
"""What is looked at of a layer: its weight, what goes in, the gradient that comes back to its output, and its weight's."""


@dataclass(frozen=True, kw_only=True)
class StepTensors:
    """Of one step, by kind (see `KINDS`) and by the name of the layer; all parts of a tensor that was used several times."""

    by_kind: Mapping[str, Mapping[str, Tensor]]


@dataclass(kw_only=True)
class _Seen:
    found: dict[str, dict[str, list[Tensor]]] = field(default_factory=lambda: {kind: {} for kind in KINDS})

    def add(self, kind: str, name: str, tensor: Tensor) -> None:
        self.found[kind].setdefault(name, []).append(tensor.detach().flatten())


def step_tensors(model: nn.Module, closure: Callable[[], object]) -> StepTensors:
    """Runs one forward and backward pass and returns what went through the Linear and convolution layers.

    Args:
        model: in whatever mode it is; its gradients are left as the closure leaves them.
        closure: fills the gradients, such as an Objective.

    Memory: all activations and gradients of those layers at once, besides the pass.
    """
    seen = _Seen()
    with _watched(model, seen):
        closure()
    layers = _layers(model)
    for name, layer in layers:
        seen.add("weights", name, layer.weight)
        gradient = _weight_gradient(layer)
        if gradient is not None:
            seen.add("weight gradients", name, gradient)
    return StepTensors(
        by_kind={
            kind: {name: torch.cat(parts[name]) for name, _ in layers if name in parts}
            for kind, parts in seen.found.items()
        }
    )


@contextmanager
def _watched(model: nn.Module, seen: _Seen) -> Iterator[None]:
    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def look(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen.add("activations", name, inputs[0])
            if output.requires_grad:
                output.register_hook(lambda gradient: seen.add("gradients", name, gradient))

        return look

    handles = [layer.register_forward_hook(hook(name)) for name, layer in _layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers(model: nn.Module) -> list[tuple[str, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d]]:
    return [(name or "model", module) for name, module in model.named_modules() if isinstance(module, LAYERS)]


def _weight_gradient(layer: nn.Module) -> Tensor | None:
    """Of its weight, or of the one that a parametrization makes it of."""
    own = dict(layer.named_parameters())
    weight = own.get("weight", own.get("parametrizations.weight.original"))
    return None if weight is None else weight.grad
