"""`metrics.jsonl`: one line for each thing measured in a run, and others who listen. The lines are described in
docs/run-directory.md.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from featherlight.files import write_atomically


class Listener(Protocol):
    """Is handed every line of the metrics as it is written: a tracker, a plot, a test."""

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Is called with the `kind` of the line ("step", "eval" or "event") and what was measured, as in the file."""
        ...


class MetricsLog:
    """Appends measurements to a file, a JSON object a line, and passes them on.

    Args:
        path: of the file; lines that are there are kept, up to the last whole one.
        listeners: are handed each line. One that fails is left out from then on, and the run goes on.
        warn: is handed a sentence when a listener fails.
    """

    def __init__(
        self, path: Path, listeners: Sequence[Listener] = (), warn: Callable[[str], None] = lambda sentence: None
    ) -> None:
        self.path = path
        self._listeners = list(listeners)
        self._warn = warn
        self._file = path.open("ab")
        if path.stat().st_size:
            kept = path.read_bytes().rfind(b"\n") + 1
            self._file.truncate(kept)

    def write(self, kind: str, **values: Any) -> None:
        """Appends one line; what is not finite is written as null."""
        line = {"kind": kind} | {name: finite_or_null(value) for name, value in values.items()}
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._file.flush()
        for listener in tuple(self._listeners):
            self._tell(listener, line)

    def lines(self) -> Iterator[dict[str, Any]]:
        """All lines so far that are not damaged."""
        with self.path.open("rb") as file:
            for data in file:
                line = _whole(data)
                if line is not None:
                    yield line

    def truncate_after(self, step: int) -> None:
        """Drops what was measured after a step that a resumed run starts from."""
        lines = [(data, _whole(data)) for data in self.path.read_bytes().splitlines(keepends=True)]
        kept = [data for data, line in lines if line is not None and line["step"] <= step]
        if damaged := sum(line is None for _, line in lines):
            self._warn(f"warning: {damaged} damaged lines of {self.path} are left out")
        self._file.close()
        write_atomically(self.path, lambda file: file.write(b"".join(kept)))
        self._file = self.path.open("ab")

    def flush(self) -> None:
        """Returns when all lines are on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Puts all lines on disk and closes the file; a second call does nothing."""
        if not self._file.closed:
            self.flush()
            self._file.close()

    def _tell(self, listener: Listener, line: Mapping[str, Any]) -> None:
        try:
            listener(line)
        except Exception as error:
            self._listeners.remove(listener)
            name = getattr(listener, "__qualname__", type(listener).__qualname__)
            self._warn(
                f"warning: {name} failed ({type(error).__name__}: {error}) and is left out from here on; the run goes on"
            )


def _whole(data: bytes) -> dict[str, Any] | None:
    """A line of the log; None if it is damaged."""
    with suppress(ValueError):
        line = json.loads(data)
        if isinstance(line, dict) and isinstance(line.get("step"), int) and "kind" in line:
            return line
    return None


def finite_or_null(value: Any) -> Any:
    """`value` with None for every number in it that is not finite, since JSON has no word for it."""
    if isinstance(value, Mapping):
        return {name: finite_or_null(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_null(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
