"""The recursion over parts of a chain, and its solution on a grid of memories.

Legend of shapes: N stages, K slots. Tables hold a row for each first stage s, and a table for each length d of a part
s..s + d (so stages are counted from 0 and a part of one stage has d = 0).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featherlight.planner.chain import Chain
from featherlight.transforms.activation_checkpoint_schedule import Action, Op, Schedule

Ints = NDArray[np.int64]
"""Bytes, and numbers of slots and stages."""
Floats = NDArray[np.float64]
"""Seconds."""

NEVER = np.int64(1) << 60
"""Bytes that no budget has."""


@dataclass(frozen=True, kw_only=True)
class Programme:
    """What the recursion needs of a chain.

    Attributes:
        inputs: bytes of what each stage is handed, (N,).
        taped: bytes that stay below while later stages run, if a stage is taped: its tape and its output, (N,).
        forward: nanoseconds of a forward pass, (N,).
        both: of a forward and a backward pass, (N,).
        run: peak of a forward pass without tape above the input, (N,); `NEVER` where that is not allowed.
        taped_run: with tape, (N,).
        back: peak of the backward pass, with gradients of the weights of later stages, (N,).
        arrived: gradients that are there while the part ending in a stage is run forward, (N,).
    """

    inputs: Ints
    taped: Ints
    forward: Floats
    both: Floats
    run: Ints
    taped_run: Ints
    back: Ints
    arrived: Ints

    @classmethod
    def of(cls, chain: Chain) -> "Programme":
        """Reads the costs of a chain."""
        stages = chain.stages

        def ints(values: list[int]) -> Ints:
            return np.array(values, dtype=np.int64)

        weights = ints([stage.weight_gradient_bytes for stage in stages])
        later = weights[::-1].cumsum()[::-1] - weights
        forward = np.rint(np.array([stage.forward_seconds for stage in stages]) * 1e9)
        backward = np.rint(np.array([stage.backward_seconds for stage in stages]) * 1e9)
        return cls(
            inputs=ints(list(chain.input_bytes)),
            taped=ints([stage.tape_bytes + stage.output_bytes for stage in stages]),
            forward=forward,
            both=forward + backward,
            run=ints([stage.forward_bytes if stage.recomputable else int(NEVER) for stage in stages]),
            taped_run=ints([stage.taped_forward_bytes for stage in stages]),
            back=ints([stage.backward_bytes for stage in stages]) + later,
            arrived=ints([stage.gradient_bytes for stage in stages[:-1]] + [0]) + later,
        )

    def __len__(self) -> int:
        return len(self.inputs)

    def nanoseconds(self, schedule: Schedule) -> float:
        """The time of a schedule for the whole chain."""
        forwards = sum(float(self.forward[stage]) for action, stage in schedule if action is not Action.BACK)
        return forwards + float((self.both - self.forward).sum())

    def tape_floor(self, length: int) -> Ints:
        """Memory that taping the first stage of each part takes at least, (N - d,)."""
        count = len(self) - length
        return np.maximum(self.taped_run[:count] + self.arrived[length:], self.back[:count])

    def run_floors(self, length: int) -> Ints:
        """Memory that running each part's first 1, 2, .. d stages without tape takes at least, (d, N - d)."""
        count = len(self) - length
        peaks = np.empty((length, count), dtype=np.int64)
        for offset in range(length):
            held = self.inputs[offset : offset + count] if offset else 0
            peaks[offset] = held + self.run[offset : offset + count]
        return np.maximum.accumulate(peaks, axis=0) + self.arrived[length:]

    def run_times(self, length: int) -> Floats:
        """Nanoseconds of each part's first 1, 2, .. d stages, (d, N - d)."""
        count = len(self) - length
        return np.stack([self.forward[offset : offset + count] for offset in range(length)]).cumsum(axis=0)

    def least_memory(self) -> list[Ints]:
        """The fewest bytes with which each part can be run, by length, (N - d,)."""
        least: list[Ints] = [self.tape_floor(0)]
        for length in range(1, len(self)):
            best = self._least_if_taped(least, length)
            for offset in range(1, length + 1):
                best = np.minimum(best, self._least_if_run(least, length, offset))
            least.append(best)
        return least

    def least_schedule(self, least: list[Ints], length: int, first: int) -> Schedule:
        """A schedule of one part with the fewest bytes."""
        if not length or self._least_if_taped(least, length)[first] == least[length][first]:
            rest = self.least_schedule(least, length - 1, first + 1) if length else ()
            return put_together(first, 0, [rest])
        offsets = range(1, length + 1)
        offset = next(k for k in offsets if self._least_if_run(least, length, k)[first] == least[length][first])
        rest = self.least_schedule(least, length - offset, first + offset)
        return put_together(first, offset, [rest, self.least_schedule(least, offset - 1, first)])

    def _least_if_taped(self, least: list[Ints], length: int) -> Ints:
        return np.maximum(self.tape_floor(length), self.taped[: len(self) - length] + least[length - 1][1:])

    def _least_if_run(self, least: list[Ints], length: int, offset: int) -> Ints:
        count = len(self) - length
        rest = self.inputs[offset : offset + count] + least[length - offset][offset : offset + count]
        return np.maximum(self.run_floors(length)[offset - 1], np.maximum(rest, least[offset - 1][:count]))


