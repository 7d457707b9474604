"""Optimizers. All are torch optimizers and take one step by `loss = optimizer.step(objective)`."""

from featherlight.optim.zeroth_order import (
    SPSA,
    CentredRanks,
    Gaussian,
    MeZO,
    MeZOSVRG,
    RankOneSigns,
    RecordedOptimizer,
    SpreadNormalized,
    ZerothOrderSGD,
)

__all__ = [
    "SPSA",
    "CentredRanks",
    "Gaussian",
    "MeZO",
    "MeZOSVRG",
    "RankOneSigns",
    "RecordedOptimizer",
    "SpreadNormalized",
    "ZerothOrderSGD",
]
