"""What an autoencoder learns: examples, and how far a reconstruction is from them.

Legend of shapes: N examples, C channels, S sizes (rows and columns, or time).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from featherlight.report import Block

_SAMPLED = 512


Show = Callable[[Sequence[tuple[str, Tensor]], str], Block]
"""Draws named rows of examples, (N, C, *S), which belong together column by column, with a caption."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Data as an autoencoder sees it.

    Attributes:
        source: for people.
        channels: C.
        sizes: S, of every example.
        num_train: examples of an epoch.
        batch: the examples at places `start` to `start + count` of the endless training stream, floats.
        rows: which of the data these are, for messages.
        valid: to look at, floats.
        test: to report on; None where the data have no such part.
        low: smallest value of an example.
        high: largest value.
        loss: makes the training loss, `loss(output, target) -> (B,)`, from the variance of the data.
        decibels: name of the metric in decibels, and the power it is over: 1 for the peak of images.
        unit: what a bit rate is counted by, and how many of them an example has.
        show: draws examples.
        digest: of the training data.
        facts: what people want to know of the data.
        about: what it takes to use the model on other data; JSON.
    """

    source: str
    channels: int
    sizes: tuple[int, ...]
    num_train: int
    batch: Callable[[int, int], Tensor]
    rows: Callable[[int, int], Sequence[int]]
    valid: Tensor
    test: Tensor | None
    low: float
    high: float
    loss: Callable[[float], Callable[[Tensor, Tensor], Tensor]]
    decibels: tuple[str, float | None]
    unit: tuple[str, float]
    show: Show
    digest: str
    facts: Mapping[str, str]
    about: Mapping[str, Any]

    def statistics(self) -> tuple[float, float]:
        """Mean and standard deviation of the values of some training examples, over all channels."""
        some = self.batch(0, min(self.num_train, _SAMPLED)).double()
        return float(some.mean()), float(some.std().clamp(min=1e-3))
