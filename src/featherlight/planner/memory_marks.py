"""How much memory tensors take between marks that are set while a program runs."""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

_NAME = "featherlight mark "


class MemoryMarks:
    """Marks on the time line of memory; read them when the block has ended.

    Args:
        device: whose memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._keys: dict[Hashable, int] = {}
        self._now: list[int] = []
        self._peaks: list[int] = []

    def mark(self, key: Hashable) -> None:
        """Sets a mark; each key once."""
        assert key not in self._keys, "a mark is set once"
        self._keys[key] = len(self._keys)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self._now.append(torch.cuda.memory_allocated(self._device))
            self._peaks.append(torch.cuda.max_memory_allocated(self._device))
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            with record_function(f"{_NAME}{len(self._keys) - 1}"):
                pass

    def bytes_at(self, key: Hashable) -> int:
        """Bytes of tensors when the mark was set, above some common level."""
        return self._now[self._keys[key]]

    def peak(self, start: Hashable, stop: Hashable) -> int:
        """The most between two marks, both included, above the same level."""
        first, last = self._keys[start], self._keys[stop]
        return max(self._now[first], *self._peaks[first + 1 : last + 1])

    def read(self, profiler: Any) -> None:
        """Reads the marks from what the profiler has noted on a CPU."""
        events = [
            event
            for event in profiler.kineto_results.events()
            if event.name() == "[memory]" or event.name().startswith(_NAME)
        ]
        current = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                current += event.nbytes()
                peak = max(peak, current)
            else:
                self._now.append(current)
                self._peaks.append(peak)
                peak = current
        assert len(self._now) == len(self._keys), "the profiler notes every mark"


@contextmanager
def memory_marks(device: torch.device) -> Iterator[MemoryMarks]:
    """Inside the block marks can be set, which are read after it.

    Cost: on a CPU the profiler notes each operation, which slows them down several times.
    """
    marks = MemoryMarks(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield marks
        return
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield marks
    marks.read(profiler.profiler)
