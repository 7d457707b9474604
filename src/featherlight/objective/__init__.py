"""The loss at one batch, with or without a gradient: a torch closure with two more verbs."""

from featherlight.objective.autocasting import autocast
from featherlight.objective.batch import BatchObjective
from featherlight.objective.clipping import ClipGradient
from featherlight.objective.distillation import DistilledLoss, LossOfOutputs, Outputs
from featherlight.objective.finite import NonFiniteLossError, finite
from featherlight.objective.in_turn import ObjectivesInTurn
from featherlight.objective.passes import seeded_random
from featherlight.objective.protocols import (
    Batch,
    Objective,
    PerExampleLoss,
    PerExampleObjective,
    ScalableObjective,
    ShareableObjective,
    Team,
)
from featherlight.objective.reward import MinusScores, RewardObjective, Score
from featherlight.objective.shared import SharedObjective
from featherlight.objective.streamed import StreamedObjective
from featherlight.objective.unchanging import unchanging

__all__ = [
    "Batch",
    "BatchObjective",
    "ClipGradient",
    "DistilledLoss",
    "LossOfOutputs",
    "MinusScores",
    "NonFiniteLossError",
    "Objective",
    "ObjectivesInTurn",
    "Outputs",
    "PerExampleLoss",
    "PerExampleObjective",
    "RewardObjective",
    "ScalableObjective",
    "Score",
    "ShareableObjective",
    "SharedObjective",
    "StreamedObjective",
    "Team",
    "autocast",
    "finite",
    "seeded_random",
    "unchanging",
]
