"""What can happen to a team: kills, a stopped member, a partition, and random schedules of its model."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from benchmarks.slow_network import Link, Network, is_possible, network
from featherlight.trainer import read_journal
from tests.e2e.command_line import ROOT
from tests.e2e.shared_regression import Config
from tests.faults.campaigns import Outcome
from tests.faults.team_runs import RECIPE, Process, free_port, until

NOTICED = 10.0
"""Seconds within which a team is to notice that one is gone."""

_CONFIG = Config(method="zo", steps=80, pause=0.02)
_LONG = Config(method="zo", steps=100_000, pause=0.02)


def schedules(count: int) -> Outcome:
    """Random orders of everything, on a simulated clock and network."""
    from tests.properties.team_machine import TeamMachine

    given = settings(
        max_examples=count,
        stateful_step_count=50,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    failures = []
    try:
        run_state_machine_as_test(TeamMachine, settings=given)
    except Exception as error:
        failures.append(f"{type(error).__name__}: {error}")
    return Outcome(fault="random schedules of a team, simulated", tries=count, failures=failures)


def kills_in_teams(folder: Path, count: int, *, of_host: bool, seed: int = 0) -> Outcome:
    """SIGKILL of members, or of the host, at random times; who is gone starts again."""
    draw, failures, killed, teams = random.Random(seed), [], 0, 0
    while killed < count and not failures:
        teams += 1
        place = folder / "team"
        place.mkdir()
        port = free_port()
        ways = {"host": f"{port}"} | dict.fromkeys(("one", "two", "three"), f"127.0.0.1:{port}")
        running = {"host": Process.start(place / "host", _CONFIG, ways["host"])}
        kept, tries = 0, 0
        while not _is_over(place / "host") and tries < 200:
            tries += 1
            _start_again(running, ways, place)
            until(partial(_goes_on, running["host"], kept), 20)
            time.sleep(draw.uniform(0.0, 0.4))
            victim = "host" if of_host else draw.choice([name for name in running if name != "host"])
            if victim in running and not running[victim].has_ended:
                running[victim].kill()
                killed += 1
            records = running["host"].records
            if len(records) < kept:
                failures.append(f"team {teams}: of {kept} steps on the host's disk {len(records)} are left")
            kept = max(kept, len(records))
        failures += [f"team {teams}: {one}" for one in _compared(running, ways, place)]
        shutil.rmtree(place)
    fault = f"kill -9 of {'the host' if of_host else 'members'} of a team"
    return Outcome(fault=fault, tries=killed, failures=failures, note=f"{teams} teams")


def stopped_member(folder: Path) -> Outcome:
    """SIGSTOP: the others go on within ten seconds, and the one that wakes up finds itself out."""
    port = free_port()
    host = Process.start(folder / "host", _LONG, f"{port}+1")
    until(lambda: "waiting for 1 members" in host.said)
    member = Process.start(folder / "member", _LONG, f"127.0.0.1:{port}")
    until(lambda: len(host.records) > 5)
    os.kill(member.pid, signal.SIGSTOP)
    seconds = _seconds_until_alone(host)
    os.kill(member.pid, signal.SIGCONT)
    failures = [] if seconds <= NOTICED else [f"the others went on after {seconds:.1f} s"]
    if member.wait(15.0) != 130:
        failures.append(f"the member ended with {member.code}")
    failures += _ended(host)
    return Outcome(
        fault="SIGSTOP of a member of a team", tries=1, failures=failures, note=f"noticed in {seconds:.1f} s"
    )


def partition(folder: Path) -> Outcome:
    """A member is cut off: one history goes on, on the side of the host; the other stops, and comes back later."""
    with network(3, Link(rate=1e7, round_trip=0.01, loss=0.0)) as net:
        host = _start_on(net, 0, folder / "host", "29400+2")
        until(lambda: "waiting for 2 members" in host.said)
        near, far = (_start_on(net, n, folder / f"member-{n}", f"{net.address(0)}:29400") for n in (1, 2))
        until(lambda: len(host.records) > 5)
        net.cut.add(2)
        began = time.monotonic()
        went_on = until(lambda: host.records[-1].world == 2, NOTICED + 5)
        seconds = time.monotonic() - began
        failures = [] if went_on and seconds <= NOTICED else [f"the side of the host went on after {seconds:.1f} s"]
        if far.wait(NOTICED + 5) != 130 or "the host of the team is gone" not in far.said:
            failures.append(f"the other side ended with {far.code}")
        if not _is_beginning(far, host):
            failures.append("the side without the host has steps of its own")
        net.cut.clear()
        back = _start_on(net, 2, folder / "member-2", f"{net.address(0)}:29400")
        if not until(lambda: host.records[-1].world == 3):
            failures.append("the one that was cut off did not come back")
        failures += _ended(host)
        for one in (near, back):
            one.wait()
            failures += [] if _is_beginning(one, host) else ["a member has other steps than the host"]
    return Outcome(fault="a partition of a team", tries=1, failures=failures, note=f"noticed in {seconds:.1f} s")


def torchrun_restarts(folder: Path, count: int, seed: int = 0) -> Outcome:
    """SIGKILL of a process of a fixed group: torchrun's agent starts all again, and they go on from the journal."""
    draw, failures = random.Random(seed), []
    for number in range(count):
        out = folder / f"run-{number}"
        changes = ("method=zo", "steps=40", "pause=0.05")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += ["--max-restarts", "3", "-m", "featherlight.cli", "run", RECIPE, "--out", str(out)]
        command += [word for change in changes for word in ("--set", change)]
        agent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        journal = out / "journal"
        until(lambda journal=journal: journal.is_file() and len(read_journal(journal).records) > 5, 120)
        os.kill(draw.choice(_children(agent.pid)), signal.SIGKILL)
        try:
            code = agent.wait(180)
        except subprocess.TimeoutExpired:
            agent.terminate()
            code = agent.wait()
        records = read_journal(journal).records
        if code != 0 or len(records) != 40 or records[-1].epoch != 1:
            failures.append(f"the agent ended with {code} after {len(records)} steps in epoch {records[-1].epoch}")
    return Outcome(fault="kill -9 of a process of a group under torchrun", tries=count, failures=failures)


