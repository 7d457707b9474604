"""Head start: the classification head is fitted in closed form on frozen features before the first step."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from featherlight.recipes.closed_form_head import MAX_ROWS, fit_in_place, without_head
from featherlight.recipes.finetune.problem import Problem
from featherlight.recipes.finetune.tasks import Regression
from featherlight.solvers import LinearHead
from featherlight.trainer import Tracker


def fit_head(problem: Problem, track: Tracker) -> LinearHead:
    """Fits the head on the training rows (at most 20,000) in one pass and puts it in place.

    `track` shows how far the pass is. A tenth of the rows (at most 2,000) is held out to choose the regularisation. The
    features, 4 N D bytes, are all that is kept of the rows.
    """
    head = problem.loaded.head
    assert head is not None, "a language model has no head to fit"
    assert problem.train.targets is not None, "rows with labels have targets"
    chosen = torch.as_tensor(problem.sampler.indices(0, min(MAX_ROWS, len(problem.train))))
    features = _features(problem, head, chosen, track)
    return fit_in_place(
        head, features, problem.train.targets[chosen], is_regression=isinstance(problem.task, Regression)
    )


@torch.no_grad()
def _features(problem: Problem, head: nn.Linear, chosen: Int[Tensor, "N"], track: Tracker) -> Float[Tensor, "N D"]:
    """What the head is handed for the chosen rows, in their order, whatever the batches they are computed in."""
    model = problem.loaded.model
    place = torch.empty(len(problem.train), dtype=torch.int64)
    place[chosen] = torch.arange(len(chosen))
    features = torch.empty(len(chosen), head.in_features)
    with without_head(model, head):
        batches = problem.batches(problem.train, indices=chosen)
        for rows, batch in zip(batches.rows, track(batches, "head start", len(batches)), strict=True):
            features[place[rows]] = problem.loss.logits(model, batch).to(features)
    return features
