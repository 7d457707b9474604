"""`metrics.jsonl`: one line for each thing measured in a run."""

import json
import math
import os
from pathlib import Path
from typing import Any

from featherlight.trainer.files import write_atomically


class MetricsLog:
    """Appends measurements to a file, a JSON object a line.

    Args:
        path: of the file; lines that are there are kept, up to the last whole one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab")
        if path.stat().st_size:
            kept = path.read_bytes().rfind(b"\n") + 1
            self._file.truncate(kept)

    def write(self, kind: str, **values: Any) -> None:
        """Appends one line; what is not finite is written as null."""
        line = {"kind": kind} | {name: _finite(value) for name, value in values.items()}
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def truncate_after(self, step: int) -> None:
        """Drops what was measured after a step that a resumed run starts from."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = b"".join(line for line in lines if json.loads(line).get("step", 0) <= step)
        self._file.close()
        write_atomically(self.path, lambda file: file.write(kept))
        self._file = self.path.open("ab")

    def close(self) -> None:
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
