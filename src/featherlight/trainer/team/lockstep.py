"""Which batches a process takes, step by step."""

from dataclasses import dataclass
from typing import Protocol


class Lockstep(Protocol):
    """What a run asks of those who measure its steps."""

    def draw(self, step: int) -> int:
        """The number of the batch that this process takes in a step, which is the coming one."""
        ...

    def finish(self, kind: str) -> None:
        """Is called behind the last step; `kind` is "finished" or "interrupted"."""
        ...

    def close(self) -> None:
        """Is called in the end, whatever happened."""
        ...


@dataclass(frozen=True, kw_only=True)
class Alone:
    """A single process.

    Args:
        ahead: batches that earlier steps took beyond one each, since several processes measured them.
    """

    ahead: int = 0

    def draw(self, step: int) -> int:
        """One for each step."""
        return step + self.ahead

    def finish(self, kind: str) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        """Nothing is open."""