def put_together(first: int, offset: int, inner: Sequence[Schedule]) -> Schedule:
    """The ops of a part whose first stage is taped (`offset` 0), or of which so many stages run without tape first."""
    if offset == 0:
        return (Op(Action.TAPE, first), *inner[0], Op(Action.BACK, first))
    dropped = (Op(Action.DROP, stage) for stage in range(first + 1, first + offset))
    return (Op(Action.KEEP, first), *dropped, *inner[0], *inner[1])


@dataclass(frozen=True)
class Grid:
    """Memories `room - slot * unit`, from all of it downwards.

    Attributes:
        room: bytes for the chain.
        slots: K.
        up: whether sizes are rounded up, so that what is found can be done, or down, so that nothing is left out.
    """

    room: int
    slots: int
    up: bool

    @property
    def unit(self) -> int:
        """Bytes from one slot to the next."""
        return max(1, -(-self.room // self.slots))

    def shift(self, sizes: Ints) -> Ints:
        """Slots that bytes take."""
        return -(-sizes // self.unit) if self.up else sizes // self.unit

    def last(self, floors: Ints) -> Ints:
        """The last slot that has at least so much memory; -1 if none has."""
        return np.clip((self.room - floors) // self.unit, -1, self.slots)


@dataclass(frozen=True)
class Tables:
    """Least times in nanoseconds by length, first stage and slot; infinite where nothing fits.

    Attributes:
        grid: of the slots.
        times: for each length d, (N - d, K + 1).
    """

    grid: Grid
    times: list[Floats]

    def at(self, length: int, first: int, memories: Ints) -> Floats:
        """The times of one part with each of several memories."""
        slots = self.grid.shift(self.grid.room - memories)
        inside = (memories >= 0) & (slots <= self.grid.slots)
        return np.where(inside, self.times[length][first, np.minimum(slots, self.grid.slots)], np.inf)


def solve_grid(programme: Programme, grid: Grid) -> Tables:
    """Solves the recursion on a grid. Cost: O(N^3 K), of which nothing is a loop in Python but N^2 / 2 steps."""
    slots = np.arange(grid.slots + 1)
    until = np.concatenate([[0.0], programme.forward.cumsum()])
    times: list[Floats] = []
    handed: list[Floats] = []
    ends: list[Ints] = []
    for length in range(len(programme)):
        count = len(programme) - length
        best = np.repeat(programme.both[:count, None], grid.slots + 1, axis=1)
        if length:
            best += _moved(times[length - 1][1:], grid.shift(programme.taped[:count]))
        best[slots > grid.last(programme.tape_floor(length))[:, None]] = np.inf
        if length:
            best += until[:count, None]
            floors = grid.last(programme.run_floors(length))
            for offset in range(1, length + 1):
                _recompute(
                    best, handed[length - offset][offset:], times[offset - 1], ends[offset - 1], floors[offset - 1]
                )
            best -= until[:count, None]
        times.append(best)
        ends.append(np.isfinite(best).sum(axis=1) - 1)
        handed.append(_moved(best, grid.shift(programme.inputs[:count])) + until[:count, None])
    return Tables(grid, times)


def _recompute(best: Floats, rest: Floats, again: Floats, ends: Ints, floors: Ints) -> None:
    """Takes in the choice to run some stages without tape, then the rest, then them again; not beyond their last slots."""
    count = len(best)
    last = np.minimum(ends[:count], floors)
    width = int(last.max()) + 1
    if width > 0:
        candidate = rest[:count, :width] + again[:count, :width]
        for row in np.flatnonzero(floors < ends[:count]):
            candidate[row, floors[row] + 1 :] = np.inf
        np.minimum(best[:, :width], candidate, out=best[:, :width])


def _moved(rows: Floats, shifts: Ints) -> Floats:
    """Each row with so many slots less of memory."""
    moved = np.full_like(rows, np.inf)
    for row, (shift, source) in enumerate(zip(shifts.tolist(), rows, strict=True)):
        if shift < len(source):
            moved[row, : len(source) - shift] = source[shift:]
    return moved
