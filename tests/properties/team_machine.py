"""A team on a simulated clock and network: any order of messages, crashes, partitions, late and stale members.

A connection keeps order, as TCP does, until it is cut; what is cut off by a partition waits, and both ends give up for
themselves. The host's disk is what it appended before it told anybody.
"""

import struct
from collections import deque
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from featherlight.trainer.team.messages import FRAME, Message, Over, Ready, Step, Told, Welcome, decode, encode
from featherlight.trainer.team.protocol import NO_STEPS, Host, Member, Silence, chain_after

FACTS = {"base": "b", "data": "d", "format": "1"}
PATIENCE = 8.0
NAMES = ("ann", "ben", "cas", "wrong")
RECORD = struct.Struct("<IIHH")


def chain_of(records: list[bytes]) -> bytes:
    chain = NO_STEPS
    for record in records:
        chain = chain_after(chain, record)
    return chain


@dataclass
class Wire:
    """A connection; None in a queue says that the other end closed."""

    up: deque[bytes | None] = field(default_factory=deque)
    down: deque[bytes | None] = field(default_factory=deque)


@dataclass
class Worker:
    """A process with a disk; `member` is None while it does not run."""

    disk: list[bytes] = field(default_factory=list)
    member: Member | None = None
    wire: int = -1
    told: int = -1
    cut_since: float | None = None


