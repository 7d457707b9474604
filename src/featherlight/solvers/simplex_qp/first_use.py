"""The first use of a compiled kernel, which may take seconds, is not silent."""

import sys
from collections.abc import Callable
from functools import lru_cache
from threading import Timer
from typing import Any

import torch

_PATIENCE = 2.0
"""Seconds that pass in silence; a kernel that an earlier process compiled is loaded in less."""


def compile_once(kernel: Any, dtype: torch.dtype, call: Callable[[], None]) -> None:
    """Compiles a kernel for a dtype where that has not been done, and says so on standard error where it takes long.

    Compiled code is kept beside the package, or where `NUMBA_CACHE_DIR` says, for later processes.

    Args:
        kernel: a function compiled by numba, for arrays of float64 and of this dtype.
        dtype: float32 or float64.
        call: calls the kernel, and others that are to be ready with it, on no rows.
    """
    if _is_compiled(kernel, len(kernel.signatures), dtype == torch.float32):
        return
    timer = Timer(_PATIENCE, _say)
    timer.daemon = True
    timer.start()
    try:
        call()
    finally:
        timer.cancel()


@lru_cache
def _is_compiled(kernel: Any, count: int, single: bool) -> bool:
    """Whether one of the `count` signatures so far is for float32, or for float64 alone."""
    return any(("float32" in str(signature)) == single for signature in kernel.signatures[:count])


def _say() -> None:
    sys.stderr.write("featherlight: compiling the simplex solver; about 10 seconds, the first time on this machine.\n")
    sys.stderr.flush()
