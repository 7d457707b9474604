"""Activation checkpointing under a budget of bytes: planned schedules beside `checkpoint_sequential` of torch, measured.

Peaks are what the profiler counts in one step forward and backward. Times are seconds of the process on one thread; the fastest
round of each side counts, since whatever else runs on the machine only adds.

    python -m benchmarks.planner [--short] [--minutes M]
"""

import argparse
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.checkpointed_nets import NETS, Batch, Net, random_net, thousand_layers
from benchmarks.common import RESULTS, FinishedRuns, OutOfTimeError, Row, in_turn, spread, target, write_results
from featherlight.meter import allocation_peak
from featherlight.planner.activation_checkpoint import least_budget
from featherlight.planner.chain import usage
from featherlight.planner.training_chain import TrainingChain, TrainingPlan, measured_chain, plan_measured
from featherlight.transforms.activation_checkpoint import ActivationCheckpoint
from featherlight.transforms.activation_checkpoint_schedule import Action, Op, Schedule, segments

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


def whole(chain: TrainingChain, segments_of: int) -> Schedule:
    """The schedule of `checkpoint_sequential` with what comes before and after the chain, which is taped."""
    count = len(chain.stages)
    inner = [Op(action, stage + 1) for action, stage in segments(count, segments_of)]
    ends = [Op(Action.TAPE, count + 1), Op(Action.BACK, count + 1)]
    return (Op(Action.TAPE, 0), *inner[:count], *ends, *inner[count:], Op(Action.BACK, 0))


def against_segments(name: str, net: Net, batch: Mapping[str, Tensor], rounds: int) -> Row:
    """One chain at half of its full memory, and at the least.

    Of the numbers of segments those are measured that are the best by calculation: for memory, and for time in the budget.
    """
    plain, chain = net.step(batch), measured_chain(net, batch, net.losses, repeats=5, clock=time.process_time)
    count = len(net.chain)
    full = peak_of(net, plain)
    reckoned = {k: usage(chain.chain, whole(chain, k)) for k in range(1, count + 1)}
    leanest = sorted(reckoned, key=lambda k: reckoned[k].peak_bytes)[:6]
    in_budget = [k for k in reckoned if reckoned[k].peak_bytes <= 1.03 * full / 2]
    quickest = sorted(in_budget, key=lambda k: reckoned[k].seconds)[:6]
    peaks = {k: peak_of(net, net.step(batch, segments=k)) for k in sorted({*leanest, *quickest})}
    budget = full // 2
    began = time.perf_counter()
    plan = plan_measured(chain, budget)
    row: Row = {"stages": count, "full_bytes": full, "budget": budget, "planning_seconds": time.perf_counter() - began}
    fitting = [k for k in quickest if peaks[k] <= budget][:4]
    row |= _timed(net, batch, plan, fitting, rounds)
    row["segments_reckoned_extra_time"] = min(reckoned[k].seconds for k in fitting) / plan.full_seconds - 1
    least = plan_measured(chain, least_budget(chain.chain))
    transform = prepared(net, least)
    lowest, theirs = peak_of(net, plain), min(peaks.values())
    transform.convert(net)
    return row | {
        "least_bytes": lowest,
        "least_planned_bytes": least.plan.peak_bytes,
        "least_planned_extra_time": least.plan.seconds / least.full_seconds - 1,
        "least_segments_bytes": theirs,
        "least_ratio": lowest / theirs,
    }


