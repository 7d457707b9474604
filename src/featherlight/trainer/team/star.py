"""Forward-only steps of a team that comes and goes: each member sends what it measured to the host, and gets the step back.

A step takes one round trip, with however many members. The host writes it to its journal before anybody hears of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from featherlight.objective import NonFiniteLossError
from featherlight.optim.zeroth_order import Part, Settled, Slot, StepRecord, Target, ZerothOrderSGD, mean_loss
from featherlight.trainer.journal import decode, encode_record
from featherlight.trainer.team.agreement import digest_of, require_agreement
from featherlight.trainer.team.message import HEAD_BYTES, Measured
from featherlight.trainer.team.messages import Over, Ready, Told
from featherlight.trainer.team.protocol import NO_STEPS, Host, Member, chain_after
from featherlight.trainer.team.switchboard import Heard, Switchboard

_RECORD_LENGTH = 2


class Steps(Protocol):
    """A journal: each step is safe when `append` returns."""

    def append(self, record: StepRecord, targets: list[Target]) -> None:
        """Called before the step is applied."""
        ...


class TeamOverError(Exception):
    """The team ended, or this process lost it, in the middle of a step; nothing of that step was applied.

    Attributes:
        kind: "refused", "finished", "interrupted", "not finite", "failed" or "lost".
        sentence: for people.
    """

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind
        self.sentence = sentence


class HostGather:
    """The `Gather` of a host, which is its journal as well: what it appends, it tells.

    Args:
        board: that waits for members.
        optimizer: of this process, behind all steps so far.
        journal: of this process.
        facts: that members must share.
        records: of all steps so far.
        digest_every: steps between comparisons of the weights.
        seconds: those spent in steps so far, which all members go by.
    """

    def __init__(
        self,
        board: Switchboard,
        optimizer: ZerothOrderSGD,
        journal: Steps,
        *,
        facts: Mapping[str, str],
        records: Sequence[StepRecord],
        digest_every: int,
        seconds: Callable[[], float] = lambda: 0.0,
    ) -> None:
        epoch = records[-1].epoch + 1 if records else 0
        self._host = Host(facts, [encode_record(record) for record in records], epoch)
        self._board = board
        self._optimizer = optimizer
        self._journal = journal
        self._digest_every = digest_every
        self._draws = sum(record.world for record in records)
        self._seconds = seconds
        self._ended = False
        self._note_targets()

    @property
    def slot(self) -> Slot:
        """The first of as many as have a place."""
        return Slot(number=0, count=self._host.seat.count)

    def draw(self, step: int) -> int:
        """The number of the batch that this process takes in the coming step."""
        return self._draws

    def wait_for(self, members: int) -> None:
        """Returns when so many are there, which then have places in the first step."""
        while len(self._host.ready) < members:
            self._take(self._board.receive(None))
        if not self._host.records:
            for send in self._host.reseat():
                self._board.send(*send)

    def settle(self, part: Part, record_of: Callable[[Sequence[Part | None]], StepRecord]) -> Settled:
        """The step of all that told in time; raises NonFiniteLossError if one of them could not."""
        while not self._host.is_settled:
            self._take(self._board.receive(None))
        while (heard := self._board.receive(0)) is not None:
            self._take(heard)
        self._dismiss_others(len(part.coefficients))
        told = [None if data is None else Measured.decode(data) for data in self._host.parts()]
        self._compare(told)
        parts = [part, *(None if one is None else one.part for one in told)]
        seat = self._host.seat
        record = replace(record_of(parts), world=seat.count, epoch=seat.epoch)
        self._draws += seat.count
        return Settled(record, mean_loss(parts))

    def fail(self, error: NonFiniteLossError) -> None:
        """Ends the run of all members."""
        self.finish("not finite", str(error))

    def append(self, record: StepRecord, targets: list[Target]) -> None:
        """Writes a step to the journal, and then tells it."""
        self._journal.append(record, targets)
        self._note_targets()
        for send in self._host.advance(encode_record(record), self._seconds()):
            self._board.send(*send)

    def finish(self, kind: str, sentence: str = "") -> None:
        """Tells all members that the run is over, and why."""
        if self._ended:
            return
        self._ended = True
        for peer in self._host.peers:
            self._board.send(peer, Over(kind=kind, sentence=sentence))
            self._board.hang_up(peer)

    def close(self) -> None:
        """Ends all connections; members that heard of no end are told of a failure."""
        self.finish("failed", "the host of the team stopped with an error; what it said there tells more.")
        self._board.close()

    def _take(self, heard: Heard | None) -> None:
        if heard is None:
            return
        if heard.message is None:
            self._host.lose(heard.peer)
            return
        if isinstance(heard.message, Over) and heard.message.kind == "not finite":
            error = NonFiniteLossError(heard.message.sentence)
            self.fail(error)
            raise error
        for send in self._host.hear(heard.peer, heard.message):
            self._board.send(*send)
            if isinstance(send.message, Over):
                self._board.hang_up(send.peer)

    def _compare(self, told: Sequence[Measured | None]) -> None:
        steps = self._optimizer.steps_done
        if _is_due(steps, self._digest_every) and any(told):
            others = {number: one.digest for number, one in enumerate(told, 1) if one is not None and one.digest}
            try:
                require_agreement({0: digest_of(self._optimizer), **others}, steps, self._digest_every)
            except ValueError as error:
                self.finish("failed", str(error))
                raise

    def _dismiss_others(self, directions: int) -> None:
        """Lets members go that measure another number of directions, which no step could ever take in."""
        for peer in self._host.of_other_size(HEAD_BYTES + 2 * directions):
            sentence = (
                f"it measured another number of directions than the host, {directions}. Start it with the same `--batch` and "
                "settings of the optimizer."
            )
            self._board.send(peer, Over(kind="refused", sentence=sentence))
            self._board.hang_up(peer)
            self._host.lose(peer)

    def _note_targets(self) -> None:
        targets = self._optimizer.targets
        kept, shared = [one.index for one in targets], [one.index for one in targets if one.shared]
        self._host.targets = {"kept": kept, "shared": shared}


class MemberGather:
    """The `Gather` of a member, which takes the host's steps as its own.

    Args:
        board: of this process.
        host: the connection.
        optimizer: of this process, behind the steps it has.
        journal: of this process.
        facts: of its model, data and settings.
        records: of the steps it has.
        digest_every: steps between comparisons of the weights.
    """

    def __init__(
        self,
        board: Switchboard,
        host: int,
        optimizer: ZerothOrderSGD,
        journal: Steps,
        *,
        facts: Mapping[str, str],
        records: Sequence[StepRecord],
        digest_every: int,
    ) -> None:
        chain = NO_STEPS
        for record in records:
            chain = chain_after(chain, encode_record(record))
        self._member = Member(facts, len(records), chain)
        self._board = board
        self._host = host
        self._optimizer = optimizer
        self._journal = journal
        self._digest_every = digest_every
        self._draws = sum(record.world for record in records)

    @property
    def slot(self) -> Slot:
        """The place that the host gave."""
        seat = self._member.seat
        assert seat is not None, "a member measures only when it has a place"
        return Slot(number=seat.number, count=seat.count)

    def draw(self, step: int) -> int:
        """The number of the batch that this process takes in the coming step."""
        return self._draws + self.slot.number

    def catch_up(self) -> None:
        """Fetches and applies all steps that this process does not have; returns when it has a place.

        Raises:
            TeamOverError: the host refused this process, or is gone.
        """
        self._board.send(self._host, self._member.hello)
        while self._member.seat is None:
            for record in self._hear():
                if self._optimizer.steps_done == 0 and self._member.targets is not None:
                    self._optimizer.keep_targets(self._member.targets["kept"], self._member.targets["shared"])
                self._journal.append(record, self._optimizer.targets)
                self._optimizer.replay([record])
            if self._member.seat is None:
                self._board.send(self._host, Ready(steps=self._member.steps))

    def settle(self, part: Part, record_of: Callable[[Sequence[Part | None]], StepRecord]) -> Settled:
        """The step, as the host made it."""
        steps = self._optimizer.steps_done
        due = _is_due(steps, self._digest_every)
        told = Measured(part=part, digest=digest_of(self._optimizer) if due else None)
        self._board.send(self._host, Told(step=steps, data=told.encode()))
        while not (records := self._hear()):
            pass
        return Settled(records[0], torch.tensor(part.loss, dtype=torch.float64))

    def agree(self, signalled: bool, seconds: float) -> tuple[bool, float]:
        """For `Clock.agree`: a member goes by the seconds of its host, and leaves when it is asked to."""
        return signalled, self._member.seconds

    def fail(self, error: NonFiniteLossError) -> None:
        """Tells the host, which ends the run."""
        self._board.send(self._host, Over(kind="not finite", sentence=str(error)))

    def finish(self, kind: str, sentence: str = "") -> None:
        """Tells the host that this process leaves."""
        self._board.send(self._host, Over(kind="finished"))
        self._board.hang_up(self._host)

    def close(self) -> None:
        """Ends the connection."""
        self._board.close()

    def _hear(self) -> list[StepRecord]:
        """The next that the host says."""
        heard = self._board.receive(None)
        assert heard is not None, "it waits until something is said"
        if heard.message is None:
            raise TeamOverError(
                "lost",
                "the host of the team is gone, or the way to it. All steps so far are in this run's journal; the same command "
                "joins again when the host is back.",
            )
        records = self._member.hear(heard.message)
        if self._member.over is not None:
            raise TeamOverError(self._member.over.kind, self._member.over.sentence)
        found = [_decoded(record) for record in records]
        self._draws += sum(record.world for record in found)
        return found


def _decoded(data: bytes) -> StepRecord:
    record = decode(data[_RECORD_LENGTH:])
    if not isinstance(record, StepRecord):
        raise ValueError("the host sent what is no record of a step. Do both run the same version of featherlight?")
    return record


def _is_due(steps: int, every: int) -> bool:
    return steps > 0 and steps % every == 0
