"""What can happen to a run, done to it again and again. Each campaign says how often it tried and what was lost."""

import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from featherlight.trainer import check_manifest
from featherlight.trainer.journal import parse_journal
from tests.faults.processes import REFUSED, forked
from tests.faults.tiny_run import STEPS, Result, TinyConfig, go, is_over, result, saved_weights, steps_on_disk

METHODS = ("zo", "adamw")
_MOST_TRIES = 400


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a campaign found.

    Attributes:
        fault: what was done.
        tries: how often.
        failures: a sentence for each time that something was lost or went wrong.
        note: what else was measured.
    """

    fault: str
    tries: int
    failures: list[str]
    note: str = ""


def reference(folder: Path, method: str) -> tuple[Result, float]:
    """What an undisturbed run comes to, and its seconds; this process has imported everything from then on."""
    folder.mkdir(parents=True, exist_ok=True)
    path, config = folder / f"whole-{method}", TinyConfig(method=method)  # pyright: ignore[reportArgumentType]
    go(folder / f"first-{method}", config)
    ended = forked(partial(take_part, path, config))
    assert ended.code == 0, f"the undisturbed run ended with {ended.code}"
    assert result(path) == result(folder / f"first-{method}")
    return result(path), ended.seconds


def kills(folder: Path, method: str, count: int, seed: int = 0) -> Outcome:
    """SIGKILL at random times of runs that start again by themselves until they are through."""
    expected, seconds = reference(folder, method)
    draw, failures, killed, runs, worst = random.Random(seed), [], 0, 0, 0
    config = TinyConfig(method=method)  # pyright: ignore[reportArgumentType]
    while killed < count:
        runs += 1
        path = folder / "run"
        acknowledged = tries = 0
        while not is_over(path, config):
            tries += 1
            if tries > _MOST_TRIES:
                failures.append(f"run {runs} was not through after {tries} starts")
                break
            ended = forked(partial(take_part, path, config), kill_after=draw.uniform(0, 1.1) * seconds)
            killed += ended.code == -signal.SIGKILL
            acknowledged = max(acknowledged, ended.told)
            if ended.code not in (0, -signal.SIGKILL):
                failures.append(f"run {runs} ended with {ended.code} at start {tries}")
                break
            failures += lost(path, config, acknowledged, f"run {runs}, start {tries}")
        worst = max(worst, tries)
        if is_over(path, config) and not result(path).is_as(expected):
            failures.append(f"run {runs} came to other weights or measurements")
        shutil.rmtree(path, ignore_errors=True)
    note = f"{runs} runs, at most {worst} starts each"
    return Outcome(fault=f"kill -9 at random times, {method}", tries=killed, failures=failures, note=note)


def signals(folder: Path) -> Outcome:
    """SIGTERM, Ctrl-C, Ctrl-C twice, and a stop of a while, in the middle of a run that is then taken up."""
    failures, tries = [], 0
    for method in METHODS:
        expected, _ = reference(folder / method, method)
        config = TinyConfig(method=method)  # pyright: ignore[reportArgumentType]
        for name, sent, codes in (
            ("SIGTERM", (signal.SIGTERM,), (0,)),
            ("Ctrl-C", (signal.SIGINT,), (0,)),
            ("Ctrl-C twice", (signal.SIGINT, signal.SIGINT), (0, 1)),
            ("SIGSTOP", (signal.SIGSTOP,), (0,)),
        ):
            tries += 1
            path = folder / method / name
            ended = forked(partial(_signalled, path, config, sent))
            if ended.code not in codes:
                failures.append(f"{name}, {method}: ended with {ended.code}")
            while not is_over(path, config) and forked(partial(take_part, path, config)).code == 0:
                pass
            if not is_over(path, config) or not result(path).is_as(expected):
                failures.append(f"{name}, {method}: did not go on to the same weights")
    return Outcome(fault="SIGTERM, Ctrl-C once and twice, SIGSTOP", tries=tries, failures=failures)


def short_writes(folder: Path, method: str, stride: int) -> Outcome:
    """A file may grow to so many bytes and no further, as on a full disk: the system writes a part of what was asked."""
    expected, _ = reference(folder, method)
    config = TinyConfig(method=method)  # pyright: ignore[reportArgumentType]
    largest = max(path.stat().st_size for path in (folder / f"whole-{method}").rglob("*") if path.is_file())
    failures, tries = [], 0
    for limit in range(1, largest, stride):
        tries += 1
        path = folder / "run"
        ended = forked(partial(_limited, path, config, limit))
        says_why = ended.code in (0, REFUSED) or method == "trainer"  # which promises no code
        if not says_why or (ended.code == 0 and not is_over(path, config)):
            failures.append(f"at {limit} bytes: ended with {ended.code}")
        failures += lost(path, config, ended.told, f"at {limit} bytes")
        failures += finish(path, config, expected, f"at {limit} bytes")
    return Outcome(fault=f"short writes, no room left, {method}", tries=tries, failures=failures)


def changed_runs(folder: Path) -> Outcome:
    """A run that is taken up with another config, other data, another base or another dtype is refused with a reason."""
    failures, tries = [], 0
    for method in METHODS:
        config = TinyConfig(method=method)  # pyright: ignore[reportArgumentType]
        path, log = folder / method, folder / f"{method}.log"
        forked(partial(_signalled, path, config, (signal.SIGTERM,)))
        before = {one: one.read_bytes() for one in path.rglob("*") if one.is_file() and one.name != ".lock"}
        for changed in (
            replace(config, data_seed=1),
            replace(config, seed=1),
            replace(config, dtype="bfloat16"),
            replace(config, steps=STEPS + 1),
        ):
            tries += 1
            log.unlink(missing_ok=True)
            ended = forked(partial(take_part, path, changed), log=log)
            said = log.read_text() if log.exists() else ""
            if ended.code != 1 or "ValueError" not in said:
                failures.append(f"{changed}: ended with {ended.code}, {said[-200:]!r}")
            if {one: one.read_bytes() for one in before} != before:
                failures.append(f"{changed}: a file was changed")
    return Outcome(fault="resume with another config, data, base, dtype", tries=tries, failures=failures)


def flips(folder: Path, corruptions: int, seed: int = 0) -> Outcome:
    """Every cut and every flipped bit of a journal and a manifest, and random ones of the weights."""
    reference(folder, "zo")
    run, failures = folder / "whole-zo", []
    journal = (run / "journal").read_bytes()
    tries = 0
    for what, data in _damaged(journal):
        tries += 1
        contents = _parsed(data)
        if contents is not None and contents.damage is None and len(data) not in _ends(journal):
            failures.append(f"the journal with {what} is taken for sound")
    manifest = run / "model" / "manifest.json"
    whole = manifest.read_bytes()
    for what, data in _damaged(whole):
        manifest.write_bytes(data)
        tries += 1
        if data != whole and _sound(run / "model") and data.rstrip() != whole.rstrip():
            failures.append(f"the manifest with {what} is taken for sound")
    manifest.write_bytes(whole)
    weights, draw = run / "model" / "model.safetensors", random.Random(seed)
    sound = weights.read_bytes()
    for _ in range(corruptions):
        tries += 1
        data = bytearray(sound)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        weights.write_bytes(data)
        if _sound(run / "model") and data != sound:
            failures.append("altered weights are taken for sound")
    weights.write_bytes(sound)
    return Outcome(fault="cuts and flipped bits of journal, manifest, weights", tries=tries, failures=failures)


def mutations(folder: Path, count: int, seed: int = 0) -> Outcome:
    """Mutated inputs of all our parsers, mostly with sound checksums: each is read or refused with a sentence, never worse."""
    from tests.faults.mutants import subjects

    reference(folder, "zo")
    draw, failures, notes = random.Random(seed), [], []
    found = subjects((folder / "whole-zo" / "journal").read_bytes(), folder)
    each = -(-count // len(found))
    for name, subject in found.items():
        longest, refused = 0.0, 0
        for _ in range(each):
            data = subject.make(draw)
            began = time.perf_counter()
            try:
                subject.read(data)
            except ValueError:
                refused += 1
            except Exception as error:
                failures.append(f"{name}: {type(error).__name__}: {error} ({data[:200]!r})")
            longest = max(longest, time.perf_counter() - began)
        notes.append(f"{name} {refused / each:.0%} refused, at most {1000 * longest:.0f} ms")
    fault = "mutated inputs through every parser of our own"
    return Outcome(fault=fault, tries=each * len(found), failures=failures, note="; ".join(notes))


def altered_saves(folder: Path, method: str, count: int, seed: int = 0) -> Outcome:
    """A bit is flipped in the weights that a killed run would go on from: it says so, or goes on from others to the same end."""
    expected, seconds = reference(folder, method)
    config = TinyConfig(method=method)  # pyright: ignore[reportArgumentType]
    draw, failures, tries, refused, path = random.Random(seed), [], 0, 0, folder / "run"
    while tries < count:
        forked(partial(take_part, path, config), kill_after=draw.uniform(0.3, 0.9) * seconds)
        try:
            save = None if is_over(path, config) else saved_weights(path, config)
        except ValueError:
            save = None
        if save is not None and save.is_file():
            tries += 1
            _flip_a_bit_of_weights(save, draw)
            log = folder / "log"
            log.unlink(missing_ok=True)
            ended = forked(partial(take_part, path, config), log=log)
            says_why = method == "trainer" or "ValueError: " in log.read_text()
            refused += ended.code != 0
            if ended.code != 0 and not says_why:
                failures.append(f"try {tries}: ended with {ended.code}, {log.read_text()[-200:]!r}")
            if ended.code == 0 and not result(path).is_as(expected):
                failures.append(f"try {tries}: went on from altered weights to others than an undisturbed run's")
        shutil.rmtree(path, ignore_errors=True)
    fault = f"a flipped bit in saved weights, {method}"
    return Outcome(fault=fault, tries=tries, failures=failures, note=f"refused: {refused}")


def _flip_a_bit_of_weights(path: Path, draw: random.Random) -> None:
    """In a safetensors file; of a save of ours, in a tensor of the model."""
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    ours = "featherlight" in header.pop("__metadata__", {})
    places = [one["data_offsets"] for name, one in header.items() if name.startswith("model.") or not ours]
    low, high = draw.choice([(low, high) for low, high in places if high > low])
    data[start + draw.randrange(low, high)] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def take_part(path: Path, config: TinyConfig, told: int) -> None:
    go(path, config, told)


def _signalled(path: Path, config: TinyConfig, sent: tuple[signal.Signals, ...], told: int) -> None:
    """Sends itself signals after a third of the steps; a stopped one is woken by a child of its own."""
    from featherlight.trainer import loop

    tick, fired = loop.Clock.tick, []

    def ticked(clock: loop.Clock, seconds: float) -> None:
        tick(clock, seconds)
        if clock.step >= STEPS // 3 and not fired:
            fired.append(True)
            if signal.SIGSTOP in sent and os.fork() == 0:
                time.sleep(0.3)
                os.kill(os.getppid(), signal.SIGCONT)
                os._exit(0)
            for one in sent:
                os.kill(os.getpid(), one)

    loop.Clock.tick = ticked
    go(path, config, told)


def _limited(path: Path, config: TinyConfig, limit: int, told: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    go(path, config, told)


def lost(path: Path, config: TinyConfig, acknowledged: int, where: str) -> Iterator[str]:
    """What is missing of the steps that were acknowledged; a run with saves promises only that one of them is sound."""
    if is_over(path, config):
        return
    try:
        kept = steps_on_disk(path, config)
    except ValueError as error:
        yield f"{where}: {error}"
        return
    if config.method == "zo" and kept < acknowledged:
        yield f"{where}: {acknowledged - kept} acknowledged steps are lost"


def finish(path: Path, config: TinyConfig, expected: Result, where: str) -> Iterator[str]:
    """Takes a run up without faults and removes it."""
    if not is_over(path, config):
        ended = forked(partial(take_part, path, config))
        if ended.code:
            yield f"{where}: could not be taken up (exit code {ended.code})"
    if is_over(path, config) and not result(path).is_as(expected):
        yield f"{where}: came to other weights or measurements"
    shutil.rmtree(path, ignore_errors=True)


def _damaged(data: bytes) -> Iterator[tuple[str, bytes]]:
    for place in range(len(data)):
        yield f"all behind byte {place} cut off", data[:place]
        for bit in range(8):
            yield (
                f"bit {bit} of byte {place} flipped",
                data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :],
            )


def _parsed(data: bytes):
    try:
        return parse_journal(data, Path("journal"))
    except ValueError:
        return None


def _ends(journal: bytes) -> set[int]:
    """Lengths at which a journal ends with a whole record."""
    ends, length = set(), len(journal)
    while (contents := _parsed(journal[:length])) is not None:
        ends.add(contents.intact_bytes)
        length = contents.intact_bytes - 1
    return ends


def _sound(folder: Path) -> bool:
    try:
        return not check_manifest(folder)
    except ValueError:
        return False
