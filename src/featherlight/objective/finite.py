"""Losses that are no numbers, found before a gradient or an update is made of them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from featherlight.objective.protocols import Batch, PerExampleLoss


class NonFiniteLossError(ValueError):
    """A loss, or something it is made of, was NaN or infinite; the step was neither recorded nor applied."""


def finite(loss: PerExampleLoss, step: int, rows: Sequence[int]) -> PerExampleLoss:
    """`loss`, which raises NonFiniteLossError where a value is not finite, before a gradient or an update is made of it.

    Args:
        loss: of a batch.
        step: its number, for the message.
        rows: of the data that are in the batch, for the message.
    """

    def checked(model: nn.Module, batch: Batch) -> Tensor:
        losses = loss(model, batch)
        if not torch.isfinite(losses).all():
            some = ", ".join(str(row) for row in rows[:4]) + (", ..." if rows[4:] else "")
            raise NonFiniteLossError(
                f"the loss of step {step} is not finite in the batch of training rows {some}; the step was not applied. "
                "Lower the learning rate or sigma, or look at these rows and at the weights that training starts from."
            )
        return losses

    return checked
