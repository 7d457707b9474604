"""Optimizers that average: the weights to evaluate are not those the gradients are taken at."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from featherlight.optim._several import SeveralOptimizers

Pass = Callable[[], object]
"""Runs the model forward on a batch."""


@runtime_checkable
class AveragingOptimizer(Protocol):
    """An optimizer with two sets of weights, such as those of `schedulefree`; the model holds one of them at a time."""

    param_groups: list[dict[str, Any]]
    """As of torch optimizers."""

    def eval(self) -> None:
        """Puts the averaged weights into the model."""
        ...

    def train(self) -> None:
        """Puts the weights into the model that the next gradient is taken at."""
        ...


@contextmanager
def evaluation_weights(
    optimizer: Optimizer | None, *, model: nn.Module | None = None, passes: Iterable[Pass] = ()
) -> Iterator[None]:
    """Within the block, the model holds the weights it is to be judged by; afterwards the bits it had before.

    Args:
        optimizer: of the model. Without an average, or None, nothing is done.
        model: whose BatchNorm statistics are estimated anew for the averaged weights; None leaves statistics alone.
        passes: forward passes for that, as for `reestimate_batch_norm`; they are run only where there is an average and a
            BatchNorm.

    Cost: a copy of the trained weights for the time of the block, and the passes.
    """
    averaging = _averaging(optimizer)
    if averaging is None:
        yield
        return
    kept = _copies([parameter for group in averaging.param_groups for parameter in group["params"]])
    norms = [] if model is None else _norms(model)
    kept += _copies([buffer for norm in norms for buffer in norm.buffers()])
    try:
        adopt_evaluation_weights(optimizer, model=model, passes=passes)
        yield
    finally:
        averaging.train()
        with torch.no_grad():
            for tensor, copy in kept:
                tensor.copy_(copy)


def adopt_evaluation_weights(
    optimizer: Optimizer | None, *, model: nn.Module | None = None, passes: Iterable[Pass] = ()
) -> None:
    """Puts the weights a model is to be judged by into it for good; arguments as for `evaluation_weights`."""
    averaging = _averaging(optimizer)
    if averaging is None:
        return
    averaging.eval()
    if model is not None and _norms(model):
        reestimate_batch_norm(model, passes)


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, passes: Iterable[Pass]) -> None:
    """Sets the running statistics of every BatchNorm to the mean of those of some batches.

    Needed wherever weights were changed without training steps: by averaging, pruning or interpolation. All other modules
    are in evaluation mode meanwhile, as they will be when the statistics are used; `torch.optim.swa_utils.update_bn`
    leaves dropout on.

    Args:
        model: as it will be used.
        passes: each runs the model forward on one training batch, such as `objective.value`.

    Raises:
        ValueError: the model has a BatchNorm and there are no passes.
    """
    norms = _norms(model)
    if not norms:
        return
    modes = {module: module.training for module in model.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.training = True
    count = 0
    try:
        for run in passes:
            run()
            count += 1
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    if not count:
        raise ValueError("`passes` is empty, so BatchNorm would have no statistics. Give a few training batches.")


def _averaging(optimizer: Optimizer | None) -> AveragingOptimizer | None:
    """The optimizer that averages: this one, or the one that it wraps."""
    while isinstance(optimizer, SeveralOptimizers) and len(optimizer.optimizers) == 1:
        optimizer = optimizer.optimizers[0]
    return optimizer if isinstance(optimizer, AveragingOptimizer) else None


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


def _copies(tensors: Sequence[torch.Tensor | None]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(tensor, tensor.detach().clone()) for tensor in tensors if tensor is not None]
