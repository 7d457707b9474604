"""A fine-tune from config to run directory: head start, steps, evaluations, and what is left on disk."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from featherlight.data import IndexPermutation
from featherlight.meter import Meter, allocation_peak
from featherlight.objective import Batch, BatchObjective, PerExampleLoss
from featherlight.optim.zeroth_order import NonFiniteLossError
from featherlight.recipes.finetune.config import FinetuneConfig
from featherlight.recipes.finetune.head_start import fit_head
from featherlight.recipes.finetune.methods import METHODS
from featherlight.recipes.finetune.problem import Problem, build_problem
from featherlight.recipes.finetune.rundir import RunDirectory
from featherlight.recipes.finetune.state import open_journal, restore
from featherlight.recipes.finetune.summary import MemoryUse, Outcome, Scores, measure_memory, write_summary
from featherlight.recipes.finetune.tasks import predict_all
from featherlight.recipes.finetune.trainable import merge_adapters
from featherlight.report import read_run, write_report
from featherlight.trainer import (
    Budget,
    Callback,
    Clock,
    JournalWriter,
    MetricsLog,
    StepInfo,
    Tracker,
    fit,
    silent,
    write_save,
)
from featherlight.trainer.files import write_atomically

_PROFILED_STEPS = 2
_SHAPES: dict[str, Callable[[float], float]] = {"constant": lambda _: 1.0, "linear": lambda progress: 1 - progress}


class Watcher(Callback, AbstractContextManager, Protocol):
    """A callback that is on while steps are made: a progress bar."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """How a fine-tune ended: `stopped` is "finished", "interrupted" or "nan loss", which `error` then explains."""

    path: Path
    steps: int
    seconds: float
    scores: Scores
    stopped: str
    error: str | None


class Finetune:
    """One fine-tune in progress.

    Args:
        config: of the run.
        problem: its model, data and task.
        directory: where everything goes.
        command: what the user typed, for the report.
        say: is handed a line for people now and then.
        track: shows how far a long pass is.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        problem: Problem,
        directory: RunDirectory,
        *,
        command: str,
        say: Callable[[str], None],
        track: Tracker,
    ) -> None:
        self.config = config
        self.problem = problem
        self.directory = directory
        self.command = command
        self.say = say
        self.track = track
        self.method = METHODS[config.method]
        self.meter = Meter()
        self.scores = Scores(metric=problem.task.metric)
        self.clock = Clock(budget=Budget(steps=config.steps, minutes=config.minutes))
        self.log = MetricsLog(directory.metrics)
        self._sampler = IndexPermutation(len(problem.train), config.seed)
        self._notes: list[str] = []
        self._last: tuple[Tensor, Tensor] = (torch.zeros(0), torch.zeros(0))

    @property
    def model(self) -> nn.Module:
        return self.problem.loaded.model

    def run(self, resume: bool, watch: Callable[[Meter, Scores], Watcher]) -> Finished:
        """Head start or state on disk, then steps until the budget is used up, then what is left on disk."""
        journal, optimizer = self._start(resume)
        shape = _SHAPES[self.config.optimizer.schedule]
        scheduler = LambdaLR(optimizer, lambda _: shape(self.clock.progress))
        memory = measure_memory(self.problem, self._batch_objective(self.clock.step, self.problem.loss, Meter()))
        stopped, error = "finished", None
        self.model.train(self.method.dropout)
        watcher = watch(self.meter, self.scores)
        try:
            with watcher, _closing(journal):
                callbacks = [self, watcher, _Evaluations(self, optimizer)]
                with allocation_peak(self.problem.device) as peak:
                    self._fit(optimizer, scheduler, [self, watcher], self.clock.step + _PROFILED_STEPS)
                self._fit(optimizer, scheduler, callbacks, None)
            memory = memory.with_training(peak.bytes)
            stopped = "interrupted" if self.clock.interrupted and self.clock.progress < 1 else stopped
        except NonFiniteLossError as nan:
            stopped, error = "nan loss", str(nan)
            self._notes.append(error)
        if not self.method.replayable and stopped != "nan loss":
            self.save(optimizer)
        self._evaluate("eval")
        self._leave(memory, stopped)
        return Finished(
            path=self.directory.path,
            steps=self.clock.step,
            seconds=self.clock.seconds,
            scores=self.scores,
            stopped=stopped,
            error=error,
        )

    def on_step(self, info: StepInfo) -> None:
        """Logs a step."""
        self.log.write(
            "step",
            step=info.step,
            loss=info.loss,
            lr=info.lr,
            forwards=self.meter.example_forwards,
            tokens_per_second=self.meter.tokens / max(info.seconds, 1e-9),
            seconds=info.seconds,
        )

    def save(self, optimizer: Optimizer) -> None:
        """Saves weights and optimizer state, for methods without a journal."""
        progress = {"step": self.clock.step, "seconds": self.clock.seconds}
        write_save(self.directory.save, self.model, optimizer, progress, meter=self.meter)

    def evaluate(self) -> None:
        """Scores the validation rows and logs it."""
        self._evaluate("eval")

    def _fit(self, optimizer: Optimizer, scheduler: LambdaLR, callbacks: list[Callback], until: int | None) -> None:
        fit(
            optimizer,
            self._objective,
            clock=self.clock,
            scheduler=scheduler,
            callbacks=callbacks,
            until_step=until,
        )

    def _start(self, resume: bool) -> tuple[JournalWriter | None, Optimizer]:
        found = self.directory.find_state() if resume else None
        if found is None:
            if resume:
                self.say("nothing was saved yet, so the run starts again from step 0")
            self.log.truncate_after(-1)
            self._evaluate("eval")
            self._head_start()
        journal = open_journal(self, found) if self.method.replayable else None
        lr = self.config.optimizer.lr or self.method.default_lr
        optimizer = self.method.build(self.problem.loaded, lr, self.config, journal, self.meter)
        if found is not None:
            restore(self, optimizer, found)
        return journal, optimizer

    def _head_start(self) -> None:
        loaded = self.problem.loaded
        wanted = self.config.head_start
        if loaded.head is None or wanted is False or (wanted is None and not loaded.fresh):
            return
        began = time.perf_counter()
        fitted = fit_head(self.problem, self.track)
        seconds = time.perf_counter() - began
        if not fitted.converged:
            self._notes.append("the closed-form head did not reach its tolerance; it is the best found")
        self._evaluate("head_start", seconds=seconds)
        self.say(f"head start in {seconds:.1f} s: {self.scores.text()} on {len(self.problem.valid):,} validation rows")

    def _evaluate(self, kind: str, **extra: float) -> None:
        training = self.model.training
        self.model.eval()
        logits, labels, losses = predict_all(self.model, self.problem.loss, self.problem.batches(self.problem.valid))
        self.model.train(training)
        self._last = logits, labels
        self.scores.add(kind, self.problem.task.score(logits, labels, losses), float(losses.mean()))
        values = {
            "step": self.clock.step,
            "split": "valid",
            "loss": self.scores.losses[-1],
            "metric": self.scores.metric,
            "value": self.scores.values[-1],
            "forwards": self.meter.example_forwards,
            "seconds": self.clock.seconds,
        }
        if kind == "head_start":
            values = {name: values[name] for name in ("loss", "metric", "value")}
        self.log.write(kind, **values | extra)

    def _objective(self, step: int) -> BatchObjective:
        return self._batch_objective(step, _finite(self.problem.loss, step, self._indices(step)), self.meter)

    def _batch_objective(self, step: int, loss: PerExampleLoss, meter: Meter) -> BatchObjective:
        return BatchObjective(
            self.model,
            self.problem.batch(self.problem.train, self._indices(step)),
            loss,
            micro_batch=self.config.micro_batch,
            dropout_seed=(self.config.seed + step) % (1 << 63),
            meter=meter,
        )

    def _indices(self, step: int) -> list[int]:
        return self._sampler.indices(step * self.config.batch, min(self.config.batch, len(self.problem.train)))

    def _leave(self, memory: MemoryUse, stopped: str) -> None:
        if self.config.lora is not None:
            merge_adapters(self.model)
        labels = self.problem.labels
        names = {} if labels is None else {"id2label": labels.id2label, "label2id": labels.label2id}
        self.directory.write_model(self.problem.loaded, names)
        self.log.close()
        outcome = Outcome(
            config=self.config,
            problem=self.problem,
            scores=self.scores,
            memory=memory,
            meter=self.meter,
            clock=self.clock,
            stopped=stopped,
            command=self.command,
            resume_command=self.directory.resume_command,
            last=self._last,
            notes=self._notes,
        )
        write_summary(self.directory.summary, outcome)
        if stopped == "finished":
            self.directory.save.unlink(missing_ok=True)
        write_report([read_run(self.directory.path)], self.directory.report)


