"""Takes a run up again where it stopped, from its journal or its save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from featherlight.optim import RecordedOptimizer
from featherlight.trainer.experiment import Evaluation
from featherlight.trainer.journal import JournalContents, JournalWriter, read_journal
from featherlight.trainer.save import load_save, read_progress

if TYPE_CHECKING:
    from featherlight.trainer.run import Run


@dataclass(frozen=True, kw_only=True)
class TakenUp:
    """What an earlier part of a run left.

    Attributes:
        stage: in which it stopped.
        journal: its steps; None if it is saved instead.
    """

    stage: int
    journal: JournalContents | None


def take_up(run: Run) -> TakenUp:
    """Reads how far the earlier part came.

    Raises:
        ValueError: the journal or the save cannot be read, or the journal is of another base or other data.
    """
    if run.experiment.replay is None:
        progress = read_progress(run.directory.save)
        _check_origin(run, progress["origin"], run.experiment.origin)
        return TakenUp(stage=progress["stage"], journal=None)
    contents = read_journal(run.directory.journal)
    if contents.damage is not None:
        run.display.say(f"{contents.damage} The damaged part is kept beside it.")
    _check_origin(run, contents.header, run.experiment.replay.header)
    return TakenUp(stage=0, journal=contents)


def open_journal(run: Run, found: TakenUp | None) -> JournalWriter | None:
    """The journal of a new run, or of an earlier part, cut off behind its last intact record; None if it has none."""
    replay = run.experiment.replay
    if replay is None:
        return None
    return JournalWriter(
        run.directory.journal,
        header=replay.header,
        fitted=replay.fitted(),
        meter=run.meter,
        resume_at=None if found is None or found.journal is None else found.journal.intact_bytes,
    )


def restore_optimizer(run: Run, optimizer: Optimizer, found: TakenUp) -> None:
    """Brings model, optimizer, clock, counters, log and scores to the last step on disk.

    Raises:
        ValueError: the save is of another model, or other parameters are trained than were.
    """
    if found.journal is not None:
        assert isinstance(optimizer, RecordedOptimizer), "only an optimizer that can replay writes a journal"
        _replay(run, optimizer, found.journal)
        run.clock.step = len(found.journal.records)
    else:
        progress = load_save(run.directory.save, run.experiment.model, optimizer)
        run.clock.step, run.clock.seconds = progress["step"], progress["seconds"]
        run.steps_before, run.seconds_before = progress["steps_before"], progress["seconds_before"]
    run.log.truncate_after(run.steps)
    _read_log(run)
    run.clock.settle()
    run.display.say(f"resumed at step {run.steps:,}")


def load_fitted(model: nn.Module, contents: JournalContents) -> None:
    """Puts what the base does not contain into the model."""
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in contents.fitted.items():
            own[name].copy_(tensor)


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


def _replay(run: Run, optimizer: RecordedOptimizer, contents: JournalContents) -> None:
    load_fitted(run.experiment.model, contents)
    kept = contents.header["parameters"]
    kept_names = {target.name for target in contents.targets(run.experiment.model)}
    optimizer.keep_targets({entry["index"] for entry in kept}, {entry["index"] for entry in kept if entry["shared"]})
    if {target.name for target in optimizer.targets} != kept_names:
        raise ValueError(
            f"{run.directory.path} was started with other trained parameters than its config.toml now chooses. "
            "Restore the config."
        )
    optimizer.replay(contents.records)


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
