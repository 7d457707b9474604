"""From base weights and a journal to the trained weights, without the data."""

import torch
from torch import nn

from featherlight.meter import Meter
from featherlight.optim.zeroth_order import StepRecord, apply_updates
from featherlight.trainer.journal import JournalContents, records_with_checks
from featherlight.trainer.progress import Tracker, silent


def replay_journal(
    contents: JournalContents, model: nn.Module, *, steps: int | None = None, track: Tracker = silent
) -> None:
    """Brings a model from its base weights to those after the steps of a journal, in place.

    Args:
        contents: of the journal.
        model: with the weights the journal was made on; what the base does not contain is put in.
        steps: how many are replayed; None takes all.
        track: shows how far it is.

    Raises:
        ValueError: there are not so many steps, the model is another, or its weights come out otherwise than the journal
            noted.
    """
    stop = contents.last_step(steps)
    load_fitted(model, contents)
    targets = contents.targets(model)
    parameters = {target.name: target.parameter for target in targets}
    earlier: dict[int, StepRecord] = {}
    chunks = records_with_checks(contents, parameters, stop=stop)
    for chunk in track(chunks, "replaying", len(contents.ends_of_runs(0, stop))):
        apply_updates(targets, chunk, meter=Meter(), earlier=earlier)
        earlier |= {record.step: record for record in chunk}


def load_fitted(model: nn.Module, contents: JournalContents) -> None:
    """Puts what the base does not contain into the model."""
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in contents.fitted.items():
            own[name].copy_(tensor)
