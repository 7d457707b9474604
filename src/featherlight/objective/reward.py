"""Scores as the objective: any number for each example, of which more is better and which need have no gradient."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.meter import Meter
from featherlight.objective.batch import BatchObjective
from featherlight.objective.finite import NonFiniteLossError
from featherlight.objective.passes import num_rows
from featherlight.objective.protocols import Batch
from featherlight.objective.unchanging import unchanging

Score = Callable[[nn.Module, Batch], Any]
"""`score(model, batch)`: B numbers, more is better, as a tensor or array of any real dtype or a sequence of floats."""


class MinusScores:
    """Minus a score, checked, as the loss of an objective: `StreamedObjective(model, chunks, MinusScores(score), ...)`.

    Args:
        score: of a batch.
        debug: whether a score that changes the weights is looked for, which reads them twice a call.

    Raises:
        ValueError: (when called) the score is not one number for each example, carries a graph, or changes the weights.
        NonFiniteLossError: (when called) a score is NaN or infinite.
    """

    def __init__(self, score: Score, *, debug: bool = False) -> None:
        self.score = unchanging(score) if debug else score

    def __call__(self, model: nn.Module, batch: Batch) -> Float[Tensor, "B"]:
        """The scores with the opposite sign, float64, on the batch's device."""
        scores = _as_tensor(self.score(model, batch), next(iter(batch.values())).device)
        rows = num_rows(batch)
        if scores.shape != (rows,):
            raise ValueError(
                f"`score` must return one number per example, shape ({rows},); got {tuple(scores.shape)}. "
                "Score each row by itself; a mean over the batch does not say which examples got better."
            )
        broken = (~torch.isfinite(scores)).nonzero().flatten().tolist()
        if broken:
            raise NonFiniteLossError(
                f"`score` returned {float(scores[broken[0]])} for example {broken[0]} of the {rows} in a pass (in all "
                f"{len(broken)} are not finite), and such scores cannot be compared; the step was not applied. Return a "
                "number for every example, such as the lowest possible score where there is nothing to score."
            )
        return -scores


class RewardObjective:
    """Minus the mean score over a batch: forward-only optimizers then raise the score. It has no gradient.

    The score may be anything: accuracy, F1 or exact match of generated text, the answer of another process or of a server.
    What it draws from torch's default generators is the same in all evaluations of a step.

    Args:
        model: any module; its training flags are used as they are.
        batch: tensors by name, each with B rows. What a score needs besides, such as reference texts, it can look up by a
            tensor of row numbers.
        score: `score(model, batch)` returns B numbers of the examples by themselves, more is better.
        micro_batch: rows per call of `score`; None hands it the whole batch.
        dropout_seed: as for BatchObjective.
        meter: counts every row once a call of `score`; a score that runs the model several times adds the rest itself.
        debug: whether a score that changes the weights is looked for, which reads them twice a call.

    Attributes:
        num_examples: B, the rows of the batch.

    Scores of few levels, such as right or wrong, often tie at both points of a pair: choose a larger `sigma` than for a
    loss. Directions for single examples need a score that runs the same operations however many examples there are, such
    as generation of a fixed number of tokens; else use RankOneSigns(count=1).
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        score: Score,
        *,
        micro_batch: int | None = None,
        dropout_seed: int = 0,
        meter: Meter | None = None,
        debug: bool = False,
    ) -> None:
        self.score = score
        self.debug = debug
        loss = MinusScores(score, debug=debug)
        self._losses = BatchObjective(
            model, batch, loss, micro_batch=micro_batch, dropout_seed=dropout_seed, meter=meter
        )
        self.num_examples = self._losses.num_examples

    @property
    def window(self) -> range:
        """The rows that are being scored right now."""
        return self._losses.window

    def __call__(self) -> Float[Tensor, ""]:
        """Raises ValueError: a score has no gradient."""
        raise ValueError(
            "a RewardObjective has no gradient to fill in: its score is a black box, and only evaluations of it are to be had. "
            "Use a forward-only optimizer, such as ZerothOrderSGD, or a differentiable loss with BatchObjective."
        )

    def value(self) -> Float[Tensor, ""]:
        """Minus the mean score."""
        return self._losses.value()

    def values(self) -> Float[Tensor, "B"]:
        """Minus the scores of the single examples."""
        return self._losses.values()

    def narrow(self, count: int) -> "RewardObjective":
        """The objective of the first `count` rows, in one call of `score`."""
        inside = self._losses
        return RewardObjective(
            inside.model,
            {name: rows[:count] for name, rows in inside.batch.items()},
            self.score,
            dropout_seed=inside.dropout_seed,
            meter=inside.meter,
            debug=self.debug,
        )


def _as_tensor(scores: Any, device: torch.device) -> Tensor:
    parts = scores if isinstance(scores, Sequence) else [scores]
    if any(isinstance(part, Tensor) and part.requires_grad for part in parts):
        raise ValueError(
            "`score` returned a tensor that carries a graph, but scores are never differentiated, and the graph would keep "
            "the activations of every pass in memory. Take `torch.enable_grad` out of it, or return `scores.detach()`."
        )
    try:
        found = torch.as_tensor(scores)
        if found.is_complex():
            raise TypeError(f"{found.dtype} has no order")
        return found.to(device=device, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"`score` must return one number per example, as a tensor, an array or a list of floats; got "
            f"{type(scores).__name__} ({error}). Return `[score of each row]`."
        ) from None
