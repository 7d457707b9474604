"""How processes share the steps of a model: each with all of it (DDP), or each with a part (FSDP2).

Both leave the model a plain module after the block, under the same names, so that nothing else needs to know.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from featherlight.functional import QuantizedTensor
from featherlight.objective import Batch, NonFiniteLossError, PerExampleLoss, Team


class Processes(Protocol):
    """What sharing needs of the processes."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, on all of them."""
        ...

    def all_finite(self, error: NonFiniteLossError | None) -> None:
        """Raises NonFiniteLossError on all processes if one of them has it."""
        ...


Parallel = Callable[[nn.Module, Processes], AbstractContextManager[Team]]
"""Within the block, the processes share the steps of a model."""


@contextmanager
def replicated(model: nn.Module, processes: Processes) -> Iterator[Team]:
    """Each process holds all of the model; gradients are summed while the backward pass goes on (DistributedDataParallel).

    The loss is computed inside the wrapper and sees the plain model, so any loss will do. The first step is summed
    without the wrapper, which shows whether there are parameters that no loss reaches; they keep no gradient, as in one
    process.
    """
    yield _Replicas(model, processes)


@contextmanager
def sharded(model: nn.Module, processes: Processes) -> Iterator[Team]:
    """Each process holds a part of each weight, its gradient and its optimizer state (FSDP2, `fully_shard`).

    The members of `ModuleList`s and `Sequential`s are gathered one at a time, when their forward or backward pass needs
    them; the rest of the model as one. The loss must call the model itself, not its parts. After the block every process
    holds the whole model again, which it must have room for.

    Source: Zhao et al. 2023; torch.distributed.fsdp.fully_shard.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    before = {module: _Structure.of(module) for module in model.modules()}
    mesh = init_device_mesh(next(model.parameters()).device.type, (processes.size,))
    for module in (*_blocks(model), model):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for structure in before.values():
        structure.free()
    assert isinstance(model, FSDPModule)
    error = None
    try:
        yield _Shards(model, processes, model.set_requires_gradient_sync)
    except NonFiniteLossError as found:
        error = found
    for module, structure in before.items():
        structure.put_back(module)
    if error is not None:
        raise error


PARALLEL: dict[str, Parallel] = {"ddp": replicated, "fsdp": sharded}


class _Loss(nn.Module):
    """The loss as a module, so that what wraps it sees all of the forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss: PerExampleLoss, batch: Batch) -> Tensor:
        return loss(self.model, batch)


class _Replicas:
    """The team of whole models."""

    def __init__(self, model: nn.Module, processes: Processes) -> None:
        self.rank = processes.rank
        self.size = processes.size
        self.sum = processes.sum
        self._processes = processes
        self._loss = _Loss(model)
        self._wrapped: DistributedDataParallel | None = None

    def add_gradient(self, loss: PerExampleLoss, batch: Batch, scale: float, *, last: bool) -> Tensor:
        if self._wrapped is None:
            part = _losses_of_all(self._processes, self._loss, loss, batch).sum() * scale
            part.backward()
            if last:
                has_unused = _sum_gradients(self._loss, self._processes)
                self._wrapped = DistributedDataParallel(
                    self._loss, find_unused_parameters=has_unused, gradient_as_bucket_view=True
                )
            return part.detach()
        with nullcontext() if last else self._wrapped.no_sync():
            part = _losses_of_all(self._processes, self._wrapped, loss, batch).sum() * scale
            (part * self.size).backward()
        return part.detach()


class _Shards:
    """The team of models of which each process holds a part."""

    def __init__(self, model: nn.Module, processes: Processes, synchronize: Callable[[bool], None]) -> None:
        self.rank = processes.rank
        self.size = processes.size
        self.sum = processes.sum
        self._processes = processes
        self._loss = _Loss(model)
        self._synchronize = synchronize

    def add_gradient(self, loss: PerExampleLoss, batch: Batch, scale: float, *, last: bool) -> Tensor:
        self._synchronize(last)
        part = _losses_of_all(self._processes, self._loss, loss, batch).sum() * scale
        (part * self.size).backward()
        return part.detach()