def _timed(net: Net, batch: Mapping[str, Tensor], plan: TrainingPlan, fitting: Sequence[int], rounds: int) -> Row:
    """Plain, planned, and the numbers of segments that fit, in turn; the fastest of those counts.

    A copy carries the plan through all rounds, as a net does that is trained under one.
    """
    planned = copy.deepcopy(net)
    prepared(planned, plan)
    sides: dict[str, Step] = {"plain": net.step(batch), "planned": planned.step(batch)}
    sides |= {f"{k} segments": net.step(batch, segments=k) for k in fitting}
    seconds = in_turn(sides, rounds=rounds, clock=time.process_time)
    fastest = {side: min(taken) for side, taken in seconds.items()}
    best = min((side for side in sides if side.endswith("segments")), key=lambda side: fastest[side])
    extra = {side: fastest[side] / fastest["plain"] - 1 for side in ("planned", best)}
    return {
        "seconds": {side: spread(taken) for side, taken in seconds.items()},
        "bytes": peak_of(planned, sides["planned"]),
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
    chain = measured_chain(net, batch, net.losses, repeats=1, clock=time.process_time)
    full = peak_of(net, net.step(batch))
    began = time.perf_counter()
    plan = plan_measured(chain, full // 6)
    planning = time.perf_counter() - began
    optimizer = torch.optim.SGD(net.parameters(), lr=0.002)
    transform = prepared(net, plan)
    step, losses = net.step(batch), []
    peak = peak_of(net, step)
    for _ in range(steps):
        losses.append(float(step()))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    transform.convert(net)
    return {
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
    chain = measured_chain(net, batch, net.losses, repeats=5, clock=time.process_time)
    least = least_budget(chain.chain)
    share = float(torch.rand((), generator=generator))
    plan = plan_measured(chain, int(least + share * (chain.full.peak_bytes - least)))
    transform = prepared(net, plan)
    step = net.step(batch)
    peak = peak_of(net, step)
    taken = in_turn({"planned": step}, rounds=rounds, clock=time.process_time)["planned"]
    transform.convert(net)
    row: Row = {"stages": len(net.chain), "share": share, "bytes": peak, "planned_bytes": plan.plan.peak_bytes}
    row |= {"planned_seconds": plan.plan.seconds, "proven": plan.plan.proven, "seconds": spread(taken)}
    return row | {"time_off": min(taken) / plan.plan.seconds - 1}


def targets_of(rows: Sequence[Row]) -> list[Row]:
    """The figures that were asked for."""
    found = []
    for row in (row for row in rows if row["part"] == "beside segments"):
        chain = row["chain"]
        found.append(
            target(f"extra time beside segments at half the memory, {chain}", row["ratio"], "<=", 0.55, "of theirs")
        )
        found.append(target(f"peak in the budget, {chain}", row["bytes"] / row["budget"], "<=", 1, "x"))
        found.append(target(f"least memory beside segments, {chain}", row["least_ratio"], "<=", 0.7, "of theirs"))
    found += [
        target("a thousand layers, of the full memory", row["share"], "<=", 1 / 6, "x")
        for row in rows
        if row["part"] == "a thousand layers"
    ]
    chains = [row for row in rows if row["part"] == "random chains"]
    over = max(row["bytes"] / row["planned_bytes"] for row in chains)
    off = sorted(abs(row["time_off"]) for row in chains)
    return [
        *found,
        target(f"worst peak of {len(chains)} random chains, of the planned", over, "<=", 1, "x"),
        target("time of random chains off the planned, median", off[len(off) // 2], "<=", 0.1, "x"),
        target("time of random chains off the planned, worst", off[-1], "<=", 0.1, "x"),
    ]


def _line(row: Row) -> str:
    return str({key: value for key, value in row.items() if key not in ("seconds", "losses")})


def main() -> None:
    """Runs all parts; what an earlier command has finished is not run again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer rounds and chains; a few minutes")
    parser.add_argument(
        "--rows", type=Path, default=RESULTS / "planner.rows.jsonl", help="where finished rows are kept"
    )
    parser.add_argument("--minutes", type=float, help="begin nothing after so many; the same command goes on")
    options = parser.parse_args()
    short = options.short
    torch.set_num_threads(1)
    runs = FinishedRuns(options.rows, options.minutes)
    try:
        rows = _rows(runs, short)
    except OutOfTimeError:
        print("out of time; the same command goes on")
        return
    write_results("planner", rows, targets_of(rows))


def _rows(runs: FinishedRuns, short: bool) -> list[Row]:
    rows: list[Row] = []
    for name, make in NETS.items():
        torch.manual_seed(0)
        made = partial(_on_fresh_net, make, partial(against_segments, name, rounds=6 if short else 25))
        rows.append(runs.get({"part": "beside segments", "chain": name, "short": short}, made, _line))
    rows.append(runs.get({"part": "a thousand layers", "short": short}, partial(thousand, 3 if short else 20), _line))
    for seed in range(20 if short else 100):
        rows.append(runs.get({"part": "random chains", "seed": seed}, partial(random_chain, seed, 7), _line))
    return rows


def _on_fresh_net(make: Callable[[], tuple[Net, Batch]], measure: Callable[..., Row]) -> Row:
    net, batch = make()
    return measure(net=net, batch=batch)


if __name__ == "__main__":
    main()
