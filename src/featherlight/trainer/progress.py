"""What a person sees while a run is going: a bar on a terminal, a plain line now and then elsewhere."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, track

from featherlight.meter import Meter, process_peak_bytes
from featherlight.trainer.loop import Callback, StepInfo

_SMOOTHING = 0.95
Item = TypeVar("Item")


class Tracker(Protocol):
    """Passes a sized iterable on and shows how far it is."""

    def __call__(self, items: Iterable[Item], what: str, total: int) -> Iterable[Item]:
        """The items in their order.

        Args:
            items: to be passed on.
            what: the name of the pass, for people.
            total: how many items there are.
        """
        ...


def silent(items: Iterable[Item], what: str, total: int) -> Iterable[Item]:
    """A tracker that shows nothing."""
    return items


def tracker(console: Console) -> Tracker:
    """A tracker with a bar on a terminal, and one line at the start elsewhere."""

    def show(items: Iterable[Item], what: str, total: int) -> Iterable[Item]:
        if console.is_terminal:
            return track(items, description=what, total=total, console=console, transient=True)
        console.print(what, highlight=False, markup=False)
        return items

    return show


@dataclass(frozen=True)
class Display:
    """Where people look while a run is going. `Display()` shows nothing.

    Args:
        console: of the lines and bars; None shows nothing.
    """

    console: Console | None = None

    def say(self, line: str) -> None:
        """Prints a line for people."""
        if self.console is not None:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def track(self, items: Iterable[Item], what: str, total: int) -> Iterable[Item]:
        """A long pass over a sized iterable."""
        return silent(items, what, total) if self.console is None else tracker(self.console)(items, what, total)

    def watch(self, meter: Meter, score: Callable[[], str]) -> "Watcher":
        """The progress of steps: a bar on a terminal or in a notebook, a line now and then elsewhere."""
        if self.console is None:
            return NoProgress()
        lasting = self.console.is_terminal or self.console.is_jupyter
        return (BarProgress if lasting else LineProgress)(self.console, meter, score)


@contextmanager
def said_warnings(display: Display, notes: list[str]) -> Iterator[None]:
    """Within the block a UserWarning is a line for people and a note, and not Python's lines of file and code.

    Args:
        display: where people look; if it shows nothing, warnings take Python's way.
        notes: are added to.
    """
    with warnings.catch_warnings():
        as_usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if category is UserWarning:
                notes.append(str(message))
                if display.console is not None:
                    display.say(f"warning: {message}")
                    return
            as_usual(message, category, *place, **more)

        warnings.showwarning = show
        yield


class Watcher(Callback, AbstractContextManager, Protocol):
    """A callback that is on while steps are made."""


class NoProgress(nullcontext):
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def on_step(self, info: StepInfo) -> None:
        return None


class _Status:
    """The numbers of the moment as text."""

    def __init__(self, meter: Meter, score: Callable[[], str]) -> None:
        self.meter = meter
        self.score = score
        self.loss: float | None = None

    def update(self, info: StepInfo) -> Mapping[str, str]:
        self.loss = info.loss if self.loss is None else _SMOOTHING * self.loss + (1 - _SMOOTHING) * info.loss
        return {
            "step": f"step {info.step:,}",
            "loss": f"loss {self.loss:.4f}",
            "score": self.score(),
            "forwards": f"{self.meter.example_forwards:,} forwards",
            "speed": self._speed(info),
            "memory": f"{process_peak_bytes() / 2**30:.2f} GiB",
        }

    def _speed(self, info: StepInfo) -> str:
        unit, count = ("tokens", self.meter.tokens) if self.meter.tokens else ("forwards", self.meter.example_forwards)
        return f"{count / max(info.seconds, 1e-9):,.0f} {unit}/s"


class BarProgress:
    """A progress bar on a terminal; use it as a context.

    Args:
        console: where it is drawn.
        meter: the counters of the run.
        score: the latest score as text, such as "accuracy 78.1%".
    """

    def __init__(self, console: Console, meter: Meter, score: Callable[[], str]) -> None:
        self._status = _Status(meter, score)
        names = ("step", "loss", "score", "forwards", "speed", "memory")
        columns = [TextColumn("{task.fields[" + name + "]}") for name in names]
        self._bar = Progress(BarColumn(bar_width=24), *columns, TimeRemainingColumn(), console=console, transient=True)
        self._task = self._bar.add_task("", total=1.0, **dict.fromkeys(names, ""))

    def on_step(self, info: StepInfo) -> None:
        fields: dict[str, Any] = dict(self._status.update(info))
        self._bar.update(self._task, completed=info.progress, **fields)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


class LineProgress:
    """A plain line every few seconds, for logs and pipes.

    Args:
        console: where it is written.
        meter: the counters of the run.
        score: the latest score as text.
        every: seconds between lines.
    """

    def __init__(self, console: Console, meter: Meter, score: Callable[[], str], every: float = 10.0) -> None:
        self._console = console
        self._status = _Status(meter, score)
        self._every = every
        self._next = time.monotonic() + every

    def on_step(self, info: StepInfo) -> None:
        texts = self._status.update(info)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every
            line = f"{info.progress:4.0%}  " + "  ".join(text for text in texts.values() if text)
            self._console.print(line, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
