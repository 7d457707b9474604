"""A loss whose matrix products and convolutions are computed in a lower precision."""

from torch import Tensor, nn

from featherlight.objective.protocols import Batch, PerExampleLoss
from featherlight.precision import Precision


def autocast(loss: PerExampleLoss, precision: Precision) -> PerExampleLoss:
    """`loss`, computed in a precision; hand it to any objective, also to one that runs forward passes alone.

    Args:
        loss: of a batch.
        precision: float32 returns the loss as it is.

    Returns:
        A loss that is (B,) in float32 or wider, whatever the model computes in.
    """
    if precision == Precision():
        return loss

    def lowered(model: nn.Module, batch: Batch) -> Tensor:
        with precision.context(next(iter(batch.values())).device):
            losses = loss(model, batch)
        return losses.float() if losses.itemsize < 4 else losses

    return lowered