class _Evaluations:
    """Scores the validation rows, and saves where there is no journal, at equal shares of the budget."""

    def __init__(self, run: Finetune, optimizer: Optimizer) -> None:
        self._run = run
        self._optimizer = optimizer
        self._every = 1 / run.config.evaluations
        self._next = run.clock.progress + self._every

    def on_step(self, info: StepInfo) -> None:
        if not self._next <= info.progress < 1:
            return
        self._next = info.progress + self._every
        self._run.evaluate()
        if not self._run.method.replayable:
            self._run.save(self._optimizer)


def finetune(
    config: FinetuneConfig,
    directory: RunDirectory,
    *,
    command: str,
    resume: bool = False,
    watch: Callable[[Meter, Scores], Watcher],
    say: Callable[[str], None] = lambda line: None,
    track: Tracker = silent,
) -> Finished:
    """Fine-tunes a model and leaves config, metrics, journal or save, model, summary and report in the run directory.

    Args:
        config: of the run.
        directory: of the run, opened; it is kept once data and model are loaded.
        command: what the user typed, for the report.
        resume: goes on from the last step on disk.
        watch: makes a progress display from the counters and the scores.
        say: is handed a line for people now and then.
        track: shows how far a long pass is.

    Raises:
        ValueError: bad data or choices.
    """
    say(f"loading {config.model} and {config.train}")
    problem = build_problem(config, scratch=directory.scratch)
    directory.keep()
    if not resume:
        write_atomically(directory.config, lambda file: file.write(config.to_toml().encode()))
    run = Finetune(config, problem, directory, command=command, say=say, track=track)
    try:
        return run.run(resume, watch)
    finally:
        run.log.close()


@contextmanager
def _closing(journal: JournalWriter | None) -> Iterator[None]:
    try:
        yield
    finally:
        if journal is not None:
            journal.close()


def _finite(loss: PerExampleLoss, step: int, indices: list[int]) -> PerExampleLoss:
    """`loss`, which raises where a loss is not finite, before a gradient or an update is made of it."""

    def checked(model: nn.Module, batch: Batch) -> Tensor:
        losses = loss(model, batch)
        if not torch.isfinite(losses).all():
            rows = ", ".join(str(index) for index in indices[:4]) + (", ..." if indices[4:] else "")
            raise NonFiniteLossError(
                f"the loss of step {step} is not finite in the batch of training rows {rows}; the step was not applied. "
                "Lower the learning rate or sigma, or look at these rows and at the base model's weights."
            )
        return losses

    return checked
