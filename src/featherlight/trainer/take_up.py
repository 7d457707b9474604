"""Takes a run up again where it stopped, from its journal or its save."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from featherlight.optim import RecordedOptimizer
from featherlight.trainer.experiment import Evaluation
from featherlight.trainer.journal import JournalContents, JournalWriter, read_journal, records_with_checks
from featherlight.trainer.replay import load_fitted
from featherlight.trainer.save import load_save, read_progress
from featherlight.trainer.saves import newest_save

if TYPE_CHECKING:
    from featherlight.trainer.run import Run

REPLAY_SECONDS = 20.0
"""A replay that takes longer is saved so often, so that a run that is killed again and again still comes to its end."""


@dataclass(frozen=True, kw_only=True)
class TakenUp:
    """What an earlier part of a run left.

    Attributes:
        stage: in which it stopped.
        journal: its steps; None if it is saved instead.
        save: the newest that is sound; None replays the journal from its start.
    """

    stage: int
    journal: JournalContents | None
    save: Path | None


def take_up(run: Run) -> TakenUp:
    """Reads how far the earlier part came.

    Raises:
        ValueError: the journal or the save cannot be read, or the journal is of another base or other data.
    """
    if run.experiment.replay is None:
        save = newest_save(run.directory.saves, run.display.say)
        assert save is not None, "a run without a journal is taken up only where it has a save"
        progress = read_progress(save)
        _check_origin(run, progress["origin"], run.experiment.origin)
        return TakenUp(stage=progress["stage"], journal=None, save=save)
    contents = read_journal(run.directory.journal)
    if contents.damage is not None:
        run.display.say(f"{contents.damage} The damaged part is kept beside it.")
    _check_origin(run, contents.header, run.experiment.replay.header)
    return TakenUp(stage=0, journal=contents, save=_save_on_the_way(run, contents))


def open_journal(run: Run, found: TakenUp | None) -> JournalWriter | None:
    """The journal of a new run, or of an earlier part, cut off behind its last intact record; None where none is kept."""
    replay = run.experiment.replay
    if replay is None or not run.world.is_first:
        return None
    return JournalWriter(
        run.directory.journal,
        header=replay.header,
        fitted=replay.fitted(),
        meter=run.meter,
        resume=None if found is None else found.journal,
    )


def restore_optimizer(run: Run, optimizer: Optimizer, found: TakenUp) -> None:
    """Brings model, optimizer, clock, counters, log and scores to the last step on disk.

    Raises:
        ValueError: the save is of another model, or other parameters are trained than were.
    """
    if found.journal is not None:
        assert isinstance(optimizer, RecordedOptimizer), "only an optimizer that can replay writes a journal"
        _replay(run, optimizer, found.journal, found.save)
        run.clock.step = len(found.journal.records)
    else:
        assert found.save is not None, "what has no journal is taken up from a save"
        progress = load_save(found.save, run.experiment.model, optimizer)
        run.clock.step, run.clock.seconds = progress["step"], progress["seconds"]
        run.steps_before, run.seconds_before = progress["steps_before"], progress["seconds_before"]
    run.log.truncate_after(run.steps)
    _read_log(run)
    run.clock.settle()
    run.display.say(f"resumed at step {run.steps:,}")


def check_base(expected: str, digest: str, what: str) -> None:
    """Raises ValueError if a journal was made on other weights."""
    if expected != digest:
        raise ValueError(
            f"{what} was made on another base model (its digest is {expected[:12]}..., this one's is {digest[:12]}...), so "
            "replaying it would give other weights. Pass the base model it was made on."
        )


def _check_origin(run: Run, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ValueError if base weights or data are not those the run was started with."""
    if "base" in now:
        check_base(before["base"], now["base"], str(run.directory.path))
    if before.get("data") != now.get("data"):
        raise ValueError(
            f"the training rows are not those that {run.directory.path} was started with, so the run cannot go on. Restore "
            "the file, or start a new run."
        )


def _save_on_the_way(run: Run, contents: JournalContents) -> Path | None:
    """The newest save if it was made on the way of these very steps; a journal alone is enough, so no other is needed."""
    with suppress(ValueError):
        save = newest_save(run.directory.saves, run.display.say)
        if save is not None:
            progress = read_progress(save)
            step = progress["step"]
            if 0 < step <= len(contents.records) and contents.checksums[step - 1] == progress["journal"]:
                return save
    return None


def _replay(run: Run, optimizer: RecordedOptimizer, contents: JournalContents, save: Path | None) -> None:
    load_fitted(run.experiment.model, contents)
    kept = contents.header["parameters"]
    kept_names = {target.name for target in contents.targets(run.experiment.model)}
    optimizer.keep_targets({entry["index"] for entry in kept}, {entry["index"] for entry in kept if entry["shared"]})
    if {target.name for target in optimizer.targets} != kept_names:
        raise ValueError(
            f"{run.directory.path} was started with other trained parameters than its config.toml now chooses. "
            "Restore the config."
        )
    start = 0 if save is None else load_save(save, run.experiment.model, optimizer)["step"]
    parameters = {target.name: target.parameter for target in optimizer.targets}
    chunks = records_with_checks(contents, parameters, start=start)
    saved_at = time.monotonic()
    for chunk in run.display.track(chunks, "replaying", len(contents.ends_of_runs(start, len(contents.records)))):
        optimizer.replay(chunk)
        if time.monotonic() - saved_at > REPLAY_SECONDS and run.can_save and run.world.is_first:
            done = chunk[-1].step + 1
            run.save(optimizer, step=done, journal=contents.checksums[done - 1])
            saved_at = time.monotonic()


def _read_log(run: Run) -> None:
    """Counters, seconds and scores of the earlier part."""
    own_split = None
    for line in run.log.lines():
        if line["kind"] == "step":
            run.meter.set(line.get("counters", {}))
            run.clock.seconds = line.get("seconds", 0.0) - run.seconds_before
        elif "values" in line:
            own_split = own_split or line.get("split")
            if line["kind"] == "event" or line.get("split") == own_split:
                run.scores.add(Evaluation(values=line["values"], loss=line.get("loss")))
