"""Forward-only optimizers: the rank-one engine, MeZO as published, and SPSA as the oracle of both."""

from featherlight.optim.zeroth_order.agzo import AGZO
from featherlight.optim.zeroth_order.con_mezo import Cone, ConMeZO
from featherlight.optim.zeroth_order.differences import Central, Difference, OneSided
from featherlight.optim.zeroth_order.families import Gaussian, RankOneSigns, WholeBatchSigns
from featherlight.optim.zeroth_order.fzoo import FZOO
from featherlight.optim.zeroth_order.gathering import Gather, Part, Settled, Slot, combine, mean_loss
from featherlight.optim.zeroth_order.guards import NonFiniteLossError
from featherlight.optim.zeroth_order.lozo import LOZO, LazySubspace
from featherlight.optim.zeroth_order.mezo import MeZO
from featherlight.optim.zeroth_order.mezo_svrg import MeZOSVRG
from featherlight.optim.zeroth_order.normalization import (
    Normalization,
    ScalarMoment,
    SpreadNormalized,
    StandardDeviation,
)
from featherlight.optim.zeroth_order.recorded import Journal, RecordedOptimizer
from featherlight.optim.zeroth_order.sgd import ZerothOrderSGD
from featherlight.optim.zeroth_order.shaping import CentredRanks, Shaping
from featherlight.optim.zeroth_order.spsa import SPSA
from featherlight.optim.zeroth_order.targets import Target, targets_of
from featherlight.optim.zeroth_order.update import Echo, StepRecord, apply_update, apply_updates

__all__ = [
    "AGZO",
    "FZOO",
    "LOZO",
    "SPSA",
    "Central",
    "CentredRanks",
    "ConMeZO",
    "Cone",
    "Difference",
    "Echo",
    "Gather",
    "Gaussian",
    "Journal",
    "LazySubspace",
    "MeZO",
    "MeZOSVRG",
    "NonFiniteLossError",
    "Normalization",
    "OneSided",
    "Part",
    "RankOneSigns",
    "RecordedOptimizer",
    "ScalarMoment",
    "Settled",
    "Shaping",
    "Slot",
    "SpreadNormalized",
    "StandardDeviation",
    "StepRecord",
    "Target",
    "WholeBatchSigns",
    "ZerothOrderSGD",
    "apply_update",
    "apply_updates",
    "combine",
    "mean_loss",
    "targets_of",
]