class TeamMachine(RuleBasedStateMachine):
    """The rules are what can happen; the invariants are what a team promises."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.wires: dict[int, Wire] = {}
        self.num_wires = 0
        self.workers = {name: Worker() for name in NAMES}
        self.disk: list[bytes] = []
        self.acknowledged: list[bytes] = []
        self.host: Host | None = None
        self.silence = Silence(PATIENCE)

    @initialize()
    def start(self) -> None:
        self.start_host()

    def start_host(self) -> None:
        epoch = RECORD.unpack(self.disk[-1])[1] + 1 if self.disk else 0
        self.host = Host(FACTS, self.disk, epoch)
        self.silence = Silence(PATIENCE)

    def say(self, queue: deque[bytes | None], message: Message) -> None:
        queue.append(encode(message))

    def read(self, data: bytes) -> Message:
        return decode(data[FRAME.size - 1], data[FRAME.size :])

    @rule(name=st.sampled_from(NAMES), lost=st.integers(0, 3))
    def start_worker(self, name: str, lost: int) -> None:
        """It may have lost the last steps of its journal, or never have had any."""
        worker = self.workers[name]
        if worker.member is not None or self.host is None or worker.cut_since is not None:
            return
        worker.disk = worker.disk[: max(0, len(worker.disk) - lost)]
        facts = FACTS | ({"base": "other"} if name == "wrong" else {})
        worker.member = Member(facts, len(worker.disk), chain_of(worker.disk))
        worker.wire, worker.told = self.num_wires, -1
        self.num_wires += 1
        self.wires[worker.wire] = Wire()
        self.silence.hear(worker.wire, self.now)
        self.say(self.wires[worker.wire].up, worker.member.hello)

    @rule(name=st.sampled_from(NAMES), messages=st.integers(1, 5))
    def work(self, name: str, messages: int) -> None:
        """One goes on for a while: messages come and go, and what can be measured is."""
        if self.workers[name].member is None:
            self.start_worker(name, 0)
        for _ in range(messages):
            self.deliver_up(name)
            self.deliver_down(name)
            self.measure(name)

    @rule(rounds=st.integers(1, 3))
    def work_together(self, rounds: int) -> None:
        """A while in which nothing goes wrong."""
        for _ in range(rounds):
            for name in NAMES:
                self.work(name, 3)
            if self.host is not None and self.host.is_settled:
                self.advance(False)

    @rule(name=st.sampled_from(NAMES))
    def deliver_up(self, name: str) -> None:
        worker = self.workers[name]
        wire = self.wires.get(worker.wire)
        if wire is None or not wire.up or worker.cut_since is not None or self.host is None:
            return
        data = wire.up.popleft()
        if data is None:
            self.hang_up(worker.wire)
            return
        for send in self.host.hear(worker.wire, self.read(data)):
            self.say(self.wires[send.peer].down, send.message)

    @rule(name=st.sampled_from(NAMES))
    def deliver_down(self, name: str) -> None:
        worker = self.workers[name]
        wire = self.wires.get(worker.wire)
        if wire is None or not wire.down or worker.cut_since is not None or worker.member is None:
            return
        data = wire.down.popleft()
        message = None if data is None else self.read(data)
        if message is None or isinstance(message, Over):
            self.stop_worker(name)
            return
        records = worker.member.hear(message)
        worker.disk += records
        assert worker.member.steps == len(worker.disk)
        if isinstance(message, (Welcome, Step)) and worker.member.seat is None:
            self.say(wire.up, Ready(steps=worker.member.steps))

    @rule(name=st.sampled_from(NAMES))
    def measure(self, name: str) -> None:
        worker = self.workers[name]
        member = worker.member
        if member is None or member.seat is None or worker.told == member.steps:
            return
        worker.told = member.steps
        if (wire := self.wires.get(worker.wire)) is not None:
            self.say(wire.up, Told(step=member.steps, data=chain_of(worker.disk)))

    def write(self) -> None:
        """A step that nobody but the host's disk knows of yet."""
        assert self.host is not None
        for told in self.host.parts():
            assert told is None or told == chain_of(self.disk), "one counted that had not caught up"
        seat = self.host.seat
        self.disk.append(
            RECORD.pack(len(self.disk), seat.epoch, seat.count, sum(p is not None for p in self.host.parts()))
        )

    @precondition(lambda self: self.host is not None and self.host.is_settled)
    @rule(dies=st.sampled_from([False] * 7 + [True]))
    def advance(self, dies: bool) -> None:
        assert self.host is not None
        self.write()
        if dies:
            self.crash_host()
            return
        for send in self.host.advance(self.disk[-1], 0.0):
            self.say(self.wires[send.peer].down, send.message)
        self.acknowledged = list(self.disk)

    @precondition(lambda self: self.host is not None and not self.disk and not self.host.seated)
    @rule()
    def reseat(self) -> None:
        """As the host does once, when it has waited for as many as it was told to."""
        assert self.host is not None
        for send in self.host.reseat():
            self.say(self.wires[send.peer].down, send.message)

    @rule(name=st.sampled_from(NAMES))
    def crash_worker(self, name: str) -> None:
        self.stop_worker(name)

    @precondition(lambda self: self.host is not None)
    @rule()
    def crash_host(self) -> None:
        self.host = None
        for wire in self.wires.values():
            wire.down.append(None)

    @precondition(lambda self: self.host is None)
    @rule()
    def restart_host(self) -> None:
        self.wires.clear()
        for name in NAMES:
            self.stop_worker(name)
        self.start_host()

    @rule(name=st.sampled_from(NAMES))
    def partition(self, name: str) -> None:
        if self.workers[name].cut_since is None:
            self.workers[name].cut_since = self.now

    @rule(name=st.sampled_from(NAMES))
    def heal(self, name: str) -> None:
        self.workers[name].cut_since = None

    @rule(seconds=st.floats(0.5, 6.0))
    def pass_time(self, seconds: float) -> None:
        """Both ends of a connection that works hear of each other; those of one that does not give up by themselves."""
        self.now += seconds
        for name, worker in self.workers.items():
            if worker.wire in self.wires and worker.cut_since is None and worker.member is not None:
                self.silence.hear(worker.wire, self.now)
            elif worker.cut_since is not None and self.now - worker.cut_since > PATIENCE:
                self.stop_worker(name)
        for wire in self.silence.silent(self.now):
            self.hang_up(wire)

    def stop_worker(self, name: str) -> None:
        worker = self.workers[name]
        worker.member = None
        if (wire := self.wires.get(worker.wire)) is not None:
            wire.up.append(None)

    def hang_up(self, number: int) -> None:
        if self.host is not None:
            self.host.lose(number)
        self.silence.forget(number)
        if (wire := self.wires.get(number)) is not None:
            wire.down.append(None)

    @invariant()
    def nothing_acknowledged_is_lost(self) -> None:
        assert self.disk[: len(self.acknowledged)] == self.acknowledged
        assert self.host is None or self.host.records == self.disk

    @invariant()
    def there_is_one_history(self) -> None:
        for worker in self.workers.values():
            assert worker.disk == self.disk[: len(worker.disk)]
        seats = [RECORD.unpack(record)[1:3] for record in self.disk]
        assert seats == sorted(seats, key=lambda seat: seat[0])
        assert len(dict(seats)) == len(set(seats)), "one epoch had two sizes"

    @invariant()
    def who_is_gone_for_ten_seconds_has_no_place(self) -> None:
        for worker in self.workers.values():
            gone = worker.cut_since is not None and self.now - worker.cut_since > PATIENCE + 6.0
            assert self.host is None or not gone or worker.wire not in self.host.seated

    @invariant()
    def the_wrong_one_never_gets_in(self) -> None:
        assert self.workers["wrong"].disk == []

    def teardown(self) -> None:
        """When all is well again, everybody comes to have all steps and a place."""
        if self.host is None:
            self.restart_host()
        for name in NAMES:
            self.heal(name)
        for _ in range(8):
            self.settle_down()
        assert self.host is not None
        assert len(self.host.seated) == len(NAMES) - 1
        for name in NAMES[:-1]:
            assert self.workers[name].disk == self.disk

    def settle_down(self) -> None:
        self.pass_time(PATIENCE / 2)
        for name in NAMES:
            self.start_worker(name, 0)
            while (wire := self.wires.get(self.workers[name].wire)) is not None and (wire.up or wire.down):
                before = len(wire.up), len(wire.down)
                self.deliver_up(name)
                self.deliver_down(name)
                if (len(wire.up), len(wire.down)) == before:
                    break
            self.measure(name)
            self.deliver_up(name)
        assert self.host is not None
        if self.host.is_settled:
            self.advance(False)
        for name in NAMES:
            while (
                (wire := self.wires.get(self.workers[name].wire)) is not None
                and wire.down
                and self.workers[name].member
            ):
                self.deliver_down(name)
