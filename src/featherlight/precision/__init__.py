"""In which format a step computes, the scale that keeps small gradients alive, and what a format would lose."""

from featherlight.precision.exponents import ExponentCounts, LostShares, count_exponents, lost_shares
from featherlight.precision.policy import Precision
from featherlight.precision.scaling import LossScaler

__all__ = ["ExponentCounts", "LossScaler", "LostShares", "Precision", "count_exponents", "lost_shares"]
