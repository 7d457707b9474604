"""Optimizers. All are torch optimizers and take one step by `loss = optimizer.step(objective)`."""

from featherlight.optim.zeroth_order import (
    FZOO,
    SPSA,
    Central,
    CentredRanks,
    Gaussian,
    MeZO,
    MeZOSVRG,
    OneSided,
    RankOneSigns,
    RecordedOptimizer,
    ScalarMoment,
    SpreadNormalized,
    StandardDeviation,
    WholeBatchSigns,
    ZerothOrderSGD,
)

__all__ = [
    "FZOO",
    "SPSA",
    "Central",
    "CentredRanks",
    "Gaussian",
    "MeZO",
    "MeZOSVRG",
    "OneSided",
    "RankOneSigns",
    "RecordedOptimizer",
    "ScalarMoment",
    "SpreadNormalized",
    "StandardDeviation",
    "WholeBatchSigns",
    "ZerothOrderSGD",
]
