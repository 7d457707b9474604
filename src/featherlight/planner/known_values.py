"""Contents of small tensors, followed beside fake ones, so that a model may branch on masks, counts and positions."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

_MOST = 1 << 20
"""Elements up to which the contents of a tensor are kept, such as those of the mask of 1,024 rows of 1,024 tokens."""


class KnownValues:
    """Contents of whole-number and boolean tensors that follow from known ones alone."""

    def __init__(self) -> None:
        self._known = WeakTensorKeyDictionary()

    def set(self, tensor: Tensor, contents: Tensor) -> None:
        """Notes what a fake tensor stands for."""
        if tensor.numel() <= _MOST and not tensor.dtype.is_floating_point:
            with no_dispatch():
                self._known[tensor] = contents.clone()

    def assume(self, tensor: Tensor, value: bool) -> None:
        """Notes that all of a fake tensor is one truth value."""
        if tensor.numel() <= _MOST:
            with no_dispatch():
                self._known[tensor] = torch.full(tensor.shape, value)

    def item(self, tensor: Tensor) -> Any:
        """The one number in a tensor, or None where it is unknown."""
        contents = self._known.get(tensor, None if _is_fake(tensor) else tensor)
        if contents is None:
            return None
        with no_dispatch():
            return contents.item()

    def follow(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Does an operation on the contents of its arguments, if all are known and the result is small."""
        if operation._schema.is_mutable:
            written = [one for one in tree_leaves((args[:1], kwargs.get("out"))) if isinstance(one, Tensor)]
            known = all(one in self._known for one in written) and "out" not in kwargs
            if not known or self.compute(operation, args, kwargs) is None:
                for one in written:
                    self._known.pop(one, None)
            return
        if not isinstance(out, Tensor) or out.numel() > _MOST or out.dtype.is_floating_point or out.is_complex():
            return
        if torch.Tag.nondeterministic_seeded in operation.tags:
            return
        contents = self.compute(operation, args, kwargs)
        if contents is not None:
            self._known[out] = contents

    def compute(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operation comes to on the contents of its arguments, or None where one of them is unknown."""
        found = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if any(_is_fake(one) and one not in self._known for one in found):
            return None
        if any(one.is_meta or one.device.type != "cpu" for one in found if not _is_fake(one)):
            return None
        real = tree_map(lambda one: self._known.get(one, one) if isinstance(one, Tensor) else one, (args, kwargs))
        with no_dispatch():
            return operation(*real[0], **real[1])


def _is_fake(tensor: Tensor) -> bool:
    return type(tensor) is not Tensor and type(tensor) is not torch.nn.Parameter
