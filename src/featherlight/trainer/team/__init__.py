"""Several processes that train one model by forward passes, of which only whole numbers travel."""

from featherlight.trainer.team.agreement import Pace, digest_of, require_agreement
from featherlight.trainer.team.lockstep import Alone, Lockstep
from featherlight.trainer.team.message import Measured
from featherlight.trainer.team.together import GroupGather

__all__ = ["Alone", "GroupGather", "Lockstep", "Measured", "Pace", "digest_of", "require_agreement"]
