"""The saves of a run: each a directory with a manifest; an older one goes only when a newer one was read back."""

import errno
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from featherlight.meter import Meter
from featherlight.trainer.manifest import check_manifest, replace_directory
from featherlight.trainer.save import saved_bytes, write_save

STATE = "state.safetensors"
_PREFIX = "save-"
_SPARE = 1.05


def keep_save(
    folder: Path,
    model: nn.Module,
    optimizer: Optimizer,
    progress: dict[str, Any],
    *,
    meter: Meter,
    everything: bool = False,
    writes: bool = True,
) -> None:
    """Makes a save of the present state and, when it was read back from disk, removes the older ones.

    Args:
        folder: of the run's saves; made if it is missing.
        model: as for `write_save`, with the further arguments.
        optimizer: of the run.
        progress: numbers and strings by name.
        meter: counts the bytes written.
        everything: keeps all parameters, also those that require no gradient now.
        writes: False only helps to gather tensors that are spread over processes.

    Raises:
        OSError: the disk has no room, refused, or did not give back what was written. The older saves are as they were.
    """

    def fill(beside: Path) -> None:
        beside.mkdir()
        write_save(beside / STATE, model, optimizer, progress, meter=meter, everything=everything)

    if not writes:
        write_save(folder / STATE, model, optimizer, progress, meter=meter, everything=everything, writes=False)
        return
    require_room(folder, model, optimizer, everything=everything)
    folder.mkdir(exist_ok=True)
    path = folder / f"{_PREFIX}{1 + max(map(_number, saves(folder)), default=0):06d}"
    replace_directory(path, fill)
    if damage := check_manifest(path, from_disk=True):
        shutil.rmtree(path, ignore_errors=True)
        raise OSError(errno.EIO, f"a save was written, but could not be read back: {damage[0]}", str(path))
    for older in saves(folder):
        if older != path:
            shutil.rmtree(older, ignore_errors=True)


def newest_save(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The state of the newest save that is as it was written, or None if there is no save.

    Args:
        folder: of the run's saves.
        say: is told of each save that is skipped.

    Raises:
        ValueError: there are saves, and all are damaged.
    """
    damaged = []
    for path in saves(folder):
        try:
            damage = list(check_manifest(path))
        except ValueError as error:
            damage = [str(error)]
        if not damage:
            return path / STATE
        say(f"skipped a damaged save: {damage[0]}")
        damaged.append(damage[0])
    if damaged:
        raise ValueError(
            f"all saves in {folder} are damaged ({damaged[0]}), so the run cannot go on. Restore one from a backup, or "
            "start a new run."
        )
    return None


def saves(folder: Path) -> Sequence[Path]:
    """All saves in a folder, sound or not, newest first; none if there is no folder."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if _number(path)] if folder.is_dir() else []
    return sorted(found, key=_number, reverse=True)


def _number(path: Path) -> int:
    digits = path.name.removeprefix(_PREFIX)
    return int(digits) if digits.isdecimal() else 0


def require_room(folder: Path, model: nn.Module, optimizer: Optimizer, *, everything: bool = False) -> None:
    """Raises OSError if the disk has no room for a save; to be asked before one is made.

    Args:
        folder: of the run's saves, or where it is to be.
        model: as for `keep_save`.
        optimizer: as for `keep_save`.
        everything: as for `keep_save`.
    """
    needed = saved_bytes(model, optimizer, everything=everything)
    free = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
    if free < _SPARE * needed:
        raise OSError(
            errno.ENOSPC,
            f"a save needs about {needed / 2**20:,.1f} MiB and the disk has {free / 2**20:,.1f} MiB free; earlier saves "
            "are as they were",
            str(folder),
        )
