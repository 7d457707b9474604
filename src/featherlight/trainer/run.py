"""One run, whatever is trained: begin or take up, steps until the budget is used up, evaluations, and what is left on disk."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from featherlight.functional import QuantizedTensor
from featherlight.meter import AllocationPeak, Meter, allocation_peak
from featherlight.objective import NonFiniteLossError, Objective, Team
from featherlight.optim.first_order import adopt_evaluation_weights, evaluation_weights
from featherlight.trainer.distributed import World, shared
from featherlight.trainer.enlisting import enlist, heeding
from featherlight.trainer.evaluations import Evaluations
from featherlight.trainer.experiment import Evaluation, Experiment, Stage
from featherlight.trainer.journal import JournalWriter
from featherlight.trainer.loop import Callback, Clock, StepInfo, fit
from featherlight.trainer.manifest import replace_directory, write_manifest
from featherlight.trainer.memory import MemoryUse, measure_memory
from featherlight.trainer.memory_timeline import memory_timeline
from featherlight.trainer.metrics import Listener, MetricsLog
from featherlight.trainer.model_card import write_model_card
from featherlight.trainer.progress import Display, said_warnings
from featherlight.trainer.run_directory import RunDirectory
from featherlight.trainer.saves import keep_save, require_room
from featherlight.trainer.scores import Scores
from featherlight.trainer.summary import Identity, write_summary
from featherlight.trainer.take_up import TakenUp, open_journal, restore_optimizer, take_up
from featherlight.transforms import TransformStack

_PROFILED_STEPS = 2
_NORM_BATCHES = 32

Judge = Callable[[float, float], bool]
"""From the share of the run's budget that is used up, in (0, 1), and its metric there to whether it is to go on."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """How a run ended.

    Attributes:
        steps: done, over all stages.
        seconds: spent in them.
        scores: over the run.
        stopped: "finished", "interrupted", "pruned" by its judge, or "not finite", which `error` then explains.
    """

    steps: int
    seconds: float
    scores: Scores
    stopped: str
    error: str | None


@dataclass(kw_only=True)
class Run:
    """An experiment on its way.

    Attributes:
        experiment: what is run.
        directory: where everything goes.
        identity: recipe, seed and command, for the summary.
        display: where people look.
        listeners: are handed every line of the metrics.
        save_minutes: minutes of steps between saves, for what has no journal.
        world: the processes that train together; a single one by default.
        judge: is asked after each evaluation on the way, and may end the run there; None lets it go on.
        meter: counters of the work done, over all parts of a run that was taken up.
        scores: one for each evaluation so far, that before the first step included.
        log: writes the metrics; open while `run` is.
        notes: sentences for the summary.
        steps_before: steps done in earlier stages.
        seconds_before: seconds spent in steps of earlier stages.
        clock: how far the present stage is.
        stage: number of the present stage, from 0.
        pruned: whether the judge ended it.
        optimizer: of the stage whose steps are being done; None between stages.
    """

    experiment: Experiment
    directory: RunDirectory
    identity: Identity
    display: Display
    listeners: Sequence[Listener] = ()
    save_minutes: float = 10.0
    judge: Judge | None = None
    world: World = field(default_factory=World)
    meter: Meter = field(default_factory=Meter)
    scores: Scores = field(init=False)
    log: MetricsLog = field(init=False)
    notes: list[str] = field(default_factory=list)
    steps_before: int = 0
    seconds_before: float = 0.0
    clock: Clock = field(init=False)
    stage: int = 0
    pruned: bool = False
    optimizer: Optimizer | None = None

    def __post_init__(self) -> None:
        self.scores = Scores(lower_is_better=self.experiment.lower_is_better)
        self.clock = self._clock(self.experiment.stages[0])

    def run(self) -> Finished:
        """Runs all stages from the start, or from where an earlier part was stopped.

        Raises:
            ValueError: what was left cannot be taken up.
        """
        log = MetricsLog(self.world.metrics(self.directory), self.listeners, self.display.say)
        with closing(log) as self.log, said_warnings(self.display, self.notes):
            return self._run()

    @property
    def steps(self) -> int:
        """Steps done, over all stages."""
        return self.steps_before + self.clock.step

    @property
    def seconds(self) -> float:
        """Seconds spent in steps, over all stages."""
        return self.seconds_before + self.clock.seconds

    def _run(self) -> Finished:
        found = take_up(self) if self.directory.holds_steps else None
        if found is None:
            if self.directory.resumed:
                self.display.say("nothing was saved yet, so the run starts again from step 0")
            self.log.truncate_after(-1)
            self.evaluate()
        memory: MemoryUse | None = None
        stopped, error = "finished", None
        try:
            for number, stage in enumerate(self.experiment.stages):
                stage.prepare()
                if found is not None and number < found.stage:
                    continue
                self.stage = number
                memory = self._run_stage(stage, found if found is not None and number == found.stage else None, memory)
                is_last = stage is self.experiment.stages[-1]
                if self.clock.interrupted and not (is_last and self.clock.progress >= 1):
                    stopped = "pruned" if self.pruned else "interrupted"
                    break
        except NonFiniteLossError as not_finite:
            stopped, error = "not finite", str(not_finite)
            self.notes.append(error)
        with (
            suppress(NonFiniteLossError) if error else nullcontext()
        ):  # what ended the run may keep it from being scored
            self.evaluate()
        if self.world.is_first:
            self._leave(memory, stopped)
        return Finished(steps=self.steps, seconds=self.seconds, scores=self.scores, stopped=stopped, error=error)

    def _run_stage(self, stage: Stage, found: TakenUp | None, memory: MemoryUse | None) -> MemoryUse:
        """The steps of one stage, up to its end or an interrupt."""
        if found is None:
            self.steps_before, self.seconds_before = self.steps, self.seconds
        self.clock = self._clock(stage)
        if found is None:
            self._begin(stage)
        transforms = TransformStack(stage.transforms)
        transforms.prepare(self.experiment.model)
        journal = open_journal(self, found)
        alone = self.experiment.replay is not None
        with (
            nullcontext() if journal is None else closing(journal),
            self.world.share(self.experiment.model, forward_only=alone) as team,
        ):
            optimizer = stage.optimizer(journal, self.meter)
            self.world.check_optimizer(optimizer)
            if found is not None:
                restore_optimizer(self, optimizer, found)
            lockstep = enlist(self, stage, optimizer, found, journal)
            scheduler = LambdaLR(optimizer, lambda _: stage.schedule(self.clock.progress))
            memory = memory if memory is not None else self._measure_before(stage, team)
            self.experiment.model.train(stage.training)
            self.optimizer = optimizer

            def objective(step: int) -> Objective:
                return shared(stage.objective(lockstep.draw(step), self.meter), team)

            try:
                memory = self._fit(objective, optimizer, scheduler, journal, memory)
                ended_early = self.clock.interrupted and self.clock.progress < 1
                lockstep.finish("interrupted" if ended_early else "finished")
                adopt_evaluation_weights(optimizer, model=self.experiment.model, passes=self._passes())
                transforms.convert(self.experiment.model)
                return memory
            except NonFiniteLossError:  # what is left is written all the same
                transforms.convert(self.experiment.model)
                raise
            finally:
                lockstep.close()
                self.optimizer = None

    def _measure_before(self, stage: Stage, team: Team | None) -> MemoryUse:
        """What weights and a forward pass take."""
        probes = [shared(stage.objective(step, Meter()), team) for step in _measured(stage, 0)[:1]]
        return measure_memory(self.experiment.model, *probes)

    def _passes(self) -> Iterator[Callable[[], object]]:
        """Forward passes over some batches of the stage, for BatchNorm statistics of averaged weights."""
        stage = self.experiment.stages[self.stage]
        return (stage.objective(step, Meter()).value for step in range(_NORM_BATCHES))

    def _clock(self, stage: Stage) -> Clock:
        return Clock(budget=stage.budget, agree=self.world.agree if self.world.size > 1 else None)

    def _begin(self, stage: Stage) -> None:
        began = time.perf_counter()
        what = stage.begin()
        if what is None:
            return
        seconds = time.perf_counter() - began
        primary = self._score()[0]
        self.log.write("event", step=self.steps, name=what, seconds=seconds, loss=primary.loss, values=primary.values)
        self.display.say(f"{what} in {seconds:.1f} s: {self.scores.text()}")

    def _fit(
        self,
        objective: Callable[[int], Objective],
        optimizer: Optimizer,
        scheduler: LambdaLR,
        journal: JournalWriter | None,
        memory: MemoryUse,
    ) -> MemoryUse:
        with heeding(self), self.display.watch(self.meter, self.scores.text) as watcher:
            callbacks: list[Callback] = [self, watcher]
            stage = self.experiment.stages[self.stage]
            update = partial(TransformStack(stage.transforms).update, self.experiment.model)
            settings = {"clock": self.clock, "scheduler": scheduler, "update": update, "callbacks": callbacks}
            go_on = partial(fit, optimizer, objective, **settings)
            measured = _measured(stage, self.clock.step)
            if memory.training_peak is None and measured:
                go_on(until_step=measured[0])
                if self.clock.progress < 1 and not self.clock.interrupted:
                    with self._peak() as peak:
                        go_on(until_step=measured[-1] + 1)
                    memory = memory.with_training(peak)
            callbacks.append(Evaluations(self, optimizer, saves=self.experiment.replay is None))
            go_on()
        if self.experiment.replay is None:
            self.save(optimizer)
        elif journal is not None:
            journal.note_state(self.clock.step)
        return memory

    def _peak(self) -> AbstractContextManager[AllocationPeak]:
        """The peak of process 0; the others' is not looked at."""
        return allocation_peak(self.experiment.device) if self.world.is_first else nullcontext(AllocationPeak())

    def on_step(self, info: StepInfo) -> None:
        """Logs a step."""
        speed = {"tokens_per_second": self.meter.tokens / max(self.seconds, 1e-9)} if self.meter.tokens else {}
        self.log.write(
            "step",
            step=self.steps,
            loss=info.loss,
            lr=info.lr,
            forwards=self.meter.example_forwards,
            seconds=self.seconds,
            counters=self.meter.as_dict(),
            **speed,
        )

    @property
    def can_save(self) -> bool:
        """Whether the weights are plain tensors, which a file can hold."""
        return not any(isinstance(parameter.data, QuantizedTensor) for parameter in self.experiment.model.parameters())

    def save(self, optimizer: Optimizer, *, step: int | None = None, journal: int | None = None) -> None:
        """Saves weights and optimizer state.

        Args:
            optimizer: of the present stage.
            step: of the stage, if it is not the clock's.
            journal: checksum of the journal there, for a run that has one; only process 0 saves it.
        """
        progress = {
            "stage": self.stage,
            "step": self.clock.step if step is None else step,
            "journal": journal,
            "seconds": self.clock.seconds,
            "steps_before": self.steps_before,
            "seconds_before": self.seconds_before,
            "counters": self.meter.as_dict(),
            "origin": dict(self.experiment.origin),
        }
        model, everything, world = self.experiment.model, len(self.experiment.stages) > 1, self.world
        folder, given = self.directory.saves, {"meter": self.meter, "everything": everything, "writes": world.is_first}
        if journal is not None:
            keep_save(folder, model, optimizer, progress, **given)
            return
        self._on_disk(lambda: require_room(folder, model, optimizer, everything=everything))
        self._on_disk(lambda: keep_save(folder, model, optimizer, progress, **given))

    def _on_disk(self, action: Callable[[], None]) -> None:
        """Does something on all processes; what the system refuses to the first ends all of them."""
        error = None
        try:
            action()
        except OSError as refused:
            error = refused
        self.world.all_refused(error)

    def evaluate(self) -> None:
        """Scores the model and logs it."""
        for one in self._score():
            self.log.write(
                "eval",
                step=self.steps,
                split=one.split,
                loss=one.loss,
                values=one.values,
                forwards=self.meter.example_forwards,
                seconds=self.seconds,
            )

    def ask_judge(self) -> None:
        """Ends the run after this step if its judge says so."""
        used = (self.stage + self.clock.progress) / len(self.experiment.stages)
        if self.judge is not None and not self.clock.interrupted and not self.judge(used, self.scores.values[-1]):
            self.pruned = self.clock.interrupted = True

    def _score(self) -> Sequence[Evaluation]:
        model = self.experiment.model
        training = model.training
        model.eval()
        with torch.no_grad(), evaluation_weights(self.optimizer, model=model, passes=self._passes()):
            found = self.experiment.evaluate()
        model.train(training)
        self.scores.add(found[0])
        return found

    def _leave(self, memory: MemoryUse | None, stopped: str) -> None:
        from featherlight.report import read_run, write_report, write_sections  # takes 0.3 s

        if (write_model := self.experiment.write_model) is not None:

            def fill(folder: Path) -> None:
                write_model(folder)
                write_model_card(self, folder)

            replace_directory(self.directory.model, fill)
        timeline = memory_timeline(self.experiment.timeline, () if memory is None else memory.curve)
        write_sections(self.directory.sections, [*self.experiment.sections(), *timeline])
        self.log.flush()
        write_summary(self, memory, stopped)
        if stopped == "finished":
            shutil.rmtree(self.directory.saves, ignore_errors=True)
            write_manifest(self.directory.path, self.directory.lasting_files)
        write_report([read_run(self.directory.path)], self.directory.report)


def _measured(stage: Stage, step: int) -> list[int]:
    """Those of the next steps whose memory is measured."""
    return [number for number in range(step, step + _PROFILED_STEPS) if stage.measured(number)]
