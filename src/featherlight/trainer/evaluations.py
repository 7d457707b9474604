"""Scores and saves on the way: when they are due."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from torch.optim import Optimizer

from featherlight.trainer.loop import StepInfo

if TYPE_CHECKING:
    from featherlight.trainer.run import Run

_SAVES_SHARE = 50


class Evaluations:
    """Scores the model at equal shares of a stage's budget, and saves there and every few minutes.

    A save at an evaluation is left out where saves would take more than a fiftieth of the time.

    Args:
        run: that is scored.
        optimizer: of its present stage.
        saves: whether the run is saved; one with a journal is not.
    """

    def __init__(self, run: Run, optimizer: Optimizer, *, saves: bool) -> None:
        self._run = run
        self._optimizer = optimizer
        self._saves = saves
        self._shares = run.experiment.evaluations
        self._done = self._share_of(run.clock.progress)
        self._saved_at = run.clock.seconds
        self._cost = 0.0

    def on_step(self, info: StepInfo) -> None:
        """Looks whether anything is due."""
        share = self._share_of(info.progress)
        due = share > self._done and info.progress < 1
        if due:
            self._done = share
            self._run.evaluate()
            self._run.ask_judge()
        since = info.seconds - self._saved_at
        if self._saves and ((due and since >= _SAVES_SHARE * self._cost) or since > 60 * self._run.save_minutes):
            began = time.perf_counter()
            self._run.save(self._optimizer)
            self._saved_at, self._cost = info.seconds, self._run.world.broadcast(time.perf_counter() - began)

    def _share_of(self, progress: float) -> int:
        """How many of the equal shares are over."""
        return int(progress * self._shares + 1e-9)
