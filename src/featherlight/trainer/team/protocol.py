"""How a team keeps one history: what its host and its members know, and what they say when they hear something.

No sockets, threads or clocks in here; `star.py` drives it over TCP, a test on a simulated network.

The host holds the history: a step exists once it is on the host's disk, and only then do members hear of it. So what a
member has is always the beginning of what the host has; whoever loses the host stops, and nobody needs to vote. A member has
a place in a step only if it said that it has applied all before; places change between steps, and with them the epoch.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from featherlight.trainer.team.messages import Hello, Message, Over, Ready, Seat, Step, Told, Welcome

MOST_BEHIND = 16
"""Steps that a member may be behind the host when it is given a place."""

NO_STEPS = bytes(8)
"""The chain before the first step."""


def chain_after(chain: bytes, record: bytes) -> bytes:
    """8 bytes that stand for all records up to this one."""
    return hashlib.blake2b(chain + record, digest_size=len(NO_STEPS)).digest()


class Send(NamedTuple):
    """What is to be said to whom."""

    peer: int
    message: Message


class _Peer:
    """What the host knows of a member."""

    def __init__(self) -> None:
        self.applied: int | None = None
        self.seat: Seat | None = None
        self.told: bytes | None = None


class Host:
    """The one that holds the history.

    Args:
        facts: that all must share, such as the digests of base and data.
        records: of the steps so far.
        epoch: of the membership; above that of all steps so far.

    Attributes:
        records: of all steps.
        seat: of the host itself, which is always number 0.
        targets: which parameters are trained, for members that join behind the first step.
    """

    def __init__(self, facts: Mapping[str, str], records: Sequence[bytes], epoch: int) -> None:
        self.facts = dict(facts)
        self.records: list[bytes] = []
        self.chains = [NO_STEPS]
        for record in records:
            self._keep(record)
        self.seat = Seat(epoch=epoch, number=0, count=1)
        self.targets: Mapping[str, Sequence[int]] | None = None
        self._peers: dict[int, _Peer] = {}

    def hear(self, peer: int, message: Message) -> list[Send]:
        """Takes in what a connection said; one that is refused is to be closed behind the answer."""
        known = self._peers.get(peer)
        if isinstance(message, Hello):
            return self._admit(peer, message)
        if isinstance(message, Over):
            self.lose(peer)
        elif known is not None and isinstance(message, Ready):
            known.applied = message.steps
        elif known is not None and isinstance(message, Told) and known.seat and message.step == len(self.records):
            known.told = message.data
        return []

    def lose(self, peer: int) -> None:
        """Takes in that a connection is gone; its place stays empty for the step that is being made."""
        self._peers.pop(peer, None)

    @property
    def peers(self) -> list[int]:
        """All connections that were let in."""
        return sorted(self._peers)

    @property
    def seated(self) -> list[int]:
        """The connections with a place in the coming step, in order."""
        return sorted(peer for peer, one in self._peers.items() if one.seat is not None)

    @property
    def ready(self) -> list[int]:
        """Those that have a place or could have one."""
        behind = len(self.records) - MOST_BEHIND
        return sorted(
            p for p, one in self._peers.items() if one.seat or (one.applied is not None and one.applied >= behind)
        )

    @property
    def is_settled(self) -> bool:
        """Whether nobody is waited for."""
        return all(one.told is not None for one in self._peers.values() if one.seat is not None)

    def of_other_size(self, num_bytes: int) -> list[int]:
        """The connections that told something else than so many bytes."""
        return sorted(p for p, one in self._peers.items() if one.told is not None and len(one.told) != num_bytes)

    def parts(self) -> list[bytes | None]:
        """What was told for each place but the host's own, in order; None of those that are gone."""
        by_number = {one.seat.number: one.told for one in self._peers.values() if one.seat is not None}
        return [by_number.get(number) for number in range(1, self.seat.count)]

    def reseat(self) -> list[Send]:
        """Gives the first places to all that are ready, before the first step; what they tell afterwards counts."""
        self._reseat()
        return [Send(peer, Step(record=b"", seat=one.seat)) for peer, one in self._peers.items() if one.seat]

    def advance(self, record: bytes, seconds: float) -> list[Send]:
        """Takes in a step that is on disk now: all hear of it, and of their places in the next."""
        self._keep(record)
        self._reseat()
        return [Send(peer, Step(record=record, seat=one.seat, seconds=seconds)) for peer, one in self._peers.items()]

    def _keep(self, record: bytes) -> None:
        self.records.append(record)
        self.chains.append(chain_after(self.chains[-1], record))

    def _reseat(self) -> None:
        """Places for all that are ready; the epoch grows if they are other ones than before."""
        ready = self.ready
        places = {peer: number for number, peer in enumerate(ready, 1)}
        before = {peer: one.seat.number for peer, one in self._peers.items() if one.seat is not None}
        if places != before or self.seat.count != len(places) + 1:
            epoch = self.seat.epoch + 1
            self.seat = Seat(epoch=epoch, number=0, count=len(places) + 1)
            for peer, number in places.items():
                self._peers[peer].seat = Seat(epoch=epoch, number=number, count=self.seat.count)
        for one in self._peers.values():
            one.told = None

    def _admit(self, peer: int, hello: Hello) -> list[Send]:
        sentence = self._refusal(hello)
        if sentence is not None:
            self.lose(peer)
            return [Send(peer, Over(kind="refused", sentence=sentence))]
        self._peers[peer] = _Peer()
        return [Send(peer, Welcome(first=hello.steps, records=self.records[hello.steps :], targets=self.targets))]

    def _refusal(self, hello: Hello) -> str | None:
        """Why one cannot join; None if it can."""
        for name, own in self.facts.items():
            if (its := hello.facts.get(name)) != own:
                return (
                    f"the member's {name} is {_short(its)} and that of the run is {_short(own)}, so their steps would not be of "
                    "one model. Start it with the same base model, data, settings and version of featherlight."
                )
        if hello.steps > len(self.records):
            return (
                f"the member has {hello.steps} steps and the host {len(self.records)}. A host has all steps of its run, so "
                "this is another run, or the host was set back; start the host from the run directory with the most steps."
            )
        if hello.chain != self.chains[hello.steps]:
            return (
                f"the {hello.steps} steps that the member has are not the first {hello.steps} of this run. Join with a new "
                "`--out`, or with the directory that was part of this run."
            )
        return None


