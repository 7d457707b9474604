"""The directory of a run: what lies where, who may write to it, and what can be taken up again."""

import fcntl
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from featherlight.files import write_atomically
from featherlight.trainer.saves import saves

_LOCK = ".lock"
_OF_AN_ABANDONED_RUN = {_LOCK, "scratch", "metrics.jsonl", "asked.toml"}


@dataclass(kw_only=True)
class RunDirectory:
    """`runs/<name>/` and where the files in it lie, whether they are there or not.

    Attributes:
        path: of the directory.
        resumed: whether there was a run to take up when it was opened.
    """

    path: Path
    resumed: bool = False
    _kept: bool = field(default=False, repr=False)

    @property
    def config(self) -> Path:
        """The config with every choice made, which runs again as it is."""
        return self.path / "config.toml"

    @property
    def asked(self) -> Path:
        """The config as it was asked for, by which a command that is given again is known."""
        return self.path / "asked.toml"

    @property
    def metrics(self) -> Path:
        """What was measured on the way, line by line; `MetricsLog` writes it."""
        return self.path / "metrics.jsonl"

    @property
    def journal(self) -> Path:
        """With the base weights, all it takes to have the trained ones; only for what can be replayed."""
        return self.path / "journal"

    @property
    def saves(self) -> Path:
        """Weights and optimizer state at times, each in a directory of its own; removed when the run is finished."""
        return self.path / "saves"

    @property
    def model(self) -> Path:
        """The trained model, a directory; only where the experiment has `write_model`."""
        return self.path / "model"

    @property
    def summary(self) -> Path:
        """What the run came to, JSON; a run that has none never ended."""
        return self.path / "summary.json"

    @property
    def sections(self) -> Path:
        """Figures and tables of this kind of run, for the report."""
        return self.path / "sections.json"

    @property
    def report(self) -> Path:
        """The page, written when the run ends."""
        return self.path / "report.html"

    @property
    def scratch(self) -> Path:
        """A folder for large temporary files, which is there while the directory is open."""
        return self.path / "scratch"

    @property
    def lasting_files(self) -> Sequence[Path]:
        """What no longer changes when the run is finished; `report` makes the page again whenever it is asked to."""
        return self.config, self.asked, self.metrics, self.journal, self.summary, self.sections

    @property
    def resume_command(self) -> str:
        """What to type to go on with the run, quoted for a shell."""
        return f"featherlight run --resume {shlex.quote(str(self.path))}"

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        with suppress(OSError, json.JSONDecodeError):
            return json.loads(self.summary.read_text()).get("stopped") == "finished"
        return False

    @classmethod
    @contextmanager
    def open(cls, path: Path, asked: str | None) -> Iterator["RunDirectory"]:
        """Makes a new run directory, or takes up one in which the same was asked for; one process at a time.

        A new one in which nothing was kept is removed at the end, and the scratch folder always is.

        Args:
            path: of the directory.
            asked: the config as asked for, as TOML; None takes up whatever run there is.

        Raises:
            ValueError: another run is there, or none that could be taken up; it is finished, in use, or not writable.
        """
        _refuse_foreign(path, asked)
        existed = path.is_dir()
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / _LOCK).open("a+")
        except OSError as error:
            raise ValueError(
                f"the run directory {path} cannot be written to ({error.strerror}). Choose another one with `--out`."
            ) from None
        with lock:
            _acquire(lock, path)
            if asked is not None and _is_leftover(path):
                _clear(path, keep=_LOCK)
            resumed = _found(path, asked)
            _sign(lock)
            directory = cls(path=path, resumed=resumed, _kept=resumed)
            try:
                directory.scratch.mkdir(exist_ok=True)
                yield directory
            finally:
                shutil.rmtree(directory.scratch, ignore_errors=True)
                if not directory._kept:
                    _clear(path)
                    if not existed:
                        path.rmdir()

    def keep(self, config: str, asked: str) -> None:
        """From now on the directory stays, whatever happens; writes both forms of the config of a new run."""
        if not self.resumed:
            write_atomically(self.asked, lambda file: file.write(asked.encode()))
            write_atomically(self.config, lambda file: file.write(config.encode()))
        self._kept = True

    @property
    def holds_steps(self) -> bool:
        """Whether an earlier part of the run left a journal or a save."""
        return self.journal.is_file() or bool(saves(self.saves))


def take_lock(lock: IO[str], path: Path) -> None:
    """Takes the lock of a directory, an open file, and writes into it who has it; raises ValueError if another has it."""
    _acquire(lock, path)
    _sign(lock)


def _acquire(lock: IO[str], path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        raise ValueError(
            f"{path} is being written to by {holder}; wait for it, stop it, or give another `--out`."
        ) from None


def _sign(lock: IO[str]) -> None:
    lock.seek(0)
    lock.truncate()
    lock.write(f"process {os.getpid()} ({shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])})\n")
    lock.flush()


def _is_leftover(path: Path) -> bool:
    """Whether a run was killed there while it was loading, before it had a config: nothing in it is of use."""
    names = [one.name for one in path.iterdir()]
    return "config.toml" not in names and all(name in _OF_AN_ABANDONED_RUN or name.endswith(".part") for name in names)


def _clear(path: Path, keep: str = "") -> None:
    for one in path.iterdir():
        if one.is_dir():
            shutil.rmtree(one, ignore_errors=True)
        elif one.name != keep:
            one.unlink(missing_ok=True)


def _refuse_foreign(path: Path, asked: str | None) -> None:
    """Raises ValueError where nothing of a run is, before anything is written there."""
    if path.is_file():
        raise ValueError(f"{path} is a file, and a run needs a directory of its own. Give another `--out`.")
    if asked is None and not (path / "config.toml").is_file():
        raise ValueError(f"{path} is not a run directory (it has no config.toml), so there is nothing to resume.")
    if path.is_dir() and any(path.iterdir()) and not (path / _LOCK).is_file():
        raise _occupied(path)


def _occupied(path: Path) -> ValueError:
    advice = ""
    if (path / "config.toml").is_file():
        advice = f", or go on with what is there: {RunDirectory(path=path).resume_command}"
    return ValueError(
        f"the run directory {path} exists already with something else in it, and a run never overwrites another. Give "
        f"another `--out`{advice}"
    )


def _found(path: Path, asked: str | None) -> bool:
    """Whether there is a run to take up."""
    directory = RunDirectory(path=path)
    if not directory.config.is_file():
        if all(one.name == _LOCK for one in path.iterdir()):
            return False
        raise _occupied(path)
    if asked is not None and (not directory.asked.is_file() or directory.asked.read_text() != asked):
        raise _occupied(path)
    if directory.is_finished:
        raise ValueError(f"the run {path} is finished; there is nothing to resume. Look at {directory.report}.")
    return True
