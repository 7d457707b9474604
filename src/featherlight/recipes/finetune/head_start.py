"""Head start: the classification head is fitted in closed form on frozen features before the first step."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from featherlight.recipes.finetune.problem import Problem
from featherlight.recipes.finetune.tasks import Regression
from featherlight.solvers import LinearHead, fit_classifier, fit_regression
from featherlight.trainer import Tracker

_MAX_ROWS = 20_000
_MAX_HELD_OUT = 2_000


def fit_head(problem: Problem, track: Tracker) -> LinearHead:
    """Fits the head on the training rows (at most 20,000) in one pass and puts it in place.

    `track` shows how far the pass is. A tenth of the rows (at most 2,000) is held out to choose the regularisation. The
    features, 4 N D bytes, are all that is kept of the rows.
    """
    head = problem.loaded.head
    assert head is not None, "a language model has no head to fit"
    assert problem.train.targets is not None, "rows with labels have targets"
    chosen = torch.as_tensor(problem.sampler.indices(0, min(_MAX_ROWS, len(problem.train))))
    x, y = _features(problem, head, chosen, track), problem.train.targets[chosen]
    held = min(_MAX_HELD_OUT, max(1, len(y) // 10))
    parts = (x[held:], y[held:], x[:held], y[:held]) if len(y) > 1 else (x, y, x, y)
    intercept = head.bias is not None
    if isinstance(problem.task, Regression):
        fitted = fit_regression(*parts, intercept=intercept)
    else:
        fitted = fit_classifier(*parts, num_classes=head.out_features, intercept=intercept)
    with torch.no_grad():
        head.weight.copy_(fitted.weight)
        if head.bias is not None:
            head.bias.copy_(fitted.bias)
    return fitted


@torch.no_grad()
def _features(problem: Problem, head: nn.Linear, chosen: Int[Tensor, "N"], track: Tracker) -> Float[Tensor, "N D"]:
    """What the head is handed for the chosen rows, in their order, whatever the batches they are computed in."""
    model = problem.loaded.model
    name = next(name for name, module in model.named_modules() if module is head)
    parent, _, child = name.rpartition(".")
    owner = model.get_submodule(parent)
    place = torch.empty(len(problem.train), dtype=torch.int64)
    place[chosen] = torch.arange(len(chosen))
    features = torch.empty(len(chosen), head.in_features)
    setattr(owner, child, nn.Identity())
    try:
        batches = problem.batches(problem.train, indices=chosen)
        for rows, batch in zip(batches.rows, track(batches, "head start", len(batches)), strict=True):
            features[place[rows]] = problem.loss.logits(model, batch).to(features)
    finally:
        setattr(owner, child, head)
    return features