class Member:
    """One that joins a host.

    Args:
        facts: of its model, data and settings.
        steps: it has applied.
        chain: over their records.

    Attributes:
        steps: applied or to be applied at once.
        seat: its place in the coming step; None while it only listens.
        over: why the host ended it; None while it has not.
        targets: which parameters the host trains, if it told.
        seconds: of the host, as told last.
    """

    def __init__(self, facts: Mapping[str, str], steps: int, chain: bytes) -> None:
        self.hello = Hello(facts=facts, steps=steps, chain=chain)
        self.steps = steps
        self.chain = chain
        self.seat: Seat | None = None
        self.over: Over | None = None
        self.targets: Mapping[str, Sequence[int]] | None = None
        self.seconds = 0.0

    def hear(self, message: Message) -> Sequence[bytes]:
        """Takes in what the host said; returns the records that are to be applied now, in order."""
        if isinstance(message, Over):
            self.over = message
        elif isinstance(message, Welcome):
            self.targets = message.targets
            return self._take(message.records)
        elif isinstance(message, Step):
            self.seat, self.seconds = message.seat, message.seconds
            return self._take([message.record] if message.record else [])
        return ()

    def _take(self, records: Sequence[bytes]) -> Sequence[bytes]:
        for record in records:
            self.chain = chain_after(self.chain, record)
        self.steps += len(records)
        return records


class Silence:
    """Who was not heard of for too long.

    Args:
        patience: seconds.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._heard: dict[int, float] = {}

    def hear(self, peer: int, now: float) -> None:
        """Notes that somebody is there."""
        self._heard[peer] = now

    def forget(self, peer: int) -> None:
        """Looks for somebody no more."""
        self._heard.pop(peer, None)

    def silent(self, now: float) -> list[int]:
        """Those that were not heard of for longer than the patience."""
        return [peer for peer, heard in self._heard.items() if now - heard > self.patience]


def _short(value: str | None) -> str:
    return "not given" if value is None else value if len(value) <= 40 else f"{value[:12]}..."
