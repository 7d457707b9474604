"""Schedule-free AdamW from the package `schedulefree`, whose average stands in for a falling learning rate."""

from importlib.util import find_spec

from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


def schedule_free_adamw(
    params: ParamsT, lr: float = 2.5e-3, *, weight_decay: float = 0.0, warmup_steps: int = 0
) -> Optimizer:
    """The package's AdamWScheduleFree, ready to step. Judge the model within `evaluation_weights(optimizer)`.

    Args:
        params: parameters or groups.
        lr: learning rate, up to ten times that of a schedule; it stays constant.
        weight_decay: decoupled.
        warmup_steps: over which the rate rises.

    Raises:
        ValueError: the package is not installed.

    Source: Defazio et al. 2024 (arXiv 2405.15682).
    """
    if find_spec("schedulefree") is None:
        raise ValueError(
            "the schedule-free optimizer comes with the package schedulefree, which is not installed. Run: pip install "
            "'featherlight[averaging]'"
        )
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(params, lr=lr, weight_decay=weight_decay, warmup_steps=warmup_steps)
    optimizer.train()
    return optimizer
