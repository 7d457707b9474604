"""Children that are forked from a process which has imported torch already, so that thousands can be started and killed."""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

REFUSED = 74
"""Exit code of a child that the system refused something."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a child ended.

    Attributes:
        code: its exit code, or minus the number of the signal that killed it.
        told: the last number it sent, or 0.
        seconds: from its start.
    """

    code: int
    told: int
    seconds: float


def forked(work: Callable[[int], None], *, kill_after: float | None = None, log: Path | None = None) -> Ended:
    """Runs `work` in a child, which is handed a descriptor to send 4-byte numbers to.

    Args:
        work: what the child does; it exits with 0 behind it, with `REFUSED` after an OSError, with 1 after another one.
        kill_after: seconds until SIGKILL; None waits for its end.
        log: where its standard error goes; None drops it.
    """
    read, write = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(read)
        _be_child(work, write, log)
    os.close(write)
    told = bytearray()
    with os.fdopen(read, "rb", buffering=0) as pipe:
        if kill_after is not None:
            time.sleep(kill_after)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        while data := pipe.read(1 << 16):
            told += data
    status = os.waitpid(child, 0)[1]
    whole = len(told) // 4 * 4
    last = int.from_bytes(told[whole - 4 : whole], "little") if whole else 0
    return Ended(code=os.waitstatus_to_exitcode(status), told=last, seconds=time.monotonic() - began)


def _be_child(work: Callable[[int], None], write: int, log: Path | None) -> None:
    code = 1
    try:
        target = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, 1)
        os.dup2(target, 2)
        sys.stdout = sys.stderr = os.fdopen(2, "w")
        work(write)
        code = 0
    except OSError as error:
        print(f"OSError: {error}", file=sys.stderr)
        code = REFUSED
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        with suppress(OSError):
            sys.stderr.flush()
        os._exit(code)
