"""Counters of the work a run does, kept by the code that does it, and peaks of memory."""

import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


@dataclass(kw_only=True)
class Meter:
    """What has been done so far. Objectives, optimizers and journals that are handed one add to it.

    Attributes:
        example_forwards: examples that went through a forward pass.
        backward_passes: examples that went through a backward pass.
        tokens: real (unpadded) tokens that went through a forward pass, where the data has tokens.
        weight_passes: trained weights written once, in units of all trained weights.
        random_words: words of 32 bits drawn from a generator.
        bytes_written: bytes handed to the file system.
    """

    example_forwards: int = 0
    backward_passes: int = 0
    tokens: int = 0
    weight_passes: float = 0.0
    random_words: int = 0
    bytes_written: int = 0

    def as_dict(self) -> dict[str, float]:
        """The counters by name."""
        return asdict(self)

    def set(self, counts: Mapping[str, Any]) -> None:
        """Goes on from what `as_dict` returned earlier."""
        for name in self.as_dict().keys() & counts.keys():
            setattr(self, name, counts[name])


@dataclass(kw_only=True)
class AllocationPeak:
    """The peak of a block, filled in when it ends.

    Attributes:
        bytes: that tensors took at most, above what they took at its start.
        curve: what they took after each change, in order; empty on CUDA, whose allocator keeps none.
    """

    bytes: int = 0
    curve: list[int] = field(default_factory=list)


@contextmanager
def allocation_peak(device: torch.device | None = None) -> Iterator[AllocationPeak]:
    """Measures the peak of tensor memory within the block: the allocator's own count on CUDA, the profiler's on a CPU.

    Yields:
        An `AllocationPeak` whose `bytes` is set when the block ends.

    Cost: the profiler slows a CPU block down several times; measure one step, not a run.
    """
    peak = AllocationPeak()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield peak
    assert profiler.profiler is not None
    results: Any = profiler.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    current = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak.curve.append(current)
        peak.bytes = max(peak.bytes, current)


def process_peak_bytes() -> int:
    """The largest resident size of this process so far, in bytes.

    Linux's `ru_maxrss` of a child begins with the size of the process that started it, so its status is read there.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def saved_for_backward_bytes(forward: Callable[[], object]) -> int:
    """Bytes of activations that a forward pass keeps for its backward pass; parameters are not counted.

    Args:
        forward: runs the pass with gradients on and returns something that keeps its graph alive.
    """
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not tensor.is_leaf or not tensor.requires_grad:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = forward()
    del graph
    return sum(storages.values())
