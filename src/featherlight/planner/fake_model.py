"""Models and batches of fake tensors: shapes, types and devices, and no memory."""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode

from featherlight.objective import Batch


def fake_mode_of(model: nn.Module) -> FakeTensorMode | None:
    """The mode whose tensors a model is made of; None for a real model."""
    found = (one.fake_mode for one in (*model.parameters(), *model.buffers()) if isinstance(one, FakeTensor))
    return next(found, None)


def new_fake_mode() -> FakeTensorMode:
    """A mode to build models in: `with new_fake_mode(): model = Net()` takes no memory, whatever the size."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def fake_copy(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy of a model of fake tensors; tied parameters stay tied, and what is on the meta device comes to the CPU."""
    with FakeCopyMode(mode):
        made = copy.deepcopy(model)
    moved: dict[int, Any] = {}
    for module in made.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None and tensor.device.type == "meta":
                    store[name] = moved.setdefault(id(tensor), _on_cpu(tensor, mode))
    return made


def make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Gives up the contents of all tensors of a model that is fake in part."""
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None and not isinstance(tensor, FakeTensor):
                    store[name] = mode.from_tensor(tensor)  # pyright: ignore[reportArgumentType]


def fake_batch(batch: Batch, mode: FakeTensorMode) -> dict[str, Tensor]:
    """The tensors of a batch without their contents."""
    return {name: one if isinstance(one, FakeTensor) else mode.from_tensor(one) for name, one in batch.items()}


@contextmanager
def taken_for_real() -> Iterator[None]:
    """Inside the block, transformers goes the way that it goes for tensors with contents, and not that of tracing."""
    library: Any = sys.modules.get("transformers.utils.import_utils")
    if library is None:
        yield
        return
    before = library.is_fake_tensor
    library.is_fake_tensor = lambda tensor: False
    try:
        yield
    finally:
        library.is_fake_tensor = before


def _on_cpu(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    with mode:
        made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(made, requires_grad=tensor.requires_grad)
    return made