def _losses_of_all(processes: Processes, module: nn.Module, loss: PerExampleLoss, batch: Batch) -> Tensor:
    """The losses of this process's rows, once those of all processes are known to be finite."""
    losses, error = None, None
    try:
        losses = module(loss, batch)
    except NonFiniteLossError as found:
        error = found
    processes.all_finite(error)
    assert losses is not None, "the error was raised"
    return losses


def _sum_gradients(module: nn.Module, processes: Processes) -> bool:
    """Sums the gradients over the processes; returns whether one of them has a trained parameter without a gradient."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    counts = processes.sum(torch.tensor([float(one.grad is not None) for one in trained]))
    for parameter, count in zip(trained, counts.tolist(), strict=True):
        if count:
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = processes.sum(own)
    return bool((counts < processes.size).any())


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be spread over processes, which must then all ask for it; any other as it is."""
    if type(tensor) in (Tensor, nn.Parameter):
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(target: Tensor, tensor: Tensor) -> Tensor:
    """This process's part of a whole tensor, spread as `target` is; the tensor itself if `target` is whole."""
    if type(target) in (Tensor, nn.Parameter):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(target, DTensor):
        return tensor
    here = tensor.to(target.device)
    return distribute_tensor(here, target.device_mesh, target.placements, src_data_rank=None)


def own_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor takes in this process, of its part where it is spread over several."""
    if isinstance(tensor, QuantizedTensor):
        return tensor.num_bytes
    if type(tensor) not in (Tensor, nn.Parameter):
        from torch.distributed.tensor import DTensor

        tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return tensor.numel() * tensor.element_size()


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The members of lists and sequences that hold parameters, each of which nothing outside of it uses as well."""
    uses = _uses(model)
    found = dict.fromkeys(_members(model))
    return [one for one in found if any(True for _ in one.parameters()) and _uses(one).items() <= uses.items()]


def _members(module: nn.Module) -> Iterator[nn.Module]:
    holds = isinstance(module, (nn.ModuleList, nn.Sequential))
    for child in module.children():
        if holds and not isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield child
        else:
            yield from _members(child)


def _uses(module: nn.Module) -> Counter[int]:
    """How many modules use each parameter."""
    return Counter(id(one) for part in module.modules() for one in part._parameters.values() if one is not None)


_TENSORS = ("_parameters", "_buffers", "_modules", "training")


@dataclass(frozen=True, kw_only=True)
class _Structure:
    """What a module is besides its modules and buffers, with copies of its hooks."""

    kind: type[nn.Module]
    attributes: dict[str, Any]
    parameters: dict[str, nn.Parameter]

    @classmethod
    def of(cls, module: nn.Module) -> "_Structure":
        kept = {
            name: value.copy() if "hooks" in name and isinstance(value, dict) else value
            for name, value in vars(module).items()
            if name not in _TENSORS
        }
        owned = {name: one for name, one in module._parameters.items() if one is not None}
        return cls(kind=type(module), attributes=kept, parameters=owned)

    def free(self) -> None:
        """Gives the memory of the parameters back; they themselves stay, and are filled again in the end."""
        for parameter in self.parameters.values():
            parameter.data = parameter.new_empty(0)

    def put_back(self, module: nn.Module) -> None:
        """Takes everything off a module that was put on it, and gathers its parameters."""
        for name, parameter in self.parameters.items():
            spread = module._parameters[name]
            if spread is not parameter:
                assert spread is not None, "sharding replaces parameters"
                parameter.data = whole(spread.detach())
                module._parameters[name] = parameter
        for name in vars(module).keys() - self.attributes.keys() - set(_TENSORS):
            del module.__dict__[name]
        module.__dict__.update(self.attributes)
        module.__class__ = self.kind
