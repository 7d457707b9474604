"""Each way with its predicted peak and estimated time, and which one to take."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from featherlight.planner.fitting import largest_that_fits
from featherlight.planner.memory import STEPS, StepMemory, predict_or_measure
from featherlight.planner.process import ProcessMemory, predict_process
from featherlight.planner.trace import UntraceableError
from featherlight.recipes.methods import METHODS
from featherlight.recipes.plan.subject import Subject, objective_of, optimizer_of
from featherlight.recipes.plan.ways import Way, micro_batched

_TIMED_FLOPS = 2e9
MOST_ROWS = 1024
"""Of a batch, up to which the largest is looked for."""

_PASSES = 2
"""Passes of a micro-batched step that are followed: from the second on, all find gradients there and are alike."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way, predicted.

    Attributes:
        way: which.
        rows: of the batch.
        step: peak of the tensors.
        process: of the whole process.
        seconds: of a step: products counted, divided by the rate of this machine. An estimate.
        fits: whether the process stays within the memory; True without a limit.
    """

    way: Way
    rows: int
    step: StepMemory
    process: ProcessMemory
    seconds: float
    fits: bool


def predict(
    subject: Subject, way: Way, rows: int, *, memory: int | None, rate: float, baseline: int | None = None
) -> Row:
    """Predicts one way.

    Args:
        subject: what is trained.
        way: how.
        rows: of the batch.
        memory: bytes that the process may take; None is no limit.
        rate: floating-point operations a second, from `machine_rate`.
        baseline: bytes of the process beside the steps; None takes what this one has taken.
    """
    followed = rows if way.micro_batch is None else min(rows, _PASSES * way.micro_batch)
    case = subject.case(way, followed)
    training = way.method == "sgd" or METHODS[way.method].dropout
    steps = 1 if way.method == "zo" else STEPS  # it keeps no state
    step = predict_or_measure(
        case.model, case.batch, objective_of(way, case), optimizer_of(way, case, rows), training=training, steps=steps
    )
    if followed < rows:
        step = _of_all_rows(step, followed, rows)
    process = predict_process(step, loaded=case.loaded, baseline=baseline)
    fits = memory is None or process.total <= memory
    return Row(way=way, rows=rows, step=step, process=process, seconds=step.flops / rate, fits=fits)


def _of_all_rows(step: StepMemory, followed: int, rows: int) -> StepMemory:
    """What further passes of the same size add: their rows, and their time."""
    inputs = step.categories["inputs"] * rows // followed
    return replace(
        step,
        peak=step.peak - step.categories["inputs"] + inputs,
        categories={**step.categories, "inputs": inputs},
        flops=step.flops * rows // followed,
    )


def recommend(rows: Sequence[Row]) -> tuple[Row | None, str]:
    """The best way that fits, and why; None if none does.

    Among ways that make the same steps the one is taken that has the least to do, and then the one with the most rows a pass.
    """
    fitting = [row for row in rows if row.fits]
    if not fitting:
        least = min(rows, key=lambda row: row.process.total)
        return None, f"no way fits; {least.way.title} takes the least, {in_gib(least.process.total)}"
    best = min(fitting, key=lambda row: (row.way.rank, row.seconds, -(row.way.micro_batch or row.rows)))
    if best.way.rank == 0:
        return best, "it has a gradient of every weight" + (
            "" if best.way.micro_batch is None else ", and its smaller passes are the same steps"
        )
    return best, "the better ways do not fit"


def largest_batch(subject: Subject, way: Way, memory: int, baseline: int, *, most: int = MOST_ROWS) -> int | None:
    """The most rows of a batch whose predicted process fits; None if not even one does, or it cannot be said."""
    if way.activation_bytes is not None:
        return None  # its schedule is for this batch
    if way.micro_batch is not None:
        return most

    def peak(rows: int) -> int:
        return predict(subject, way, rows, memory=memory, rate=1.0, baseline=baseline).process.total

    while True:
        try:
            return largest_that_fits(peak, memory, most)
        except UntraceableError:  # masks of so many rows are too large to follow their contents
            if most <= subject.rows:
                raise
            most = max(subject.rows, most // 2)


def largest_pass(subject: Subject, way: Way, memory: int, baseline: int) -> Way | None:
    """The way with as many rows a pass as fit, all of them if they do; None if not even one row does."""
    whole = replace(way, micro_batch=None)

    def peak(rows: int) -> int:
        one = whole if rows == subject.rows else micro_batched(whole, rows)
        return predict(subject, one, subject.rows, memory=memory, rate=1.0, baseline=baseline).process.total

    found = largest_that_fits(peak, memory, subject.rows)
    if found is None:
        return None
    return whole if found == subject.rows else micro_batched(whole, found)


def require_weights_fit(model: nn.Module, baseline: int, memory: int) -> None:
    """Raises ValueError where the memory is less than Python, torch and the weights take."""
    least = baseline + sum(one.numel() * one.element_size() for one in (*model.parameters(), *model.buffers()))
    if memory < least:
        raise ValueError(
            f"`--memory` is {in_gib(memory)}, and Python, torch and the weights alone take {in_gib(least)}, so this model cannot "
            "even be held. Give more than that, or take a smaller model."
        )


def machine_rate(dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of a matrix product here, the best of three; takes a few tenths of a second."""
    size = round((_TIMED_FLOPS / 2) ** (1 / 3))
    left, right = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    return 2 * size**3 / min(_seconds(lambda: left @ right) for _ in range(3))


def in_gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
