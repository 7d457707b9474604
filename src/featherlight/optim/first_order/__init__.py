"""Optimizers that go by gradients, beyond those of torch."""

from featherlight.optim.first_order.averaging import (
    AveragingOptimizer,
    adopt_evaluation_weights,
    evaluation_weights,
    reestimate_batch_norm,
)
from featherlight.optim.first_order.loss_scaling import WithLossScaling
from featherlight.optim.first_order.prodigy import DistanceEstimate, Prodigy
from featherlight.optim.first_order.schedule_free import schedule_free_adamw
from featherlight.optim.first_order.together import OptimizersTogether, muon_with_adamw

__all__ = [
    "AveragingOptimizer",
    "DistanceEstimate",
    "OptimizersTogether",
    "Prodigy",
    "WithLossScaling",
    "adopt_evaluation_weights",
    "evaluation_weights",
    "muon_with_adamw",
    "reestimate_batch_norm",
    "schedule_free_adamw",
]
