"""Costs of a chain of stages, and what a schedule takes on it: peak of memory and time."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

from featherlight.transforms.activation_checkpoint_schedule import Action, Op, Schedule, steps, store_all


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What one stage of a chain takes.

    Attributes:
        name: for people.
        forward_seconds: of a forward pass, with tape or without.
        backward_seconds: of the backward pass.
        output_bytes: of what it hands to the next stage.
        tape_bytes: of what its backward pass needs, without its input and its output.
        forward_bytes: the peak of a forward pass without tape, above its input; the output counts.
        taped_forward_bytes: the peak of a forward pass with tape, above its input; output and tape count.
        backward_bytes: the peak of the backward pass, above its input; tape, arriving gradient and all that it makes count.
        gradient_bytes: of the gradient that arrives; 0 for the last stage, which ends in the loss.
        weight_gradient_bytes: of gradients that stay when it has gone backward.
        recomputable: whether it may run without tape.
    """

    name: str
    forward_seconds: float
    backward_seconds: float
    output_bytes: int
    tape_bytes: int
    forward_bytes: int
    taped_forward_bytes: int
    backward_bytes: int
    gradient_bytes: int
    weight_gradient_bytes: int = 0
    recomputable: bool = True

    def __post_init__(self) -> None:
        numbers = {name: value for name, value in vars(self).items() if isinstance(value, (int, float))}
        negative = [f"{name}={value}" for name, value in numbers.items() if not 0 <= value < float("inf")]
        if negative:
            raise ValueError(
                f"the costs of stage `{self.name}` must be finite and not negative; got {', '.join(negative)}."
            )


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Stages that follow each other. The input of the first is there before, and is not counted.

    Attributes:
        stages: their costs; the last one ends in the loss.
        held_bytes: what is in memory throughout, beside all that the stages take.
    """

    stages: tuple[StageCost, ...]
    held_bytes: int = 0

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a chain has at least one stage; got none.")

    @property
    def input_bytes(self) -> tuple[int, ...]:
        """What each stage is handed; 0 for the first."""
        return (0, *(stage.output_bytes for stage in self.stages[:-1]))


class Usage(NamedTuple):
    """What a schedule takes: `peak_bytes` and `seconds`."""

    peak_bytes: int
    seconds: float


def usage(chain: Chain, schedule: Schedule) -> Usage:
    """Goes through a schedule op by op.

    A stage's input stays from the time it is kept, or the stage is taped, until the stage has gone backward; the output of a
    taped stage until the next stage has.

    Raises:
        ValueError: the schedule is not one for this chain.
    """
    stages, inputs = chain.stages, (*chain.input_bytes, chain.stages[-1].output_bytes)
    held: set[int] = set()
    tapes: set[int] = set()
    flow, gradient, weights, peak, seconds = 0, 0, 0, 0, 0.0
    for action, number, _, _ in steps(schedule, len(stages)):
        stage = stages[number]
        if action is Action.BACK:
            held.discard(number + 1)
            tapes.discard(number)
            own, gradient, flow = stage.backward_bytes, 0, number
            seconds += stage.backward_seconds
        else:
            own = stage.taped_forward_bytes if action is Action.TAPE else stage.forward_bytes
            flow = number
            seconds += stage.forward_seconds
        others = sum(inputs[place] for place in held | {flow}) + sum(stages[taped].tape_bytes for taped in tapes)
        peak = max(peak, others + gradient + weights + own)
        if action is Action.BACK:
            held.discard(number)
            weights += stage.weight_gradient_bytes
            gradient = stages[number - 1].gradient_bytes if number else 0
            continue
        if action is not Action.DROP:
            held.add(number)
        if action is Action.TAPE:
            tapes.add(number)
            held.add(number + 1)
    return Usage(peak + chain.held_bytes, seconds)


def store_everything(chain: Chain) -> Usage:
    """What the plain run takes, in which every stage is taped."""
    return usage(chain, store_all(len(chain.stages)))


def condense(chain: Chain, most: int) -> tuple[Chain, tuple[range, ...]]:
    """Makes one stage of several that follow each other, until there are at most `most`; the first and the last stay alone.

    Groups take about equally many bytes, as far as that goes.

    Returns:
        The shorter chain, and the stages of the given one that each of its stages stands for.
    """
    count = len(chain.stages)
    if count <= most:
        return chain, tuple(range(place, place + 1) for place in range(count))
    if most < 3:
        raise ValueError(f"`most` must be at least 3, the first stage, the last and what is between; got {most}.")
    bytes_until = list(accumulate(stage.tape_bytes + stage.output_bytes for stage in chain.stages[1:-1]))
    share = bytes_until[-1] / (most - 2)
    cuts = [1, count - 1]
    for place in range(2, count - 1):
        before, now = (bytes_until[place - 2 + one] - 1e-9 for one in (0, 1))
        if share and int(before / share) < int(now / share) and len(cuts) < most - 1:
            cuts.append(place)
    bounds = [0, *sorted(set(cuts)), count]
    groups = tuple(range(start, stop) for start, stop in pairwise(bounds))
    together = tuple(_together([chain.stages[stage] for stage in group]) for group in groups)
    return Chain(stages=together, held_bytes=chain.held_bytes), groups


def spread_out(schedule: Schedule, groups: Sequence[range]) -> Schedule:
    """The schedule of a condensed chain, for the stages that its stages stand for."""
    ops: list[Op] = []
    for action, number in schedule:
        group = groups[number]
        if action is Action.KEEP:
            ops.append(Op(Action.KEEP, group[0]))
            ops.extend(Op(Action.DROP, stage) for stage in group[1:])
        else:
            order = reversed(group) if action is Action.BACK else group
            ops.extend(Op(action, stage) for stage in order)
    return tuple(ops)


def _together(group: Sequence[StageCost]) -> StageCost:
    """The costs of stages that are kept, dropped or taped as one."""
    if len(group) == 1:
        return group[0]
    below = [0, *accumulate(stage.tape_bytes + stage.output_bytes for stage in group[:-1])]
    inputs = [0, *(stage.output_bytes for stage in group[:-1])]
    above = [0, *accumulate(stage.weight_gradient_bytes for stage in reversed(group[1:]))][::-1]
    return StageCost(
        name=f"{group[0].name} to {group[-1].name}",
        forward_seconds=sum(stage.forward_seconds for stage in group),
        backward_seconds=sum(stage.backward_seconds for stage in group),
        output_bytes=group[-1].output_bytes,
        tape_bytes=below[-1] + group[-1].tape_bytes,
        forward_bytes=max(a + stage.forward_bytes for a, stage in zip(inputs, group, strict=True)),
        taped_forward_bytes=max(a + stage.taped_forward_bytes for a, stage in zip(below, group, strict=True)),
        backward_bytes=max(a + stage.backward_bytes + b for a, stage, b in zip(below, group, above, strict=True)),
        gradient_bytes=group[-1].gradient_bytes,
        weight_gradient_bytes=sum(stage.weight_gradient_bytes for stage in group),
        recomputable=all(stage.recomputable for stage in group),
    )
