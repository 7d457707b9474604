"""Processes of a team, forked from one that has imported everything, and what is done to them."""

import os
import signal
import socket
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks.slow_network import enter
from featherlight.optim.zeroth_order import StepRecord
from featherlight.recipes.catalogue import find_recipe
from featherlight.recipes.runner import run_one
from featherlight.trainer import Display, Meeting, World, file_digest, read_journal
from tests.e2e.shared_regression import Config
from tests.faults.processes import _be_child

RECIPE = "tests.e2e.shared_regression:make"
_LOOK = 0.02


def free_port() -> int:
    """One that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Process:
    """One of a team.

    Attributes:
        path: of its run.
        pid: of the process.
        code: how it ended; None while it goes on.
    """

    path: Path
    pid: int
    code: int | None = None

    @classmethod
    def start(cls, path: Path, config: Config, team: str, *, namespace: str | None = None) -> "Process":
        """Starts or takes up a run as one of a team, `team` being as on the command line, maybe on a network of its own."""
        pid = os.fork()
        if pid == 0:
            _be_child(partial(_take_part, path, config, team, namespace), 2, path.with_suffix(".log"))
        return cls(path, pid)

    @property
    def records(self) -> list[StepRecord]:
        """The steps in its journal."""
        journal = self.path / "journal"
        return read_journal(journal).records if journal.is_file() else []

    @property
    def said(self) -> str:
        """What it told people, over all starts."""
        log = self.path.with_suffix(".log")
        return log.read_text() if log.is_file() else ""

    @property
    def weights(self) -> str:
        """SHA-256 of the trained model's file."""
        return file_digest(self.path / "model" / "model.safetensors")

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self, seconds: float = 120.0) -> int:
        """Its exit code; one that does not end is killed, and then it is -9."""
        if not until(lambda: self.has_ended, seconds):
            os.kill(self.pid, signal.SIGKILL)
            self._end(0)
        assert self.code is not None
        return self.code

    @property
    def has_ended(self) -> bool:
        """Whether it does not run any more."""
        return self.code is not None or self._end(os.WNOHANG)

    def _end(self, how: int) -> bool:
        pid, status = os.waitpid(self.pid, how)
        if pid:
            self.code = os.waitstatus_to_exitcode(status)
        return bool(pid)


def until(holds: Callable[[], bool], seconds: float = 120.0) -> bool:
    """Waits until something holds; whether it came to that in time."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(_LOOK)
    return True


def _take_part(path: Path, config: Config, team: str, namespace: str | None, told: int) -> None:
    if namespace is not None:
        enter(namespace)
    warnings.simplefilter("default")  # as people have it; a warning is a line for them
    display, world = Display(Console(stderr=True, width=200)), World(meeting=Meeting.parse(team))
    finished = run_one(find_recipe(RECIPE), config, path, command="team", display=display, world=world)
    if finished.stopped != "finished":
        raise SystemExit(130)
