"""What activation checkpointing does, op by op: which stage runs when, what it leaves in memory, when it goes backward."""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple


class Action(Enum):
    """What is done with a stage: three ways to run it forward, and its backward pass."""

    TAPE = "forward, everything that its backward pass needs is kept"
    KEEP = "forward, only its input is kept"
    DROP = "forward, nothing is kept but the output"
    BACK = "backward"


class Op(NamedTuple):
    """One step of a schedule.

    Attributes:
        action: what is done.
        stage: with which stage, from 0.
    """

    action: Action
    stage: int


Schedule = tuple[Op, ...]
"""Ops in order: one forward sweep over all stages, then backward passes from the last stage to the first, with forwards of
stages that were not taped between them."""


class Step(NamedTuple):
    """An op with what follows from its place in the schedule.

    Attributes:
        action: what is done.
        stage: with which stage.
        from_kept: whether a forward reads the input that was kept for this stage, rather than what the op before returned.
        last_use: whether it is the last to read that input.
    """

    action: Action
    stage: int
    from_kept: bool
    last_use: bool


def store_all(num_stages: int) -> Schedule:
    """The schedule of a plain run: every stage is taped once."""
    forward = [Op(Action.TAPE, stage) for stage in range(num_stages)]
    return (*forward, *(Op(Action.BACK, stage) for stage in reversed(range(num_stages))))


def segments(num_stages: int, num_segments: int) -> Schedule:
    """The schedule of `torch.utils.checkpoint.checkpoint_sequential`: equal segments, all but the last run twice.

    Args:
        num_stages: of the chain.
        num_segments: into which it is cut; each has `num_stages // num_segments` stages, and the last one the rest.

    Raises:
        ValueError: no segment, or more than stages.
    """
    if not 1 <= num_segments <= num_stages:
        raise ValueError(f"`num_segments` must be in 1..{num_stages}, the number of stages; got {num_segments}.")
    length = num_stages // num_segments
    starts = [length * part for part in range(num_segments)]
    ops: list[Op] = []
    for start in starts[:-1]:
        ops.append(Op(Action.KEEP, start))
        ops.extend(Op(Action.DROP, stage) for stage in range(start + 1, start + length))
    stop = num_stages
    for start in reversed(starts):
        ops.extend(Op(Action.TAPE, stage) for stage in range(start, stop))
        ops.extend(Op(Action.BACK, stage) for stage in reversed(range(start, stop)))
        stop = start
    return tuple(ops)


def steps(schedule: Sequence[Op], num_stages: int) -> tuple[Step, ...]:
    """Checks a schedule and works out where each op reads from.

    Args:
        schedule: the ops.
        num_stages: of the chain that it is for.

    Raises:
        ValueError: an op needs what is not in memory at that time, or a stage does not go backward exactly once, in order.
    """
    if num_stages < 1:
        raise ValueError("a chain has at least one stage; got none.")
    kept: set[int] = set()
    taped: set[int] = set()
    flow, back = 0, num_stages
    reads: list[bool] = []
    for number, (action, stage) in enumerate(schedule):
        if not 0 <= stage < back or (action is Action.BACK and (stage != back - 1 or stage not in taped)):
            raise _misplaced(number, action, stage, num_stages)
        if action is Action.BACK:
            back, flow = stage, -1
            taped.discard(stage)
            kept.discard(stage)
            reads.append(False)
            continue
        if stage in taped or (stage not in kept and flow != stage):
            raise _misplaced(number, action, stage, num_stages)
        reads.append(stage in kept)
        if action is Action.KEEP:
            kept.add(stage)
        if action is Action.TAPE:
            taped.add(stage)
        flow = stage + 1
    if back:
        raise ValueError(f"the schedule ends before stage {back - 1} has gone backward; end it with BACK of stage 0.")
    last = {stage: number for number, (_, stage) in enumerate(schedule) if reads[number]}
    return tuple(Step(*op, reads[number], last.get(op.stage) == number) for number, op in enumerate(schedule))


def _misplaced(number: int, action: Action, stage: int, num_stages: int) -> ValueError:
    return ValueError(
        f"op {number} of the schedule, {action.name} of stage {stage}, cannot be done there in a chain of {num_stages} "
        "stages: its input or its tape is not in memory, or stages would go backward out of order. Take a schedule from "
        "`plan_chain`, `segments` or `store_all`."
    )
