"""Activation checkpointing under a budget of bytes: planned schedules beside `checkpoint_sequential` of torch, measured.

Peaks are what the profiler counts in one step forward and backward; times are seconds of the process on one thread.

    python -m benchmarks.planner [--short]
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from benchmarks.checkpointed_nets import NETS, Net, random_net, thousand_layers
from benchmarks.common import Row, in_turn, spread, target, write_results
from featherlight.meter import allocation_peak
from featherlight.planner.activation_checkpoint import least_budget
from featherlight.planner.training_chain import TrainingPlan, measured_chain, plan_measured
from featherlight.transforms.activation_checkpoint import ActivationCheckpoint

Step = Callable[[], object]


def peak_of(net: nn.Module, step: Step) -> int:
    """Bytes of tensors at most, above what is there before a step without gradients."""
    step()
    net.zero_grad(set_to_none=True)
    with allocation_peak() as peak:
        step()
    net.zero_grad(set_to_none=True)
    return peak.bytes


def prepared(net: Net, plan: TrainingPlan) -> ActivationCheckpoint:
    """The transform of a plan, in place."""
    transform = plan.transform()
    transform.prepare(net)
    return transform


def against_segments(name: str, net: Net, batch: Mapping[str, Tensor], rounds: int) -> list[Row]:
    """One chain at half of its full memory, and at the least."""
    plain, chain = net.step(batch), measured_chain(net, batch, net.losses, repeats=5)
    count = len(net.chain)
    full = peak_of(net, plain)
    by_segments = {k: peak_of(net, net.step(batch, segments=k)) for k in range(1, count + 1)}
    budget = full // 2
    fitting = [k for k, peak in by_segments.items() if peak <= budget]
    began = time.perf_counter()
    plan = plan_measured(chain, budget)
    planning = time.perf_counter() - began
    rows = [
        _timed(name, net, batch, plan, fitting, rounds)
        | {"full_bytes": full, "budget": budget, "planning_seconds": planning, "stages": count}
    ]
    least = plan_measured(chain, least_budget(chain.chain))
    transform = prepared(net, least)
    lowest = peak_of(net, plain)
    transform.convert(net)
    rows.append(
        {
            "part": "least memory",
            "chain": name,
            "planned_bytes": least.plan.peak_bytes,
            "bytes": lowest,
            "segments_bytes": min(by_segments.values()),
            "planned_extra_time": least.plan.seconds / least.full_seconds - 1,
            "ratio": lowest / min(by_segments.values()),
        }
    )
    return rows


def _timed(
    name: str, net: Net, batch: Mapping[str, Tensor], plan: TrainingPlan, fitting: Sequence[int], rounds: int
) -> Row:
    """Plain, planned, and the numbers of segments that fit, in turn; the fastest of those counts."""
    plain = net.step(batch)

    def planned() -> None:
        transform = prepared(net, plan)
        plain()
        transform.convert(net)

    sides: dict[str, Step] = {"plain": plain, "planned": planned}
    fewest = sorted(fitting)[:4]  # the fewer segments run again, the less time; a few to choose from
    most = [k for k in sorted(fitting)[-1:] if k not in fewest]
    sides |= {f"{k} segments": net.step(batch, segments=k) for k in [*fewest, *most]}
    seconds = in_turn(sides, rounds=rounds, clock=time.process_time)
    medians = {side: spread(taken)["median"] for side, taken in seconds.items()}
    best = min((side for side in sides if side.endswith("segments")), key=lambda side: medians[side])
    extra = {side: medians[side] / medians["plain"] - 1 for side in ("planned", best)}
    transform = prepared(net, plan)
    peak = peak_of(net, plain)
    transform.convert(net)
    return {
        "part": "half the memory",
        "chain": name,
        "seconds": {side: spread(taken) for side, taken in seconds.items()},
        "bytes": peak,
        "planned_bytes": plan.plan.peak_bytes,
        "proven": plan.plan.proven,
        "extra_time": extra["planned"],
        "planned_extra_time": plan.plan.seconds / plan.full_seconds - 1,
        "best_segments": best,
        "segments_extra_time": extra[best],
        "ratio": extra["planned"] / extra[best],
    }


def thousand(steps: int) -> Row:
    """A residual net of 1,000 layers, trained within a sixth of the memory of its plain run."""
    net, batch = thousand_layers()
    chain = measured_chain(net, batch, net.losses, repeats=1)
    full = peak_of(net, net.step(batch))
    began = time.perf_counter()
    plan = plan_measured(chain, full // 6)
    planning = time.perf_counter() - began
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    transform = prepared(net, plan)
    step, losses = net.step(batch), []
    peak = peak_of(net, step)
    for _ in range(steps):
        losses.append(float(step()))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    transform.convert(net)
    return {
        "part": "a thousand layers",
        "full_bytes": full,
        "planned_bytes": plan.plan.peak_bytes,
        "bytes": peak,
        "share": peak / full,
        "planned_extra_time": plan.plan.seconds / plan.full_seconds - 1,
        "planning_seconds": planning,
        "losses": losses,
    }


def random_chain(seed: int, rounds: int) -> Row:
    """One chain of stages of all kinds and sizes, under a budget between the least and the full."""
    generator = torch.Generator().manual_seed(seed)
    net, batch = random_net(generator)
    chain = measured_chain(net, batch, net.losses, repeats=5)
    least = least_budget(chain.chain)
    share = float(torch.rand((), generator=generator))
    plan = plan_measured(chain, int(least + share * (chain.full.peak_bytes - least)))
    transform = prepared(net, plan)
    step = net.step(batch)
    peak = peak_of(net, step)
    taken = in_turn({"planned": step}, rounds=rounds)["planned"] if rounds else []
    transform.convert(net)
    row: Row = {"part": "random chains", "seed": seed, "stages": len(net.chain), "share": share, "bytes": peak}
    row |= {"planned_bytes": plan.plan.peak_bytes, "planned_seconds": plan.plan.seconds, "proven": plan.plan.proven}
    return row | (
        {"seconds": spread(taken), "time_off": spread(taken)["median"] / plan.plan.seconds - 1} if taken else {}
    )


def main() -> None:
    """Runs all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer rounds and chains; a few minutes")
    short = parser.parse_args().short
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows: list[Row] = []
    for name, make in NETS.items():
        net, batch = make()
        rows += against_segments(name, net, batch, rounds=5 if short else 15)
        for row in rows[-2:]:
            print({key: value for key, value in row.items() if key != "seconds"}, flush=True)
    rows.append(thousand(steps=3 if short else 20))
    print(rows[-1], flush=True)
    chains = [random_chain(seed, rounds=7) for seed in range(20 if short else 100)]
    rows += chains
    over = max(row["bytes"] / row["planned_bytes"] for row in chains)
    off = sorted(abs(row["time_off"]) for row in chains)
    targets = [
        target(f"extra time beside segments, {row['chain']}", row["ratio"], "<=", 0.55, "of theirs")
        for row in rows
        if row["part"] == "half the memory"
    ]
    targets += [
        target(f"least memory beside segments, {row['chain']}", row["ratio"], "<=", 0.7, "of theirs")
        for row in rows
        if row["part"] == "least memory"
    ]
    halves = [row for row in rows if row["part"] == "half the memory"]
    targets += [
        target(f"peak within the budget, {row['chain']}", row["bytes"] / row["budget"], "<=", 1, "x") for row in halves
    ]
    share = next(row["share"] for row in rows if row["part"] == "a thousand layers")
    targets += [
        target("a thousand layers, of the full memory", share, "<=", 1 / 6, "x"),
        target("worst peak of random chains, of the planned", over, "<=", 1, "x"),
        target("time of random chains off the planned, median", off[len(off) // 2], "<=", 0.1, "x"),
        target("time of random chains off the planned, worst", off[-1], "<=", 0.1, "x"),
    ]
    write_results("planner", rows, targets)


if __name__ == "__main__":
    main()
