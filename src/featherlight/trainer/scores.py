"""The scores of a run over time."""

import math
from dataclasses import dataclass, field

from featherlight.trainer.experiment import Evaluation

_SHARES = frozenset({"accuracy", "f1"})


@dataclass(kw_only=True)
class Scores:
    """The run's metric and its loss, in the order in which they were measured.

    Attributes:
        lower_is_better: whether small values of the metric are good.
        metric: its name, which is "loss" where an evaluation has no metric; empty before the first.
        values: of the metric; NaN where there was none.
        losses: the mean losses, one for each value; None where there was none.
    """

    lower_is_better: bool = False
    metric: str = ""
    values: list[float] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)

    def add(self, evaluation: Evaluation) -> None:
        """Takes down an evaluation by its first metric."""
        self.metric, value = next(iter(evaluation.values.items()), ("loss", evaluation.loss))
        self.values.append(math.nan if value is None else value)
        self.losses.append(evaluation.loss)

    @property
    def best(self) -> float:
        """The best finite value; NaN if there is none."""
        finite = [value for value in self.values if math.isfinite(value)] or [math.nan]
        return min(finite) if self.lower_is_better else max(finite)

    def text(self) -> str:
        """The latest score for people."""
        if not self.values:
            return ""
        last = self.values[-1]
        return f"{self.metric} {last:.1%}" if self.metric in _SHARES else f"{self.metric} {last:.4g}"
