"""How fast a network is pruned."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CubicSchedule:
    """Prunes fast while much is superfluous and slowly towards the end.

    Args:
        begin: share of the budget before which nothing is pruned.
        end: share after which nothing changes any more.
        updates: how often the masks are made anew in between.

    Source: Zhu and Gupta 2017 (arXiv 1710.01878), equation 1 with an initial sparsity of zero.
    """

    begin: float = 0.0
    end: float = 0.7
    updates: int = 60

    def __post_init__(self) -> None:
        if not 0 <= self.begin <= self.end <= 1:
            raise ValueError(
                f"`begin` and `end` must be shares of the budget, 0 <= begin <= end <= 1; got {self.begin} and {self.end}."
            )
        if self.updates < 1:
            raise ValueError(f"`updates` must be at least 1; got {self.updates}.")

    def update_at(self, progress: float) -> int:
        """The number of the update that is due at a share of the budget, from 0; `updates` is the last one."""
        if progress >= self.end:
            return self.updates
        if progress <= self.begin:
            return 0
        return min(self.updates, int((progress - self.begin) / (self.end - self.begin) * self.updates))

    def share(self, update: int) -> float:
        """Of the final sparsity, at an update."""
        return 1 - (1 - update / self.updates) ** 3

    @property
    def last(self) -> int:
        """The number of the last update."""
        return self.updates


AT_ONCE = CubicSchedule(begin=0.0, end=0.0, updates=1)
"""All before the first step."""
