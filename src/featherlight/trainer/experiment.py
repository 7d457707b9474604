"""What a kind of run hands to the one run procedure: its model, its stages, how it is scored and what it shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from featherlight.meter import Meter
from featherlight.objective import Objective
from featherlight.optim.zeroth_order import Journal
from featherlight.trainer.loop import Budget
from featherlight.trainer.progress import Display
from featherlight.transforms import ModelTransform

if TYPE_CHECKING:
    from featherlight.report import Section

Schedule = Callable[[float], float]
"""From the share of the budget that is used up, in [0, 1], to a factor of the learning rate."""

SCHEDULES: Mapping[str, Schedule] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: 0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item()),
}
"""Schedules by the names that configs use: "constant" is 1 throughout, "linear" and "cosine" fall from 1 to 0."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the model is worth on one split.

    Attributes:
        values: metrics by name.
        loss: the mean loss, if there is one.
        split: "valid", "test" or another part of the data.
    """

    values: Mapping[str, float]
    loss: float | None = None
    split: str = "valid"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Steps with one optimizer on one kind of objective. Most runs have one stage.

    Attributes:
        optimizer: makes the optimizer; is handed the journal (None where the run is saved instead) and the meter.
        objective: of a step of the stage, by its number from 0; adds to the meter.
        budget: when the stage ends.
        name: for people.
        schedule: of the learning rate.
        transforms: what the model is put through: prepared before the optimizer is made, moved along before each step, and
            baked in at the end of the stage. A run is journalled only without any.
        training: whether the model is in training mode during steps.
        digest_every: steps between comparisons of the weights where several processes train without sharing gradients.
        measured: whether a step, by its number, is one to measure memory on. On a CPU the profiler notes each operation of
            it, which a step of very many forward passes has too many of.
        prepare: brings the model into the shape of this stage; runs on every start, and must come to the same each time.
        begin: work before the first step, whose result is in the model. It is not done again when a run is taken up. What
            it returns, if anything, is logged under its name.
    """

    optimizer: Callable[[Journal | None, Meter], Optimizer]
    objective: Callable[[int, Meter], Objective]
    budget: Budget
    name: str = "training"
    schedule: Schedule = SCHEDULES["constant"]
    transforms: Sequence[ModelTransform] = ()
    training: bool = True
    digest_every: int = 200
    measured: Callable[[int], bool] = lambda step: True
    prepare: Callable[[], None] = lambda: None
    begin: Callable[[], str | None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a journal needs to stand for a run: facts that are checked when it is taken up, and tensors of the start.

    Attributes:
        header: digests of base and data, and what else a replay needs; JSON.
        fitted: tensors by name that the base does not contain, as they are before the first step.
    """

    header: Mapping[str, Any]
    fitted: Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run, ready to start.

    Attributes:
        model: what is trained. Whatever a save must keep is a parameter or a buffer of it.
        stages: one after the other.
        evaluate: scores the model as it is. It is called in evaluation mode and without gradients; the first metric of the
            first split is the run's own.
        title: for people, such as "zo on reviews.jsonl".
        lower_is_better: whether small values of the run's metric are good.
        evaluations: how often it is scored, besides before the first step and at the end.
        method: name of the method, if the run compares methods.
        facts: what people want to know first, such as model and data.
        write_model: writes the trained model as a directory.
        sections: figures and tables for the report, made when the run ends.
        replay: lets a journal stand for the run; None saves weights and optimizer instead.
        origin: digests of base weights and data; a run that is saved is not taken up with others.
        config: with every choice made that was left open (a guessed column, a default rate); None if none was.
        timeline: bytes that were predicted for the first steps, after each change, for the report beside what is measured.
    """

    model: nn.Module
    stages: Sequence[Stage]
    evaluate: Callable[[], Sequence[Evaluation]]
    title: str
    lower_is_better: bool = False
    evaluations: int = 10
    method: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    write_model: Callable[[Path], None] | None = None
    sections: Callable[[], Sequence[Section]] = tuple
    replay: Replay | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    config: Any = None
    timeline: Sequence[int] = ()

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("`stages` is empty, so there would be nothing to train. Give at least one Stage.")
        if self.replay is not None and len(self.stages) > 1:
            raise ValueError("a journal stands for one stage; leave `replay` None for a run of several.")
        if self.replay is not None and any(stage.transforms for stage in self.stages):
            raise ValueError(
                "a journal does not hold what transforms do to a model; leave `replay` None for a run with any."
            )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(iter((*self.model.parameters(), *self.model.buffers())), torch.zeros(())).device


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """What an experiment is put together with.

    Attributes:
        scratch: a folder for large temporary files, removed when the run stops.
        display: where people look.
    """

    scratch: Path
    display: Display
