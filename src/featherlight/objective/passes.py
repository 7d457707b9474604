"""What every objective does around a forward pass: the random state, one loss for each row, gradients and the meter."""

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.meter import Meter
from featherlight.objective.protocols import Batch
from featherlight.precision import LossScaler


def num_rows(batch: Batch) -> int:
    """How many rows all tensors of a batch have; raises ValueError where they differ or there are none."""
    sizes = {name: len(rows) for name, rows in batch.items()}
    if not sizes or len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ValueError(f"`batch` must hold tensors of one common, positive number of rows; got rows {sizes}.")
    return next(iter(sizes.values()))


def one_per_row(losses: Tensor, rows: int) -> Tensor:
    """`losses`, if it is one number for each row, without a graph where gradients are off."""
    if losses.shape != (rows,):
        raise ValueError(
            f"`loss` must return one loss per example, shape ({rows},); got {tuple(losses.shape)}. "
            "Use reduction='none' and average over everything but the rows."
        )
    if losses.requires_grad and not torch.is_grad_enabled():
        raise ValueError(
            "`loss` returned a tensor with a graph although gradients are off here, so the activations of every pass would "
            "stay in memory. Take `torch.enable_grad` out of it, or return `losses.detach()`."
        )
    return losses


def add_gradients(
    model: nn.Module,
    forward: Generator[Tensor, None, None],
    num_examples: int,
    meter: Meter,
    scaler: LossScaler | None = None,
) -> Float[Tensor, ""]:
    """Clears the gradients, fills them with those of the mean over all passes, and returns that mean.

    Args:
        model: whose gradients.
        forward: the losses of one pass after the other; is closed.
        num_examples: in all passes together.
        meter: counts the backward passes.
        scaler: multiplies the loss before its gradient is taken, and divides the gradient afterwards.
    """
    model.zero_grad(set_to_none=True)
    total = torch.zeros(())
    with torch.enable_grad(), closing(forward):
        for losses in forward:
            if not losses.requires_grad:
                raise ValueError(
                    "the loss carries no graph, so it has no gradient: it is a score or another black box, or nothing that "
                    "it depends on requires a gradient. Use a forward-only optimizer, such as ZerothOrderSGD."
                )
            part = losses.sum() / num_examples
            (part if scaler is None else part * scaler.scale).backward()
            meter.backward_passes += len(losses)
            total = total.to(part.device) + part.detach()
            del losses, part
    if scaler is not None:
        scaler.unscale(gradients(model))
    return total


def gradients(model: nn.Module) -> Iterator[Tensor]:
    """Those that are there."""
    return (parameter.grad for parameter in model.parameters() if parameter.grad is not None)


def count_forward(meter: Meter, batch: Batch, rows: int) -> None:
    """Counts the rows and tokens of a forward pass."""
    meter.example_forwards += rows
    mask = batch.get("attention_mask")
    meter.tokens += int(mask.sum()) if mask is not None else 0


@contextmanager
def seeded_random(seed: int, device: torch.device) -> Iterator[None]:
    """Inside the block, what reads torch's default generators sees a state made from `seed`; afterwards the old one."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        for one in cuda:
            torch.cuda.set_rng_state(torch.Generator(one).manual_seed(seed).get_state(), one)
        yield
