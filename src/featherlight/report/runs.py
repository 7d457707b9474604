"""The records that a run directory is read into."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, NonNegativeFloat, NonNegativeInt

from featherlight.report.sections import Section

Measured = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A measured float; JSON's null, which some writers put for a NaN, reads as NaN."""

CURRENT_VERSION = 1
"""The version of `summary.json` that is read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPoint:
    """One training step.

    Attributes:
        step: steps done, this one among them.
        loss: of this step; NaN where it was not finite.
        lr: learning rate of this step.
        forwards: example-forwards so far.
        seconds: spent in steps so far.
        tokens_per_second: over all steps so far; NaN where tokens are not counted.
    """

    step: NonNegativeInt
    loss: Measured
    lr: Measured
    forwards: NonNegativeInt
    seconds: NonNegativeFloat
    tokens_per_second: Measured = math.nan


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalPoint:
    """One evaluation on a split.

    Attributes:
        step: steps done before it.
        split: "valid", "test", "train" or another part of the data.
        loss: the mean loss; NaN where there is none.
        values: metrics by name.
        forwards: example-forwards of training so far.
        seconds: spent in steps so far.
    """

    step: NonNegativeInt
    split: str
    loss: Measured = math.nan
    values: Mapping[str, Measured] = field(default_factory=dict)
    forwards: NonNegativeInt
    seconds: NonNegativeFloat


@dataclass(frozen=True, kw_only=True, slots=True)
class EventPoint:
    """Something that happened once, such as a head start or a new stage.

    Attributes:
        step: steps done before it.
        name: for people.
        seconds: how long it took.
        loss: the mean loss after it; NaN where it was not measured.
        values: metrics after it, by name.
    """

    step: NonNegativeInt
    name: str
    seconds: NonNegativeFloat
    loss: Measured = math.nan
    values: Mapping[str, Measured] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """The metric before anything, at its best and at the end."""

    name: str
    start: Measured
    best: Measured
    last: Measured
    lower_is_better: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """The loss at the start and at the end."""

    start: Measured
    last: Measured


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of memory, None where not measured; `measured_by` says in words what took the peaks."""

    weights: NonNegativeInt
    inference_peak: NonNegativeInt | None = None
    training_peak: NonNegativeInt | None = None
    measured_by: str | None = None
    adamw_estimate: NonNegativeInt | None = None
    process_peak: NonNegativeInt | None = None

    @property
    def above_inference(self) -> int | None:
        """Bytes the training peak stands above the inference peak; negative where training took less."""
        if self.training_peak is None or self.inference_peak is None:
            return None
        return self.training_peak - self.inference_peak

    @property
    def peak(self) -> int | None:
        """The peak of the run: of training, else of the process, else of running the model."""
        peaks = (self.training_peak, self.process_peak, self.inference_peak)
        return next((peak for peak in peaks if peak is not None), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Counters:
    """What the run did, as counted by the code that did it."""

    example_forwards: NonNegativeInt = 0
    backward_passes: NonNegativeInt = 0
    tokens: NonNegativeInt = 0
    weight_passes: NonNegativeFloat = 0
    random_words: NonNegativeInt = 0
    bytes_written: NonNegativeInt = 0
    steps: NonNegativeInt
    seconds: NonNegativeFloat


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """What a run says of itself when it ends. What it does not say, or is damaged, is None.

    Attributes:
        version: of the format, `CURRENT_VERSION`.
        recipe: its name.
        title: for people.
        method: such as "zo".
        command: repeats the run.
        resume_command: carries the run on; None if it is finished.
        facts: texts by name, such as model and data.
        metric: the run's metric at the start, at its best and at the end.
        loss: at the start and at the end.
        memory: bytes.
        counters: the work done.
        journal_bytes: size of the journal.
        environment: versions and machine, by name.
        seed: of everything random.
        stopped: why it ended: "finished", "interrupted", "not finite" or "pruned"; "unknown" where it does not say.
        notes: sentences.
    """

    version: int = CURRENT_VERSION
    recipe: str = ""
    title: str = ""
    method: str | None = None
    command: str = ""
    resume_command: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    metric: Metric | None = None
    loss: Loss | None = None
    memory: Memory | None = None
    counters: Counters | None = None
    journal_bytes: NonNegativeInt | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    stopped: str = "unknown"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """A run directory as read. Where a resumed run went back, the later attempt stands.

    Attributes:
        path: of the directory.
        config: what `config.toml` says, nested; empty where it cannot be read.
        config_text: the same as it stands in the file.
        steps: rise in step.
        evals: as `steps`.
        events: as `steps`.
        summary: None while the run has never ended, or where it cannot be read.
        sections: what this kind of run adds to its page.
        summary_lost: whether there is a summary that cannot be read.
        torn: whether the last line of the metrics was incomplete, and is left out.
        going_on: whether a process still holds the run's lock.
        damage: a sentence for each file and line that could not be used.
    """

    path: Path
    config: Mapping[str, Any]
    config_text: str
    steps: tuple[StepPoint, ...]
    evals: tuple[EvalPoint, ...]
    events: tuple[EventPoint, ...]
    summary: RunSummary | None
    sections: tuple[Section, ...] = ()
    summary_lost: bool = False
    torn: bool = False
    going_on: bool = False
    damage: tuple[str, ...] = ()

    @property
    def last_step(self) -> int:
        """The last step that was recorded; 0 where none was."""
        return max([*(point.step for point in self.steps[-1:]), *(point.step for point in self.evals[-1:]), 0])

    @property
    def outcome(self) -> RunSummary | None:
        """The summary, unless the run has gone on since it was written: then None, as for a run that never ended."""
        summary = self.summary
        if summary is None or (summary.counters and self.last_step > summary.counters.steps):
            return None
        return summary

    @property
    def still_going(self) -> bool:
        """Whether the run has not ended and a process is at work on it."""
        return self.going_on and self.outcome is None

    @property
    def title(self) -> str:
        """What the run calls itself, else its recipe, else its folder."""
        recipe = self.config.get("recipe")
        told = self.summary.title if self.summary else ""
        return told or (recipe if isinstance(recipe, str) else "") or self.path.name

    @property
    def method(self) -> str | None:
        """The training method, from the summary or the configuration."""
        method = self.summary.method if self.summary else self.config.get("method")
        return method if isinstance(method, str) else None

    @property
    def seed(self) -> int | None:
        """The seed, from the configuration or the summary."""
        seed = self.config.get("seed", self.summary.seed if self.summary else None)
        return seed if isinstance(seed, int) else None
