"""Where the processes of a team meet."""

from dataclasses import dataclass
from typing import Self

_HIGHEST = 65535


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Where a team meets, and whether this process waits there for the others.

    Args:
        host: name or address; empty is any of this machine, and that of a process that waits.
        port: TCP.
        hosts: whether this process keeps the history; the others join it.
        members: that a host waits for before its first step; more may join at any time.
    """

    host: str
    port: int
    hosts: bool
    members: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `PORT` or `PORT+MEMBERS`, which hosts, or `HOST:PORT`, which joins; raises ValueError for anything else."""
        host, _, rest = text.rpartition(":")
        port, plus, members = rest.partition("+")
        fits = port.isdecimal() and 0 < int(port) <= _HIGHEST and (members.isdecimal() if plus else not members)
        if not fits or (host and plus):
            raise ValueError(
                f"`--team {text}` says neither where to wait nor where to join. Give a port, such as `--team 29400` (or "
                "29400+2, to wait for two members before the first step), to host a team, and `--team HOST:29400` to join it."
            )
        return cls(host=host.strip("[]"), port=int(port), hosts=not host, members=int(members or 0))
