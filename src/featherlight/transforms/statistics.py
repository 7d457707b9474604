"""Running statistics in a pass that is made a second time: whoever recomputes a part says so, and what counts batches listens.

Activation checkpointing runs a part of the model again for its backward pass. Such a pass must read the statistics of batches as
the first one did and must not move them again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_FROZEN: ContextVar[bool] = ContextVar("frozen_statistics", default=False)


@contextmanager
def frozen_statistics() -> Iterator[None]:
    """Inside the block nothing that follows batches moves: ranges of fake quantizers stay, and so do those of BatchNorm.

    Modules of this package ask `statistics_are_frozen`; layers of torch do not, so that whoever recomputes a `BatchNorm` of
    torch keeps its buffers himself. The block holds for the thread, or task, that opened it; a backward pass may run in
    another, where the block has to be opened again.
    """
    token = _FROZEN.set(True)
    try:
        yield
    finally:
        _FROZEN.reset(token)


def statistics_are_frozen() -> bool:
    """Whether this is a pass that is made a second time."""
    return _FROZEN.get()
