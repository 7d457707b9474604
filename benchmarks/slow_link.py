"""Training over a slow link: 2 to 4 machines at 1 Mbit/s, 100 ms round trip and 1% loss, on network namespaces. Needs root.

Sides, on the same model and the same links, by turns: the star of `--team`, the all-gather of a fixed group on gloo, and
DistributedDataParallel with SGD on gloo. A step's added time is what it takes beyond one of a process alone.

    python -m benchmarks.slow_link [--short]
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.common import Row, spread, target, write_results
from benchmarks.slow_network import DEVICE, Link, Network, is_possible, network
from featherlight.meter import Meter
from featherlight.objective import BatchObjective
from featherlight.optim import RankOneSigns, SpreadNormalized, ZerothOrderSGD
from featherlight.trainer import JournalWriter, World, weights_digest
from featherlight.trainer.team import HostGather, MemberGather, Switchboard, listen

BATCH, DIRECTIONS, WIDTH = 8, 8, 64
PORT = 29400
LINK = Link()
FACTS = {"model": "perceptron"}


def make_model() -> nn.Sequential:
    """50,000 weights, the same in every process."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 256), nn.Tanh(), nn.Linear(256, 128), nn.Tanh(), nn.Linear(128, 1))


def squared_error(model: nn.Module, batch: Any) -> torch.Tensor:
    """Of each row."""
    return (model(batch["x"]) - batch["y"]).square().mean(-1)


def batch_of(number: int) -> dict[str, torch.Tensor]:
    """The rows of a batch."""
    x = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(number))
    return {"x": x, "y": x[:, :1].sin()}


