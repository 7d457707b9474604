"""Forward-only optimizers: the rank-one engine, MeZO as published, and SPSA as the oracle of both."""

from featherlight.optim.zeroth_order.families import Gaussian, RankOneSigns
from featherlight.optim.zeroth_order.guards import NonFiniteLossError
from featherlight.optim.zeroth_order.mezo import MeZO
from featherlight.optim.zeroth_order.sgd import Journal, SpreadNormalized, ZerothOrderSGD, targets_of
from featherlight.optim.zeroth_order.spsa import SPSA
from featherlight.optim.zeroth_order.targets import Target
from featherlight.optim.zeroth_order.update import StepRecord, apply_update, apply_updates

__all__ = [
    "SPSA",
    "Gaussian",
    "Journal",
    "MeZO",
    "NonFiniteLossError",
    "RankOneSigns",
    "SpreadNormalized",
    "StepRecord",
    "Target",
    "ZerothOrderSGD",
    "apply_update",
    "apply_updates",
    "targets_of",
]
