"""The loop: budgets, interrupts, schedules and callbacks."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from featherlight.objective import BatchObjective
from featherlight.optim import ZerothOrderSGD
from featherlight.trainer import Budget, Clock, StepInfo, fit, loop
from tests.unit.optim.problems import bits_of, make_model, make_objective


class Recorder:
    def __init__(self, name: str = "", journal: list[str] | None = None) -> None:
        self.infos: list[StepInfo] = []
        self.name, self.journal = name, journal

    def on_step(self, info: StepInfo) -> None:
        self.infos.append(info)
        if self.journal is not None:
            self.journal.append(f"{self.name}{info.step}")


def start(**budget: Any) -> tuple[nn.Module, torch.optim.Optimizer, Clock]:
    model = make_model()
    return model, torch.optim.SGD(model.parameters(), 0.1), Clock(budget=Budget(**budget))


@pytest.mark.parametrize("budget", [{}, {"steps": 0}, {"steps": -1}, {"minutes": 0.0}, {"minutes": float("nan")}])
def test_budgets_that_never_or_at_once_end_are_refused(budget: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"`?(steps|minutes)`? .*(must be positive|are None|both)|needs `steps`"):
        Budget(**budget)


def test_a_budget_of_steps_is_used_up_exactly() -> None:
    model, optimizer, clock = start(steps=5)
    seen: list[int] = []
    recorder = Recorder()

    def objective_at(step: int) -> BatchObjective:
        seen.append(step)
        return make_objective(model, step)

    fit(optimizer, objective_at, clock=clock, callbacks=[recorder])
    assert seen == [0, 1, 2, 3, 4]
    assert clock.step == 5
    assert not clock.interrupted
    assert [info.step for info in recorder.infos] == [1, 2, 3, 4, 5]
    assert [info.progress for info in recorder.infos] == [0.2, 0.4, 0.6, 0.8, 1.0]
    fit(optimizer, objective_at, clock=clock)
    assert len(seen) == 5


class FakeTime:
    """Every reading is `tick` seconds after the last."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 0.0, tick

    def perf_counter(self) -> float:
        self.now += self.tick
        return self.now


def test_a_budget_of_minutes_counts_the_seconds_of_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, clock = start(minutes=1.0, steps=1000)
    monkeypatch.setattr(loop, "time", FakeTime(10.0))
    recorder = Recorder()
    fit(optimizer, lambda step: make_objective(model, step), clock=clock, callbacks=[recorder])
    assert clock.step == 6
    assert clock.seconds == 60.0
    assert [info.seconds for info in recorder.infos] == [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]


def test_training_in_parts_is_training_at_once() -> None:
    whole, optimizer, clock = start(steps=6)
    fit(optimizer, lambda step: make_objective(whole, step), clock=clock)
    model, optimizer, clock = start(steps=6)
    for until in (2, 4, None):
        fit(optimizer, lambda step: make_objective(model, step), clock=clock, until_step=until)
        assert clock.step == (until or 6)
    assert bits_of(model) == bits_of(whole)


def test_callbacks_hear_of_each_step_in_order_after_the_schedule() -> None:
    model, optimizer, clock = start(steps=3)
    scheduler = StepLR(optimizer, 1, 0.5)
    order: list[str] = []
    callbacks = [Recorder("a", order), Recorder("b", order)]
    fit(optimizer, lambda s: make_objective(model, s), clock=clock, scheduler=scheduler, callbacks=callbacks)
    assert order == ["a1", "b1", "a2", "b2", "a3", "b3"]
    assert [info.lr for info in callbacks[0].infos] == [0.1, 0.05, 0.025]
    assert scheduler.last_epoch == 3
    assert all(isinstance(info.loss, float) for info in callbacks[0].infos)


class Interrupting(BatchObjective):
    signals = (signal.SIGINT,)

    def value(self) -> Tensor:
        for number in self.signals:
            os.kill(os.getpid(), number)
        return super().value()


@pytest.fixture
def handlers() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    yield
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_interrupt_lets_the_step_finish(number: signal.Signals) -> None:
    model = make_model()
    optimizer = ZerothOrderSGD(model, 1e-2)
    clock, recorder = Clock(budget=Budget(steps=10)), Recorder()

    def objective_at(step: int) -> BatchObjective:
        plain = make_objective(model, step)
        if step != 2:
            return plain
        objective = Interrupting(model, plain.batch, plain.loss)
        optimizer_signals = (number,)
        objective.signals = optimizer_signals
        return _Once(objective)

    fit(optimizer, objective_at, clock=clock, callbacks=[recorder])
    assert clock.interrupted
    assert clock.step == optimizer.steps_done == 3
    assert [info.step for info in recorder.infos] == [1, 2, 3]
    uninterrupted = make_model()
    other = ZerothOrderSGD(uninterrupted, 1e-2)
    for step in range(3):
        other.step(make_objective(uninterrupted, step))
    assert bits_of(model) == bits_of(uninterrupted)


class _Once:
    """Hands the first `value()` to an interrupting objective and the rest to its quiet parent."""

    def __init__(self, objective: Interrupting) -> None:
        self.objective = objective

    def __call__(self) -> Tensor:
        return self.objective()

    def values(self) -> Tensor:
        return self.objective.values()

    def value(self) -> Tensor:
        result = self.objective.value()
        self.objective.signals = ()
        return result


@pytest.mark.usefixtures("handlers")
def test_the_second_interrupt_stops_at_once_and_leaves_the_weights() -> None:
    model = make_model()
    before = bits_of(model)
    optimizer = ZerothOrderSGD(model, 1e-2)
    plain = make_objective(model)
    objective = Interrupting(model, plain.batch, plain.loss)
    with pytest.raises(KeyboardInterrupt):
        fit(optimizer, lambda step: objective, clock=Clock(budget=Budget(steps=3)))
    assert bits_of(model) == before
    assert optimizer.steps_done == 0


@pytest.mark.usefixtures("handlers")
def test_an_error_in_a_step_puts_the_signal_handlers_back() -> None:
    _, optimizer, clock = start(steps=3)

    def broken(step: int) -> BatchObjective:
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        fit(optimizer, broken, clock=clock)
    assert clock.step == 0
