"""Takes a run up again where it stopped, from its journal or its save."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import torch
from torch.optim import Optimizer

from featherlight.optim import ZerothOrderSGD
from featherlight.recipes.finetune.rundir import FoundState
from featherlight.trainer import JournalContents, JournalWriter, load_save

if TYPE_CHECKING:
    from featherlight.recipes.finetune.run import Finetune


def open_journal(run: Finetune, found: FoundState | None) -> JournalWriter:
    """The journal of a new run, or of an earlier part, cut off behind its last intact record."""
    contents = None if found is None else found.journal
    if contents is not None and contents.damage is not None:
        run.say(f"{contents.damage} The damaged part is kept beside it.")
    fresh = dict(run.model.named_parameters())
    header = {
        "base": run.problem.base_digest,
        "data": run.problem.data_digest(),
        "num_outputs": None if run.problem.loaded.head is None else run.problem.loaded.head.out_features,
        "lora": run.config.lora,
        "dtype": run.config.dtype,
        "seed": run.config.seed,
        "labels": None if run.problem.labels is None else list(run.problem.labels.names),
        "config": run.config.to_toml(),
    }
    return JournalWriter(
        run.directory.journal,
        header=header,
        fitted={name: fresh[name] for name in fitted_names(run)},
        meter=run.meter,
        resume_at=None if contents is None else contents.intact_bytes,
    )


def fitted_names(run: Finetune) -> list[str]:
    """Parameters that the base does not contain as they are before the first step: fresh ones and a fitted head."""
    head = run.problem.loaded.head
    of_head = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    fresh = run.problem.loaded.fresh
    return [name for name, p in run.model.named_parameters() if name in fresh or id(p) in of_head]


def restore(run: Finetune, optimizer: Optimizer, found: FoundState) -> None:
    """Brings model, optimizer, clock and log to the last step on disk.

    Raises:
        ValueError: the journal is of another base model or other data, or the save is of another model.
    """
    if found.journal is not None:
        assert isinstance(optimizer, ZerothOrderSGD)
        _check_origin(run, found.journal)
        load_fitted(run.model, found.journal)
        kept = found.journal.header["parameters"]
        kept_names = {target.name for target in found.journal.targets(run.model)}
        optimizer.keep_targets(
            {entry["index"] for entry in kept}, {entry["index"] for entry in kept if entry["shared"]}
        )
        if {target.name for target in optimizer.targets} != kept_names:
            raise ValueError(
                f"{run.directory.path} was started with other trained parameters than its config.toml now chooses. "
                "Restore the config."
            )
        optimizer.replay(found.journal.records)
        run.clock.step = len(found.journal.records)
    elif found.save is not None:
        run.clock.step = load_save(found.save, run.model, optimizer)["step"]
    run.log.truncate_after(run.clock.step)
    _read_log(run)
    run.say(f"resumed at step {run.clock.step:,}")


def load_fitted(model: torch.nn.Module, contents: JournalContents) -> None:
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


def _check_origin(run: Finetune, contents: JournalContents) -> None:
    check_base(contents.header["base"], run.problem.base_digest, str(run.directory.journal))
    if contents.header["data"] != run.problem.data_digest():
        raise ValueError(
            f"the training rows are not those that {run.directory.path} was started with, so the run cannot go on. Restore "
            "the file, or start a new run."
        )


def _read_log(run: Finetune) -> None:
    """Seconds, forwards and scores of the earlier part."""
    for line in run.directory.metrics.read_text().splitlines():
        entry = json.loads(line)
        if entry["kind"] == "step":
            run.clock.seconds = entry["seconds"]
            run.meter.example_forwards = max(run.meter.example_forwards, entry["forwards"])
        else:
            run.scores.add(entry["kind"], _number(entry["value"]), _number(entry["loss"]))


def _number(value: float | None) -> float:
    return math.nan if value is None else value
