"""Several processes that train one model by forward passes, of which only whole numbers travel."""

from featherlight.trainer.team.agreement import Pace, digest_of, require_agreement
from featherlight.trainer.team.lockstep import Alone, Lockstep
from featherlight.trainer.team.meeting import Meeting
from featherlight.trainer.team.message import Measured
from featherlight.trainer.team.star import HostGather, MemberGather, TeamOverError
from featherlight.trainer.team.switchboard import Switchboard, listen
from featherlight.trainer.team.together import GroupGather

__all__ = [
    "Alone",
    "GroupGather",
    "HostGather",
    "Lockstep",
    "Measured",
    "Meeting",
    "MemberGather",
    "Pace",
    "Switchboard",
    "TeamOverError",
    "digest_of",
    "listen",
    "require_agreement",
]