def is_network_possible() -> bool:
    """Whether there can be a partition here."""
    return is_possible() is None


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _start_on(net: Network, number: int, path: Path, team: str) -> Process:
    return Process.start(path, _LONG, team, namespace=net.names[number])


def _start_again(running: dict[str, Process], ways: dict[str, str], place: Path) -> None:
    for name, team in ways.items():
        if (name not in running or running[name].has_ended) and not _is_over(place / name):
            running[name] = Process.start(place / name, _CONFIG, team)


def _goes_on(host: Process, kept: int) -> bool:
    """Whether it has made a step since, or is through."""
    return len(host.records) > kept or host.has_ended


def _is_over(path: Path) -> bool:
    return (path / "manifest.json").is_file()


def _compared(running: dict[str, Process], ways: dict[str, str], place: Path) -> list[str]:
    """What is wrong when all have ended: members have the beginning of the host's steps, or all and its weights."""
    host = running["host"]
    host.wait()
    late = host.code == -signal.SIGKILL and _is_over(place / "host")  # all was on disk when it was killed
    found = [] if host.code == 0 or late else [f"the host ended with {host.code}: {host.said[-300:]}"]
    for name, process in running.items():
        process.wait(60)
        if process.records and not _is_beginning(process, host):
            found.append(f"{name} has other steps than the host")
        if _is_over(place / name) and process.weights != host.weights:
            found.append(f"{name} came to other weights")
    return found


def _is_beginning(process: Process, host: Process) -> bool:
    records: Sequence[dict] = [one.as_dict() for one in process.records]
    return records == [one.as_dict() for one in host.records[: len(records)]]


def _seconds_until_alone(host: Process) -> float:
    began = time.monotonic()
    until(lambda: host.records[-1].world == 1, NOTICED + 5)
    return time.monotonic() - began


def _ended(host: Process) -> list[str]:
    os.kill(host.pid, signal.SIGTERM)
    return [] if host.wait() == 130 else [f"the host ended with {host.code}"]
