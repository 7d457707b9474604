"""What forward-only training relies on, checked: an Objective, frozen statistics, untouched buffers, finite losses."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from featherlight.objective import NonFiniteLossError, Objective, PerExampleObjective


def require_objective(closure: Callable[[], Any] | None, optimizer: str) -> Objective:
    """The closure as an Objective.

    Raises:
        ValueError: where it is missing or an ordinary closure, which would compute gradients nobody needs.
    """
    if isinstance(closure, Objective):
        return closure
    seen = "nothing" if closure is None else f"a {type(closure).__name__}"
    raise ValueError(
        f"{optimizer}.step needs an Objective (with `value()` and `values()`), since it measures the loss by forward passes "
        f"alone; got {seen}. Pass BatchObjective(model, batch, loss) or an object with these methods."
    )


def one_value(objective: Objective) -> Tensor:
    """`objective.value()`; raises ValueError unless it is one number without a graph."""
    return _without_graph("value()", objective.value(), (), objective)


def values_of(objective: PerExampleObjective) -> Tensor:
    """`objective.values()`; raises ValueError unless they are one number an example, without a graph."""
    return _without_graph("values()", objective.values(), (objective.num_examples,), objective)


def _without_graph(verb: str, losses: Any, shape: tuple[int, ...], objective: Objective) -> Tensor:
    name = f"{type(objective).__name__}.{verb}"
    if not isinstance(losses, Tensor) or losses.shape != shape:
        seen = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else f"a {type(losses).__name__}"
        raise ValueError(
            f"{name} must return a tensor of shape {shape}, the loss that both points of a step are compared by; got {seen}."
        )
    if losses.requires_grad:
        raise ValueError(
            f"{name} returned a tensor with a graph, which would keep the activations of every pass in memory. Compute it "
            "within `torch.no_grad()`, or return `loss.detach()`."
        )
    return losses


def require_eager(model: nn.Module) -> None:
    """Raises ValueError for compiled or scripted parts, whose calls cannot be perturbed."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or type(module).__name__ == "OptimizedModule":
            raise ValueError(
                f"module `{name or 'model'}` is compiled ({type(module).__name__}), and the calls inside it cannot be "
                "perturbed. Train the eager model and compile the result."
            )


def require_finite(losses: Tensor, step: int) -> None:
    """Raises NonFiniteLossError that names the step."""
    if not torch.isfinite(losses).all():
        bad = int((~torch.isfinite(losses)).sum())
        raise NonFiniteLossError(
            f"the loss of step {step} is not finite ({bad} of {losses.numel()} values); the step was not applied. "
            "Lower the learning rate or `sigma`, or look for broken rows in this batch."
        )


def require_finite_rates(scale: float, rates: tuple[float, ...], step: int) -> None:
    """Raises NonFiniteLossError where a slope, or a rate made of it, is beyond float32."""
    if not all(map(math.isfinite, (scale, *rates))):
        raise NonFiniteLossError(
            f"the slopes of step {step} are too steep for float32 (unit {scale}, rates {rates}); the step was not applied. "
            "Lower the learning rate, raise `sigma`, or scale the loss down."
        )


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorm uses its running statistics inside the block; any other change of a buffer is refused at its end.

    Raises:
        ValueError: a buffer was written to, so the evaluations of a step would not be of the same function.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    before = {name: (buffer, buffer._version) for name, buffer in model.named_buffers()}
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True
    now = dict(model.named_buffers())
    kept = {name for name, (b, version) in before.items() if now.get(name) is b and b._version == version}
    changed = sorted((before.keys() | now.keys()) - kept)
    if changed:
        raise ValueError(
            f"the forward pass wrote to buffer `{changed[0]}`"
            + (f" and {len(changed) - 1} more" if changed[1:] else "")
            + "; forward-only training compares evaluations, which must all see the same state. "
            "Put the module that writes it into eval mode."
        )


def check_positive(name: str, value: float, *, allow_zero: bool = False) -> None:
    """Raises ValueError unless `value` is a finite positive number."""
    if not (0 < value < float("inf") or (allow_zero and value == 0)):
        raise ValueError(f"`{name}` must be a finite positive number; got {value}.")


def to_float32(value: float) -> float:
    """The nearest float32."""
    return float(torch.tensor(value, dtype=torch.float32))
