"""What a set of predictions is worth: one table of metrics by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from featherlight.data._suggest import did_you_mean, listing


def confusion(predictions: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """Count how often each class was predicted for each class.

    Args:
        predictions: predicted class ids, integer, (N,).
        targets: true class ids, integer, (N,).
        num_classes: number of classes C, at least 1.

    Returns:
        Counts, int64, (C, C): row = true class, column = predicted class.

    Raises:
        ValueError: lengths differ or are 0, ids are not integers, or an id is outside 0..C-1.
    """
    _check_pair(predictions, targets)
    for name, ids in (("predictions", predictions), ("targets", targets)):
        if ids.is_floating_point() or ids.is_complex():
            raise ValueError(
                f"`{name}` must be class ids (integers), since classes are counted; got {ids.dtype}. Pass "
                "`logits.argmax(-1)`."
            )
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"`{name}` must lie in 0..{num_classes - 1}, one id for each of {num_classes} classes; got {low} to "
                f"{high}. Encode both with the same labels."
            )
    cells = targets.long() * num_classes + predictions.long().to(targets.device)
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def accuracy(predictions: Tensor, targets: Tensor) -> float:
    """Return the share of class ids predicted right.

    Args:
        predictions: predicted class ids, integer, (N,).
        targets: true class ids, integer, (N,).

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: as `confusion`.
    """
    counts = _counts(predictions, targets)
    return float(counts.diagonal().sum() / counts.sum())


def f1(predictions: Tensor, targets: Tensor) -> float:
    """Return the F1 score: of class 1 where the ids are 0 and 1, else the mean over the classes that occur.

    Args:
        predictions: predicted class ids, integer, (N,).
        targets: true class ids, integer, (N,).

    Returns:
        A number in [0, 1]. A class with neither a true positive nor an error scores 0, as nothing shows that it can be
        found; with more than two classes one that occurs on neither side is left out of the mean.

    Raises:
        ValueError: as `confusion`.
    """
    counts = _counts(predictions, targets)
    support = counts.sum(0) + counts.sum(1)
    scores = 2 * counts.diagonal() / support.clamp(min=1)
    return float(scores[1]) if len(counts) == 2 else float(scores[support > 0].mean())


def mcc(predictions: Tensor, targets: Tensor) -> float:
    """Return the Matthews correlation of class ids, for any number of classes (R_K, Gorodkin 2004, eq. 8).

    Args:
        predictions: predicted class ids, integer, (N,).
        targets: true class ids, integer, (N,).

    Returns:
        A number in [-1, 1]; 0.0 where either side is constant, since a constant tells nothing of the other side and
        0 is what guessing scores.

    Raises:
        ValueError: as `confusion`.
    """
    counts = _counts(predictions, targets)
    total, right = counts.sum(), counts.diagonal().sum()
    predicted, true = counts.sum(0), counts.sum(1)
    spread = (total**2 - predicted.square().sum()) * (total**2 - true.square().sum())
    return float((right * total - predicted @ true) / spread.sqrt()) if spread > 0 else 0.0


def pearson(predictions: Tensor, targets: Tensor) -> float:
    """Return the Pearson correlation of two series of numbers, computed in float64.

    Args:
        predictions: predicted values, (N,).
        targets: true values, (N,).

    Returns:
        A number in [-1, 1]; nan where either side is constant or not finite: there is then no correlation, and 0 would
        read as one that was measured.

    Raises:
        ValueError: lengths differ or are 0.
    """
    _check_pair(predictions, targets)
    x, y = predictions.double().cpu(), targets.double().cpu()
    if bool((x == x[0]).all()) or bool((y == y[0]).all()):
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    return float(((x / x.norm()) @ (y / y.norm())).clamp(-1.0, 1.0))


METRICS: Mapping[str, Callable[[Tensor, Tensor], float]] = MappingProxyType(
    {"accuracy": accuracy, "f1": f1, "mcc": mcc, "pearson": pearson}
)
"""Every metric by the name it is asked for; larger is better in each."""


def metric(name: str, predictions: Tensor, targets: Tensor) -> float:
    """Return the metric of that name.

    Args:
        name: a key of `METRICS`.
        predictions: class ids (integer) or, for `pearson`, values, (N,).
        targets: likewise, (N,).

    Returns:
        The metric's value; see each function for the cases in which it is not defined.

    Raises:
        ValueError: no such metric, or predictions that do not fit it.
    """
    if name not in METRICS:
        raise ValueError(f"there is no metric {name!r}; there are {listing(METRICS)}.{did_you_mean(name, METRICS)}")
    return METRICS[name](predictions, targets)


def _check_pair(predictions: Tensor, targets: Tensor) -> None:
    if predictions.shape != targets.shape or predictions.dim() != 1 or not len(targets):
        raise ValueError(
            "predictions and targets must be two series of the same length, at least 1, since they are compared row by "
            f"row; got shapes {tuple(predictions.shape)} and {tuple(targets.shape)}."
        )


def _counts(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the confusion counts in float64 over the ids seen, at least the two classes 0 and 1."""
    _check_pair(predictions, targets)
    num_classes = max(int(predictions.max()), int(targets.max()), 1) + 1
    return confusion(predictions, targets, num_classes).double().cpu()
