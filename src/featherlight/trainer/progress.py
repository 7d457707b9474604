"""What a person sees while a run is going: a bar on a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, track

from featherlight.meter import Meter, process_peak_bytes
from featherlight.trainer.loop import StepInfo

_SMOOTHING = 0.95
Item = TypeVar("Item")


class Tracker(Protocol):
    """Passes a sized iterable on and shows how far it is."""

    def __call__(self, items: Iterable[Item], what: str, total: int) -> Iterable[Item]: ...


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
            "speed": f"{self.meter.tokens / max(info.seconds, 1e-9):,.0f} tokens/s",
            "memory": f"{process_peak_bytes() / 2**30:.2f} GiB",
        }


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
