"""Fits the last linear layer of a model in closed form to features that the rest of it computes once."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from featherlight.solvers import LinearHead, fit_classifier, fit_regression

MAX_ROWS = 20_000
"""Rows of which features are kept; more add little to a head."""

_MAX_HELD_OUT = 2_000


def fit_in_place(
    head: nn.Linear, features: Float[Tensor, "N D"], targets: Shaped[Tensor, "N"], *, is_regression: bool
) -> LinearHead:
    """Fits a head and puts it in place; a tenth of the rows (at most 2,000) is held out to choose the regularisation.

    Args:
        head: is written to.
        features: what it is handed, in an order that has nothing to do with the targets.
        targets: classes, or numbers for a regression.
        is_regression: which of the two.
    """
    held = min(_MAX_HELD_OUT, max(1, len(targets) // 10))
    parts = (features[held:], targets[held:], features[:held], targets[:held])
    if len(targets) == 1:
        parts = (features, targets, features, targets)
    intercept = head.bias is not None
    if is_regression:
        fitted = fit_regression(*parts, intercept=intercept)
    else:
        fitted = fit_classifier(*parts, num_classes=head.out_features, intercept=intercept)
    with torch.no_grad():
        head.weight.copy_(fitted.weight)
        if head.bias is not None:
            head.bias.copy_(fitted.bias)
    return fitted


@contextmanager
def without_head(model: nn.Module, head: nn.Linear) -> Iterator[None]:
    """Inside the block, the model returns what it would hand to `head`, one of its modules."""
    name = next(name for name, module in model.named_modules() if module is head)
    parent, _, child = name.rpartition(".")
    owner = model.get_submodule(parent)
    setattr(owner, child, nn.Identity())
    try:
        yield
    finally:
        setattr(owner, child, head)
