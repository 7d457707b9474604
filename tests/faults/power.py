"""A power cut: a disk image is copied while a run writes to it, mounted elsewhere, and searched for what was acknowledged."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.faults.campaigns import Outcome, reference, take_part
from tests.faults.processes import forked
from tests.faults.tiny_run import TinyConfig, is_over, result, steps_on_disk

_MEGABYTES = 24


def is_possible() -> bool:
    """Whether this process may make and mount a disk of its own."""
    if os.geteuid() != 0 or any(shutil.which(tool) is None for tool in ("mkfs.ext4", "mount", "umount", "losetup")):
        return False
    return subprocess.run(["losetup", "-f"], check=False, capture_output=True).returncode == 0


def power_cuts(folder: Path, count: int, seed: int = 0) -> Outcome:
    """Copies of the disk at random moments; what was acknowledged before the copy began must be in it."""
    config, draw = TinyConfig(method="zo"), random.Random(seed)
    expected, seconds = reference(folder, "zo")
    failures: list[str] = []
    for number in range(count):
        told = folder / "told"
        told.unlink(missing_ok=True)
        with _disk(folder / "disk") as (image, mounted):
            child = os.fork()
            if child == 0:
                _write(mounted / "run", config, told)
            time.sleep(draw.uniform(0.05, 1.0) * seconds)
            os.kill(
                child, signal.SIGSTOP
            )  # while it is copied, nothing may be flushed: a cut falls on the whole disk at once
            _, status = os.waitpid(child, os.WUNTRACED)
            acknowledged = told.stat().st_size if told.exists() else 0
            shutil.copyfile(image, folder / "cut.img")
            if os.WIFSTOPPED(status):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        failures += _after_the_cut(folder, config, acknowledged, expected, f"cut {number + 1}")
    return Outcome(fault="power cuts (ext4 image copied mid-run)", tries=count, failures=failures)


def _after_the_cut(folder: Path, config: TinyConfig, acknowledged: int, expected, where: str) -> Iterator[str]:
    with _mounted(folder / "cut.img", folder / "after") as after:
        path = after / "run"
        if not is_over(path, config):
            kept = steps_on_disk(path, config)
            if kept < acknowledged:
                yield f"{where}: {acknowledged - kept} of {acknowledged} acknowledged steps are lost"
            ended = forked(partial(take_part, path, config))
            if ended.code:
                yield f"{where}: could not be taken up (exit code {ended.code})"
        if not is_over(path, config) or not result(path).is_as(expected):
            yield f"{where}: came to other weights or measurements"


def _write(path: Path, config: TinyConfig, told: Path) -> None:
    """In the child: one byte in a file elsewhere for each step that is done."""
    code = 1
    try:
        read, write = os.pipe()
        if os.fork() == 0:
            os.close(write)
            with told.open("ab", buffering=0) as file:
                while data := os.read(read, 4):
                    file.write(b"." * (len(data) // 4))
            os._exit(0)
        os.close(read)
        take_part(path, config, write)
        code = 0
    finally:
        os._exit(code)


@contextmanager
def _disk(folder: Path) -> Iterator[tuple[Path, Path]]:
    folder.mkdir(exist_ok=True)
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(_MEGABYTES << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)
    with _mounted(image, folder / "mounted") as mounted:
        yield image, mounted


@contextmanager
def _mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True, capture_output=True)
    try:
        yield place
    finally:
        while subprocess.run(["umount", str(place)], check=False, capture_output=True).returncode:
            time.sleep(0.05)
