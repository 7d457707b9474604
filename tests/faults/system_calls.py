"""Faults put into the system calls of a run by strace: killed at every one, refused at every one; and what it never calls."""

import os
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

from tests.faults.campaigns import Outcome, finish, lost, reference, take_part
from tests.faults.processes import REFUSED, forked
from tests.faults.tiny_run import TinyConfig, is_over

WRITING = "write,pwrite64,openat,fsync,fdatasync,ftruncate,rename,renameat,renameat2,mkdir,unlink,unlinkat,rmdir"
ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EMFILE")
_MOST_CALLS = 100_000


def is_possible() -> bool:
    """Whether strace is there and may attach to a child."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", "/dev/null", "true"], check=False, capture_output=True).returncode == 0


def kill_at_every_call(folder: Path, method: str, stride: int) -> Outcome:
    """SIGKILL at the first, second, ... call that writes, opens, flushes, renames or removes; every `stride`-th is tried."""
    expected, _ = reference(folder, method)
    config = TinyConfig(method=method)  # pyright: ignore[reportArgumentType]
    failures, tries = [], 0
    for number in range(1, _MOST_CALLS, stride):
        path = folder / "run"
        where = f"call {number}"
        ended = forked(partial(_traced, path, config, f"inject={WRITING}:signal=KILL:when={number}", folder))
        if ended.code == 0:
            failures += finish(path, config, expected, where)
            break
        tries += 1
        if ended.code != -signal.SIGKILL:
            failures.append(f"{where}: ended with {ended.code}")
        failures += lost(path, config, ended.told, where)
        failures += finish(path, config, expected, where)
    return Outcome(fault=f"kill -9 at each writing call, {method}", tries=tries, failures=failures)


def refuse_from_every_call(folder: Path, method: str, error: str, stride: int) -> Outcome:
    """From some call on the system refuses all further ones of its kind with an error, as a full disk does."""
    expected, _ = reference(folder, method)
    config = TinyConfig(method=method)  # pyright: ignore[reportArgumentType]
    calls = "openat" if error == "EMFILE" else "write,pwrite64,fsync,fdatasync,ftruncate,rename,mkdir"
    failures, tries = [], 0
    for number in range(1, _MOST_CALLS, stride):
        path = folder / "run"
        where = f"{error} from call {number}"
        ended = forked(partial(_traced, path, config, f"inject={calls}:error={error}:when={number}+", folder))
        if ended.code == 0 and is_over(path, config):
            failures += finish(path, config, expected, where)
            break
        tries += 1
        if ended.code not in (1, REFUSED):
            failures.append(f"{where}: ended with {ended.code}")
        failures += lost(path, config, ended.told, where)
        failures += finish(path, config, expected, where)
    return Outcome(fault=f"{error} from each call on, {method}", tries=tries, failures=failures)


def network(folder: Path) -> Outcome:
    """A run opens no socket of the internet."""
    reference(folder, "zo")
    log = folder / "network"
    forked(partial(_traced, folder / "run", TinyConfig(), "trace=network", folder))
    calls = log.read_text().splitlines()
    failures = [line for line in calls if "AF_INET" in line]
    return Outcome(fault="sockets of the internet in a default run", tries=1, failures=failures)


def _traced(path: Path, config: TinyConfig, expression: str, folder: Path, told: int) -> None:
    """Goes on when strace is attached to this very process."""
    child = os.getpid()
    log = folder / "network"
    log.unlink(missing_ok=True)
    command = ["strace", "-f", "-q", "-o", str(log), "-e", expression, "-p", str(child)]
    tracer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=True)
    deadline = time.monotonic() + 20
    while _tracer_of(child) == 0:
        if tracer.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("strace could not be attached")
        time.sleep(0.002)
    take_part(path, config, told)


def _tracer_of(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("TracerPid:")))
