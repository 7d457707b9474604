"""What a whole process takes: Python, torch and everything else beside the tensors."""

import resource
from dataclasses import dataclass
from pathlib import Path

from featherlight.meter import process_peak_bytes
from featherlight.planner.memory import StepMemory

_KERNELS = 45_000_000
"""Bytes that compiled kernels, packed operands and library code take once steps run, as `benchmarks/planner_memory.py` finds."""

_FRAGMENTS = 0.16
"""Share of what steps take that the allocator holds besides, between blocks that are in use; from the same measurements."""


@dataclass(frozen=True, kw_only=True)
class ProcessMemory:
    """The largest resident size of a process, predicted.

    Attributes:
        baseline: what the process has taken so far: Python, torch, and a model that is loaded.
        tensors: what comes on top: the steps, and weights that are not loaded yet.
        slack: kernels and what the allocator holds between blocks.
    """

    baseline: int
    tensors: int
    slack: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.baseline + self.tensors + self.slack


def predict_process(step: StepMemory, *, loaded: bool, baseline: int | None = None) -> ProcessMemory:
    """The largest resident size of this process if it ran the steps on a CPU.

    Args:
        step: of the steps.
        loaded: whether model and batch are in memory already.
        baseline: of another process that is to run them; None takes this one's.
    """
    taken = resident_bytes() if baseline is None else baseline
    tensors = step.above_start if loaded else step.peak
    return ProcessMemory(baseline=taken, tensors=tensors, slack=_KERNELS + int(_FRAGMENTS * step.above_start))


def room_for_steps(memory: int, baseline: int) -> int:
    """Bytes that steps may take above what is there before them, if the process is to stay within `memory`; may be negative."""
    return int((memory - baseline - _KERNELS) / (1 + _FRAGMENTS))


def resident_bytes() -> int:
    """The resident size of this process at present; where the system does not tell it, the largest so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return process_peak_bytes()
    return pages * resource.getpagesize()
