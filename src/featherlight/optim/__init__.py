"""Optimizers. All are torch optimizers and take one step by `loss = optimizer.step(objective)`."""

from featherlight.optim.zeroth_order import (
    SPSA,
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
    "Gaussian",
    "MeZO",
    "MeZOSVRG",
    "RankOneSigns",
    "RecordedOptimizer",
    "SpreadNormalized",
    "ZerothOrderSGD",
]
