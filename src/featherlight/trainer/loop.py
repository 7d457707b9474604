"""The training loop. It knows no method: whatever differs between methods is in the optimizer and the objective."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from featherlight.objective import Objective


@dataclass(frozen=True, kw_only=True)
class StepInfo:
    """What a callback is told after a step.

    Attributes:
        step: steps done so far, this one included.
        loss: of this step.
        lr: of the first parameter group in this step.
        seconds: spent in steps so far; evaluations and saves do not count.
        progress: share of the budget that is used up, in [0, 1].
    """

    step: int
    loss: float
    lr: float
    seconds: float
    progress: float


class Callback(Protocol):
    """Reads along; whatever writes to the model is an optimizer, a transform or a schedule."""

    def on_step(self, info: StepInfo) -> None:
        """Is called after each step. What it raises ends the run."""
        ...


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long to train: a number of steps, or minutes spent in steps; whichever is used up first.

    Args:
        steps: None is no limit.
        minutes: None is no limit.
    """

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ValueError("a budget needs `steps` or `minutes`; both are None, so the run would never end.")
        for name, value in (("steps", self.steps), ("minutes", self.minutes)):
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` must be positive; got {value}.")

    def text(self) -> str:
        """The budget for people."""
        steps = None if self.steps is None else f"{self.steps:,} step{'' if self.steps == 1 else 's'}"
        minutes = None if self.minutes is None else f"{self.minutes:g} minutes"
        return " or ".join(one for one in (steps, minutes) if one is not None)

    def progress(self, step: int, seconds: float) -> float:
        """The share that is used up, in [0, 1]."""
        by_steps = step / self.steps if self.steps is not None else 0.0
        by_time = seconds / (60 * self.minutes) if self.minutes is not None else 0.0
        return min(1.0, max(by_steps, by_time))


@dataclass(kw_only=True)
class Clock:
    """How far a run is.

    Attributes:
        budget: when it ends.
        step: steps done.
        seconds: spent in steps; evaluations and saves do not count.
        interrupted: whether Ctrl-C, SIGTERM or the run's judge ended it.
        signalled: whether this process was sent Ctrl-C or SIGTERM.
        agree: where several processes go by one clock, brings their signals and seconds together; None for a single one.
    """

    budget: Budget
    step: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    signalled: bool = False
    agree: Callable[[bool, float], tuple[bool, float]] | None = None

    def tick(self, seconds: float) -> None:
        """Counts a step that took so many seconds."""
        self.step += 1
        self.seconds += seconds
        self.settle()

    def settle(self) -> None:
        """Brings the clocks of several processes together."""
        if self.agree is not None:
            self.interrupted, self.seconds = self.agree(self.signalled, self.seconds)

    def note_signal(self) -> None:
        """Ends the steps after the present one; where there are several processes, when they next agree."""
        self.signalled = True
        self.interrupted = self.interrupted or self.agree is None

    @property
    def progress(self) -> float:
        """The share of the budget that is used up, in [0, 1]."""
        return self.budget.progress(self.step, self.seconds)


def fit(
    optimizer: Optimizer,
    objective_at: Callable[[int], Objective],
    *,
    clock: Clock,
    scheduler: LRScheduler | None = None,
    update: Callable[[float], None] = lambda progress: None,
    callbacks: Sequence[Callback] = (),
    until_step: int | None = None,
) -> None:
    """Trains until the budget is used up, or until the first Ctrl-C, which lets the step finish.

    Args:
        optimizer: any torch optimizer.
        objective_at: the objective of a step, by its number from 0.
        clock: where the run stands; is moved on.
        scheduler: is stepped once a step.
        update: moves the transforms of the model along before each step; is handed the share of the budget that is used up.
        callbacks: are told of each step, in order.
        until_step: stops there even if budget is left.
    """
    with _finish_step_on_interrupt(clock):
        while clock.progress < 1 and not clock.interrupted and clock.step != until_step:
            began = time.perf_counter()
            lr = float(optimizer.param_groups[0]["lr"])
            update(clock.progress)
            loss = float(optimizer.step(objective_at(clock.step)))  # pyright: ignore[reportArgumentType, reportCallIssue]
            clock.tick(time.perf_counter() - began)
            if scheduler is not None:
                scheduler.step()
            info = StepInfo(step=clock.step, loss=loss, lr=lr, seconds=clock.seconds, progress=clock.progress)
            for callback in callbacks:
                callback.on_step(info)


@contextmanager
def _finish_step_on_interrupt(clock: Clock) -> Iterator[None]:
    """The first SIGINT or SIGTERM is noted in the clock; a second SIGINT acts as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        if clock.signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        clock.note_signal()

    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
