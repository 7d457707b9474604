"""Who measures the steps of a forward-only run: this process alone, a fixed group, or a team that comes and goes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch.optim import Optimizer

from featherlight.objective import NonFiniteLossError
from featherlight.optim import ZerothOrderSGD
from featherlight.optim.zeroth_order import targets_of
from featherlight.trainer.digests import weights_digest
from featherlight.trainer.experiment import Replay, Stage
from featherlight.trainer.journal import JournalWriter
from featherlight.trainer.journal.record_format import FORMAT
from featherlight.trainer.take_up import TakenUp
from featherlight.trainer.team import (
    Alone,
    HostGather,
    Lockstep,
    Meeting,
    MemberGather,
    Switchboard,
    TeamOverError,
    listen,
)
from featherlight.trainer.team.messages import VERSION

if TYPE_CHECKING:
    from featherlight.trainer.run import Run

_OWN = "config"


def enlist(
    run: Run, stage: Stage, optimizer: Optimizer, found: TakenUp | None, journal: JournalWriter | None
) -> Lockstep:
    """Lets the others of a run, if there are any, measure the steps of a stage together with this process.

    A member of a team comes back with all steps that the team has made.

    Raises:
        ValueError: the method cannot be shared, or the host of the team refused this process.
    """
    records = [] if found is None or found.journal is None else found.journal.records
    meeting = run.world.meeting
    if meeting is not None:
        return _meet(run, stage, optimizer, found, journal, meeting)
    draws = sum(record.world for record in records)
    epoch = records[-1].epoch + 1 if records else 0
    given = {"seconds": run.clock.seconds, "epoch": epoch, "draws": draws, "digest_every": stage.digest_every}
    together = run.world.enlist(optimizer, **given)
    if together is None:
        return Alone(ahead=draws - len(records))
    run.clock.agree = together.pace.agree
    return together


@contextmanager
def heeding(run: Run) -> Iterator[None]:
    """The steps of a member end here when its team does."""
    try:
        yield
    except TeamOverError as over:
        if over.kind == "not finite":
            raise NonFiniteLossError(over.sentence) from None
        if over.kind != "finished":
            sentence = over.sentence or f"the team was {over.kind}; the same command joins again."
            run.clock.interrupted = True
            run.notes.append(sentence)
            run.display.say(sentence)


def _meet(
    run: Run,
    stage: Stage,
    optimizer: Optimizer,
    found: TakenUp | None,
    journal: JournalWriter | None,
    meeting: Meeting,
) -> Lockstep:
    replay = run.experiment.replay
    assert isinstance(optimizer, ZerothOrderSGD), "others were refused before the run began"
    assert replay is not None
    assert journal is not None
    records = [] if found is None or found.journal is None else found.journal.records
    fitted = replay.fitted() if found is None or found.journal is None else found.journal.fitted
    facts = _facts(optimizer, replay, weights_digest(fitted)) | {"digest_every": str(stage.digest_every)}
    given = {"facts": facts, "records": records, "digest_every": stage.digest_every}
    if meeting.hosts:
        return _host(run, optimizer, journal, meeting, given)
    return _join(run, optimizer, journal, meeting, given)


def _host(run: Run, optimizer: ZerothOrderSGD, journal: JournalWriter, meeting: Meeting, given: dict) -> HostGather:
    board = Switchboard(listen(meeting.host, meeting.port))
    gather = HostGather(board, optimizer, journal, seconds=lambda: run.clock.seconds, **given)
    optimizer.gather, optimizer.journal = gather, gather
    if meeting.members:
        run.display.say(f"waiting for {meeting.members} members at port {meeting.port}")
        gather.wait_for(meeting.members)
    return gather


def _join(run: Run, optimizer: ZerothOrderSGD, journal: JournalWriter, meeting: Meeting, given: dict) -> MemberGather:
    board = Switchboard()
    try:
        host = board.dial(meeting.host, meeting.port)
    except OSError as error:
        board.close()
        raise ValueError(
            f"nobody answers at {meeting.host}:{meeting.port} ({error}). Start the host of the team first, with `--team "
            f"{meeting.port}`, and check that this machine can reach it."
        ) from None
    journal.flushes = False
    gather = MemberGather(board, host, optimizer, journal, **given)
    before = optimizer.steps_done
    try:
        gather.catch_up()
    except BaseException as error:
        gather.close()
        if isinstance(error, TeamOverError):
            why = error.sentence or f"its run was {error.kind} meanwhile."
            raise ValueError(f"this process was not let into the team: {why}") from None
        raise
    optimizer.gather = gather
    run.clock.step = optimizer.steps_done
    run.clock.agree = gather.agree
    run.display.say(f"joined the team at step {run.steps:,}, {optimizer.steps_done - before:,} steps fetched")
    return gather


def _facts(optimizer: ZerothOrderSGD, replay: Replay, fitted: str) -> dict[str, str]:
    """What all of a team must share, by names for people."""
    header = {name: value for name, value in replay.header.items() if name != _OWN}
    chosen = targets_of(optimizer.model, optimizer.param_groups)
    trained = [[t.name, list(t.parameter.shape), str(t.parameter.dtype), t.group, t.scale] for t in chosen]
    evaluator = optimizer.evaluator
    settings = [evaluator.family, evaluator.sigma, evaluator.difference, evaluator.shaping, optimizer.normalize]
    return {
        **{name: value if isinstance(value, str) else json.dumps(value) for name, value in header.items()},
        "journal format": f"{FORMAT}",
        "team format": f"{VERSION}",
        "fitted tensors": fitted,
        "trained parameters": hashlib.sha256(json.dumps(trained).encode()).hexdigest(),
        "optimizer": f"{settings}, seed {optimizer.seed}",
    }
