"""Losses that a network learns from another's outputs by.

Legend of shapes: B rows, C classes.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.objective.protocols import Batch

Outputs = Callable[[nn.Module, Batch], Tensor]
"""`outputs(model, batch) -> (B, C)`: logits of each row."""

LossOfOutputs = Callable[[Tensor, Batch], Tensor]
"""`loss(logits, batch) -> (B,)`: the losses of the single examples."""


class DistilledLoss:
    """A per-example loss that draws a classifier towards another's shares: hand it to a BatchObjective as its loss.

    The loss of a row is `(1 - share) * loss + share * temperature^2 * KL(teacher || model)`, both at the temperature.

    Args:
        teacher: is put into evaluation mode and run without a graph; its parameters are never written.
        outputs: the logits of a network for a batch, of teacher and model alike.
        loss: what the labels say of logits; None where `share` is 1, for rows without labels.
        temperature: what logits are divided by.
        share: of the loss that comes from the teacher, in [0, 1].

    Raises:
        ValueError: a temperature or share out of range, or no loss although labels have a share.

    Cost: one forward pass of the teacher for each of the model.
    Source: Hinton, Vinyals and Dean 2015 (arXiv 1503.02531), section 2; the square keeps both gradients alike in size.
    """

    def __init__(
        self,
        teacher: nn.Module,
        outputs: Outputs,
        loss: LossOfOutputs | None,
        *,
        temperature: float = 2.0,
        share: float = 0.5,
    ) -> None:
        if not 0 < temperature < float("inf"):
            raise ValueError(f"`temperature` must be a finite positive number; got {temperature}.")
        if not 0 <= share <= 1:
            raise ValueError(f"`share` must lie in [0, 1], the part of the loss that is the teacher's; got {share}.")
        if loss is None and share < 1:
            raise ValueError(
                f"labels have a share of {1 - share:g} and there is no `loss`. Give one, or a `share` of 1."
            )
        self.teacher = teacher
        self.outputs = outputs
        self.loss = loss
        self.temperature = temperature
        self.share = share

    def __call__(self, model: nn.Module, batch: Batch) -> Float[Tensor, "B"]:
        """The losses of the single examples."""
        logits_BC = self.outputs(model, batch)
        divergence_B = self._divergence(logits_BC, batch) if self.share > 0 else 0.0
        if self.loss is None:
            return torch.as_tensor(divergence_B)
        return (1 - self.share) * self.loss(logits_BC, batch) + self.share * divergence_B

    def _divergence(self, logits_BC: Tensor, batch: Batch) -> Tensor:
        self.teacher.eval()
        with torch.no_grad():
            taught_BC = self.outputs(self.teacher, batch)
        if taught_BC.shape != logits_BC.shape or logits_BC.ndim != 2:
            raise ValueError(
                f"teacher and model must both return logits of one shape (rows, classes); got {tuple(taught_BC.shape)} and "
                f"{tuple(logits_BC.shape)}. Take a teacher of the same classes, and select the rows that count in `outputs`."
            )
        log_model, log_taught = ((one / self.temperature).log_softmax(-1) for one in (logits_BC, taught_BC))
        return self.temperature**2 * (log_taught.exp() * (log_taught - log_model)).sum(-1)
