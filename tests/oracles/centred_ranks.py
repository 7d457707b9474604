"""Centred ranks by counting, one comparison at a time."""

from collections.abc import Sequence


def centred_rank_differences(plus: Sequence[float], minus: Sequence[float]) -> list[float]:
    """Of each pair: its rank at plus minus that at minus, among all, scaled to [-0.5, 0.5]; equals share their mean."""
    everything = [*plus, *minus]

    def rank(loss: float) -> float:
        below = sum(other < loss for other in everything)
        equal = sum(other == loss for other in everything)
        return (below + (equal - 1) / 2) / (len(everything) - 1) - 0.5

    return [rank(a) - rank(b) for a, b in zip(plus, minus, strict=True)]