class Measures:
    """Seconds of each step, and what the process came to.

    Args:
        path: of a file, for the process that collects them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: list[float] = []

    def timed(self, step: Callable[[], object]) -> None:
        """Does a step."""
        began = time.perf_counter()
        step()
        self.seconds.append(time.perf_counter() - began)

    def write(self, model: nn.Module, **more: Any) -> None:
        """Keeps them."""
        row = {"seconds": self.seconds, "digest": weights_digest(dict(model.named_parameters()))} | more
        self.path.write_text(json.dumps(row))


def optimizer_for(model: nn.Module) -> ZerothOrderSGD:
    """Forward-only, one direction an example."""
    return ZerothOrderSGD(model, 1e-2, directions=RankOneSigns(DIRECTIONS), normalize=SpreadNormalized())


def alone(measures: Measures, steps: int, folder: Path) -> None:
    """One process without others."""
    model = make_model()
    optimizer = optimizer_for(model)
    optimizer.journal = JournalWriter(folder / "journal", header={}, fitted={}, meter=Meter())
    for step in range(steps):
        objective = BatchObjective(model, batch_of(step), squared_error)
        measures.timed(lambda objective=objective: optimizer.step(objective))
    measures.write(model)


def star(measures: Measures, steps: int, folder: Path, rank: int, size: int, address: str) -> None:
    """A host, which is process 0, and members."""
    model = make_model()
    optimizer = optimizer_for(model)
    journal = JournalWriter(folder / f"journal-{rank}", header={}, fitted={}, meter=Meter())
    given = {"facts": FACTS, "records": (), "digest_every": 50}
    journal.flushes = rank == 0
    if rank == 0:
        board = Switchboard(listen("", PORT))
        gather = HostGather(board, optimizer, journal, **given)
        optimizer.journal = gather
        gather.wait_for(size - 1)
    else:
        board = Switchboard()
        gather = MemberGather(board, _dial(board, address), optimizer, journal, **given)
        gather.catch_up()
        optimizer.journal = journal
    optimizer.gather = gather
    before = board.bytes_sent, board.bytes_received
    for step in range(steps):
        objective = BatchObjective(model, batch_of(gather.draw(step)), squared_error)
        measures.timed(lambda objective=objective: optimizer.step(objective))
    sent, received = board.bytes_sent - before[0], board.bytes_received - before[1]
    gather.finish("finished")
    gather.close()
    measures.write(model, payload_sent=sent, payload_received=received)


def gloo(measures: Measures, steps: int, rank: int, size: int, address: str) -> None:
    """A fixed group: an all-gather of torch.distributed."""
    _join_gloo(rank, size, address)
    model = make_model()
    optimizer = optimizer_for(model)
    world = World(rank=rank, size=size)
    gather = world.enlist(optimizer, seconds=0.0, epoch=0, draws=0, digest_every=50)
    assert gather is not None, "there are several processes"
    for step in range(steps):
        objective = BatchObjective(model, batch_of(gather.draw(step)), squared_error)
        measures.timed(lambda objective=objective: optimizer.step(objective))
    dist.destroy_process_group()
    measures.write(model)


def ddp(measures: Measures, steps: int, rank: int, size: int, address: str) -> None:
    """Gradients, summed by DistributedDataParallel."""
    _join_gloo(rank, size, address)
    model = make_model()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)

    def step(number: int) -> None:
        optimizer.zero_grad()
        squared_error(wrapped, batch_of(number * size + rank)).mean().backward()
        optimizer.step()

    for number in range(steps):
        measures.timed(lambda number=number: step(number))
    dist.destroy_process_group()
    measures.write(model)


def _join_gloo(rank: int, size: int, address: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = DEVICE
    dist.init_process_group("gloo", init_method=f"tcp://{address}:{PORT}", rank=rank, world_size=size)


def _dial(board: Switchboard, address: str) -> int:
    for _ in range(50):
        try:
            return board.dial(address, PORT)
        except OSError:
            time.sleep(0.1)
    return board.dial(address, PORT)


def on_machines(
    side: Callable[..., None], size: int, steps: int, folder: Path, link: Link, *, with_folder: bool
) -> tuple[list[Row], Network]:
    """What each process of a side measured, on a network of its own."""
    with network(size, link) as net:
        pids = []
        try:
            for rank in range(size):
                measures = Measures(folder / f"{rank}.json")
                more = (folder,) if with_folder else ()
                arguments = (measures, steps, *more, rank, size, net.address(0))
                pids.append(net.start(rank, lambda arguments=arguments: side(*arguments)))
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
            pids.clear()
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
    if any(codes):
        raise SystemExit(f"processes of {side.__name__} ended with {codes}")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)], net


def row_of(name: str, size: int, measured: Sequence[Row], net: Network, own: Sequence[float]) -> Row:
    """One line of the table; `own` are the seconds of steps of a process alone."""
    seconds = measured[0]["seconds"][1:]
    steps = len(measured[0]["seconds"])
    typical = spread(own)["median"]
    added = [(one - typical) / LINK.round_trip for one in seconds]
    mean = statistics.fmean(seconds) - statistics.fmean(own)
    wire = sum(one.sent for one in net.traffic) / size / steps
    row = {
        "side": name,
        "workers": size,
        "steps": steps,
        "seconds": spread(seconds),
        "added_round_trips_mean": mean / LINK.round_trip,
        "added_round_trips": spread(added),
        "wire_bytes_per_worker_and_step": wire,
        "wire_bytes_of_each": [(one.sent + one.received) / steps for one in net.traffic],
        "packets": sum(one.packets for one in net.traffic),
        "dropped": sum(one.dropped for one in net.traffic),
        "digests_equal": len({one["digest"] for one in measured}) == 1,
    }
    if "payload_sent" in measured[0]:
        row["payload_bytes_per_worker_and_step"] = sum(one["payload_sent"] for one in measured) / size / steps
        row["payload_bytes_of_each"] = [(o["payload_sent"] + o["payload_received"]) / steps for o in measured]
    return row


def measure(short: bool) -> list[Row]:
    """All sides."""
    steps, few = (40, 2) if short else (200, 6)
    rows = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        own = folder / "own"
        own.mkdir()
        pid = os.fork()
        if pid == 0:
            alone(Measures(own / "0.json"), steps, own)
            os._exit(0)
        os.waitpid(pid, 0)
        single = json.loads((own / "0.json").read_text())["seconds"]
        rows.append({"side": "alone", "workers": 1, "steps": steps, "seconds": spread(single[1:])})
        for size in (2, 3, 4):
            for side, count, with_folder in ((star, steps, True), (gloo, steps // 2, False), (ddp, few, False)):
                place = folder / f"{side.__name__}-{size}"
                place.mkdir()
                measured, net = on_machines(side, size, count, place, LINK, with_folder=with_folder)
                rows.append(row_of(side.__name__, size, measured, net, single[1:]))
                print(rows[-1], flush=True)
    return rows


def targets_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What was asked for."""
    found = []
    stars = {row["workers"]: row for row in rows if row["side"] == "star"}
    for size, most in ((2, 1.2), (4, 2.0)):
        name = f"added time a step, {size} workers"
        found.append(target(name, stars[size]["added_round_trips_mean"], "<=", most, "round trips"))
    for size, row in stars.items():
        payload, wire = row["payload_bytes_per_worker_and_step"], row["wire_bytes_per_worker_and_step"]
        found.append(target(f"payload a worker and step, {size} workers", payload, "<=", 200, "B"))
        found.append(target(f"on the wire a worker and step, {size} workers", wire, "<=", 1000, "B"))
    equal = sum(not row.get("digests_equal", True) for row in rows)
    return [*found, target("sides whose digests differ", equal, "<=", 0, "sides")]


def show(rows: Sequence[Row]) -> None:
    """The table."""
    table = Table("side", "workers", "ms a step", "added round trips", "payload B", "on the wire B", "digests")
    for row in rows:
        added = f"{row['added_round_trips_mean']:.2f}" if "added_round_trips_mean" in row else ""
        payload = (
            f"{row['payload_bytes_per_worker_and_step']:.0f}" if "payload_bytes_per_worker_and_step" in row else ""
        )
        wire = f"{row['wire_bytes_per_worker_and_step']:,.0f}" if "wire_bytes_per_worker_and_step" in row else ""
        equal = {True: "equal", False: "DIFFER", None: ""}[row.get("digests_equal")]
        median = f"{1000 * row['seconds']['median']:,.1f}"
        table.add_row(row["side"], str(row["workers"]), median, added, payload, wire, equal)
    Console().print(table)


def main() -> None:
    """Measures, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer steps")
    short = parser.parse_args().short
    if (reason := is_possible()) is not None:
        sys.exit(f"there can be no slow link here: {reason}.")
    torch.set_num_threads(1)
    rows = measure(short)
    show(rows)
    write_results("slow_link_short" if short else "slow_link", rows, targets_of(rows))


if __name__ == "__main__":
    main()
