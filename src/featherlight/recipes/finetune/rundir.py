"""The directory of a run: what lies where, who may write to it, and what can be taken up again."""

import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featherlight.nn.models import Pretrained, quiet_loading, save_pretrained
from featherlight.trainer import JournalContents, read_journal


@dataclass(frozen=True, kw_only=True)
class FoundState:
    """What an earlier part of a run left: a journal or a save."""

    journal: JournalContents | None = None
    save: Path | None = None


@dataclass(kw_only=True)
class RunDirectory:
    """`runs/<name>/` and the files in it."""

    path: Path
    _kept: bool = field(default=False, repr=False)

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def journal(self) -> Path:
        return self.path / "journal"

    @property
    def save(self) -> Path:
        return self.path / "save.safetensors"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def scratch(self) -> Path:
        return self.path / "scratch"

    @property
    def resume_command(self) -> str:
        return f"featherlight finetune --resume {shlex.quote(str(self.path))}"

    @classmethod
    @contextmanager
    def open(cls, path: Path, *, resume: bool) -> Iterator["RunDirectory"]:
        """Makes a new run directory, or takes one up again; one process at a time.

        A new one in which nothing was kept is removed at the end, and the scratch folder always is.

        Raises:
            ValueError: it exists already, does not exist, is finished, is in use, or cannot be written to.
        """
        if not resume and is_abandoned(path):
            shutil.rmtree(path)
        _check(path, resume=resume)
        try:
            path.mkdir(parents=True, exist_ok=resume)
            lock = (path / ".lock").open("w")
        except OSError as error:
            raise ValueError(
                f"the run directory {path} cannot be written to ({error.strerror}). Choose another one with `--out`."
            ) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another process is writing to {path}; wait for it or stop it.") from None
            directory = cls(path=path, _kept=resume)
            try:
                directory.scratch.mkdir(exist_ok=True)
                yield directory
            finally:
                shutil.rmtree(directory.scratch, ignore_errors=True)
                if not directory._kept:
                    shutil.rmtree(path, ignore_errors=True)

    def keep(self) -> None:
        """From now on the directory stays, whatever happens."""
        self._kept = True

    def find_state(self) -> FoundState | None:
        """The journal or save of an earlier part of the run; None if it did not get to its first step."""
        if self.journal.is_file():
            return FoundState(journal=read_journal(self.journal))
        return FoundState(save=self.save) if self.save.is_file() else None

    def write_model(self, loaded: Pretrained, labels: dict[str, Any]) -> None:
        """Writes `model/`, in the place of an earlier one."""
        write_model(self.model, loaded, labels)


def write_model(path: Path, loaded: Pretrained, labels: dict[str, Any]) -> None:
    """Writes a model directory beside and renames it to `path`, in the place of an earlier one."""
    beside, old = (path.with_name(f".{path.name}.{os.getpid()}.{what}") for what in ("part", "old"))
    try:
        with quiet_loading():
            save_pretrained(loaded, beside, labels)
        if path.exists():
            path.rename(old)
        beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def is_abandoned(path: Path) -> bool:
    """Whether a run was killed there while it was loading, before it had a config: nothing in it is of use."""
    own = {".lock", "scratch", "metrics.jsonl"}
    if not path.is_dir() or not (path / ".lock").is_file() or any(one.name not in own for one in path.iterdir()):
        return False
    with (path / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _check(path: Path, *, resume: bool) -> None:
    if path.is_file():
        raise ValueError(f"{path} is a file, and a run needs a directory of its own. Give another `--out`.")
    if not resume and path.exists():
        raise ValueError(
            f"the run directory {path} exists already, and a run never overwrites another. Give another `--out`, or go on "
            f"with it: featherlight finetune --resume {path}"
        )
    if not resume:
        return
    if not (path / "config.toml").is_file():
        raise ValueError(f"{path} is not a run directory (it has no config.toml), so there is nothing to resume.")
    summary, finished = path / "summary.json", False
    with suppress(json.JSONDecodeError):
        finished = summary.is_file() and json.loads(summary.read_text()).get("stopped") == "finished"
    if finished:
        raise ValueError(f"the run {path} is finished; there is nothing to resume. Look at {path / 'report.html'}.")
