"""The slow link of the benchmark in a few steps, and that nothing of it is left behind, after Ctrl-C too."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.slow_link import on_machines, row_of, star
from benchmarks.slow_network import Link, Network, is_possible
from tests.e2e.command_line import ROOT

pytestmark = pytest.mark.skipif(is_possible() is not None, reason=f"no slow link here: {is_possible()}")
FAST = Link(rate=1e7, round_trip=0.02, loss=0.02)


def namespaces() -> set[str]:
    folder = Path("/run/netns")
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def test_a_team_on_a_lossy_link_comes_to_the_same_weights_within_a_kilobyte_a_step(tmp_path: Path) -> None:
    measured, net = on_machines(star, 2, 8, tmp_path, FAST, with_folder=True)
    row = row_of("star", 2, measured, net, [0.0])
    assert row["digests_equal"]
    assert row["payload_bytes_per_worker_and_step"] <= 200
    assert row["wire_bytes_per_worker_and_step"] <= 1000
    assert not {name for name in namespaces() if name.startswith(f"fl-{os.getpid()}-")}


def test_packets_take_their_time_and_some_are_lost() -> None:
    net = Network(Link(rate=1e6, round_trip=0.1, loss=0.0), ["a", "b"], [0, 0])
    began = time.monotonic()
    arrivals = [net._arrival(0, 1, 0.01) for _ in range(60)]
    delays = [None if one is None else one - began for one in arrivals]
    assert delays[0] == pytest.approx(0.07, abs=0.005)
    assert delays[9] == pytest.approx(0.16, abs=0.01)
    assert delays[-1] is None, "the queue is full"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_behind(how: signal.Signals) -> None:
    """A program with a network that is interrupted in it."""
    program = (
        "import time\n"
        "from benchmarks.slow_network import Link, network\n"
        "with network(2, Link()):\n"
        "    print('up', flush=True)\n"
        "    time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        assert f"fl-{child.pid}-0" in namespaces()
        child.send_signal(how)
        assert child.wait(20) != 0
    assert not {name for name in namespaces() if name.startswith(f"fl-{child.pid}-")}
