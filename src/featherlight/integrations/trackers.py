"""Trackers: who else is told what a run measures. Nothing leaves the machine unless one is asked for."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from featherlight.trainer import Listener


class TensorBoard:
    """Writes the metrics as TensorBoard event files; needs `pip install 'featherlight[tensorboard]'`.

    Args:
        folder: of the event files.

    Raises:
        ValueError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError(
                "the tracker tensorboard needs a package that is not installed. Run: pip install 'featherlight[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(str(folder))

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Writes the numbers of one line of the metrics."""
        if line["kind"] == "step":
            numbers = {f"train/{name}": line.get(name) for name in ("loss", "lr", "tokens_per_second")}
        else:
            part = line.get("split") or line.get("name")
            numbers = {
                f"{part}/{name}": value for name, value in {**line.get("values", {}), "loss": line["loss"]}.items()
            }
        for name, value in numbers.items():
            if value is not None:
                self._writer.add_scalar(name, value, line["step"])
        if line["kind"] != "step":
            self._writer.flush()


def make_trackers(
    names: Sequence[str], warn: Callable[[str], object] = lambda sentence: None
) -> Callable[[Path], Sequence[Listener]]:
    """From names to what makes the listeners of a run directory.

    Args:
        names: "tensorboard", or module:function; the function is handed the run directory and returns a listener.
        warn: is handed a sentence when a user's function fails; the run goes on without that tracker.

    Raises:
        ValueError: a name means nothing.
    """
    makers = {name: _maker(name) for name in names}

    def make(path: Path) -> Sequence[Listener]:
        made = []
        for name, maker in makers.items():
            try:
                made.append(maker(path))
            except Exception as error:
                if name == "tensorboard":
                    raise
                warn(
                    f"warning: the tracker {name} failed to start ({type(error).__name__}: {error}); the run goes on without it"
                )
        return made

    return make


def _maker(name: str) -> Callable[[Path], Listener]:
    if name == "tensorboard":
        return lambda path: TensorBoard(path / "tensorboard")
    module_name, colon, function = name.partition(":")
    if not colon:
        raise ValueError(f"there is no tracker {name}. Name tensorboard, or a function of your own as module:function.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module_name), function)
    except Exception as error:
        raise ValueError(f"the tracker {name} cannot be loaded ({type(error).__name__}: {error}).") from None
