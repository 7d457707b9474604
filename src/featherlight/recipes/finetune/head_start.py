"""Head start: the classification head is fitted in closed form on frozen features before the first step."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featherlight.recipes.finetune.problem import Problem
from featherlight.recipes.finetune.tasks import Regression
from featherlight.solvers import LinearHead, fit_classifier, fit_regression
from featherlight.trainer import Tracker

_MAX_ROWS = 20_000
_MAX_HELD_OUT = 2_000


@dataclass(frozen=True, kw_only=True)
class HeadFeatures:
    """What the head is handed, (N, D), with the labels, (N,)."""

    features: Tensor
    labels: Tensor


def fit_head(problem: Problem, track: Tracker) -> LinearHead:
    """Fits the head on the training rows (at most 20,000) in one pass and puts it in place.

    `track` shows how far the pass is. A tenth of the rows (at most 2,000) is held out to choose the regularisation.
    """
    head = problem.loaded.head
    assert head is not None, "a language model has no head to fit"
    seen = _features(problem, head, track)
    held = min(_MAX_HELD_OUT, max(1, len(seen.labels) // 10))
    order = torch.randperm(len(seen.labels), generator=torch.Generator().manual_seed(0))
    x, y = seen.features[order], seen.labels[order]
    parts = x[held:], y[held:], x[:held], y[:held]
    is_regression = isinstance(problem.task, Regression)
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


@torch.no_grad()
def _features(problem: Problem, head: nn.Linear, track: Tracker) -> HeadFeatures:
    model = problem.loaded.model
    name = next(name for name, module in model.named_modules() if module is head)
    parent, _, child = name.rpartition(".")
    owner = model.get_submodule(parent)
    shuffled = torch.randperm(len(problem.train), generator=torch.Generator().manual_seed(0))
    chosen = shuffled[:_MAX_ROWS]
    features, labels = [], []
    setattr(owner, child, nn.Identity())
    try:
        batches = problem.batches(problem.train, indices=chosen)
        for batch in track(batches, "head start", len(batches)):
            features.append(problem.loss.logits(model, batch).float().cpu())
            labels.append(batch["labels"].cpu())
    finally:
        setattr(owner, child, head)
    return HeadFeatures(features=torch.cat(features), labels=torch.cat(labels))
