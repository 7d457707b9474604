"""A check for debugging: a loss or a score must read the weights and never write them."""

import hashlib
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from featherlight.objective.protocols import Batch

Returned = TypeVar("Returned")


def unchanging(function: Callable[[nn.Module, Batch], Returned]) -> Callable[[nn.Module, Batch], Returned]:
    """`function(model, batch)`, which raises ValueError where a call changes a parameter of the model.

    For debugging: evaluations that are compared must be of the same weights, and replay knows no change but the updates'.

    Args:
        function: a loss for BatchObjective or StreamedObjective, or a score for RewardObjective.

    Cost: reads all parameters twice a call, to the last bit.
    """

    def checked(model: nn.Module, batch: Batch) -> Returned:
        before = _digests(model)
        returned = function(model, batch)
        now = _digests(model)
        changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        if changed:
            raise ValueError(
                f"a call of the loss or score changed parameter `{changed[0]}`"
                + (f" and {len(changed) - 1} more" if changed[1:] else "")
                + ", but it must leave the weights alone: the evaluations of a step would not be of the same model, and the "
                "change is in no journal. Let it work on a copy, or take out what writes."
            )
        return returned

    return checked


def _digests(model: nn.Module) -> dict[str, tuple[int, bytes]]:
    """Of every parameter: which object it is, and a digest of its bits. Perturbations of a forward pass are passed by."""
    with torch._C.DisableTorchFunction(), torch.no_grad():
        return {name: (id(one), _digest(one)) for name, one in model.named_parameters()}


def _digest(parameter: Tensor) -> bytes:
    data = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(data.numpy().tobytes()).digest()
