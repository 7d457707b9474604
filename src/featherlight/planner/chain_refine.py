"""From two solutions on a grid, one that can be done and one that bounds, to the exact one at the bytes that can occur.

A state is a part of the chain with an exact memory. It is settled where both grids agree. The others are opened: their choices
lead to smaller states, of which only those are followed whose bound leaves hope for less time than is known.
"""

from dataclasses import dataclass

import numpy as np

from featherlight.planner.chain_grid import Floats, Ints, Programme, Tables, put_together
from featherlight.transforms.activation_checkpoint_schedule import Action, Op, Schedule

_Part = tuple[int, int]
_SHARES = np.array(
    [0.2, 0.4, 0.6, 0.8, 1.0]
)  # of the way from the bound to what is known; the less is hoped for, the fewer states


@dataclass(frozen=True, kw_only=True)
class Refined:
    """What came of it.

    Attributes:
        schedule: the best that was found; None if it takes no less than what was known.
        bound: nanoseconds that no schedule goes below.
        exact: whether the best that is known reaches the bound.
    """

    schedule: Schedule | None
    bound: float
    exact: bool


def refine(programme: Programme, above: Tables, below: Tables, *, known: float, most_states: int) -> Refined:
    """Settles the whole chain exactly, unless that takes too many states.

    Args:
        programme: the chain.
        above: a solution with sizes rounded up.
        below: one with sizes rounded down, on the same grid.
        known: nanoseconds of a schedule that is known to fit.
        most_states: states that are opened at most.
    """
    search = _Search(programme, above, below)
    whole, room = (len(programme) - 1, 0), above.grid.room
    value, bound = (float(tables.at(*whole, np.array([room]))[0]) for tables in (above, below))
    coarse = search.coarse(whole, 0) if value < known else None
    value = min(value, known)
    for target in bound + (value - bound) * _SHARES if value > bound else ():
        if not search.open(float(target), most_states):
            return Refined(schedule=coarse, bound=bound, exact=False)
        found = search.settle()
        if found <= target:
            return Refined(schedule=search.schedule(whole, room, found), bound=found, exact=True)
        bound = float(target)
    return Refined(schedule=coarse, bound=value, exact=True)


class _Search:
    """Opened states by part: memories in rising order, and the exact times once it is known."""

    def __init__(self, programme: Programme, above: Tables, below: Tables) -> None:
        self.programme = programme
        self.above = above
        self.below = below
        self.memories: dict[_Part, Ints] = {}
        self.times: dict[_Part, Floats] = {}
        self._asked: dict[_Part, list[tuple[Ints, Floats]]] = {}
        count = len(programme)
        self._tape_floors = [programme.tape_floor(length) for length in range(count)]
        self._run_floors = [programme.run_floors(length) for length in range(count)]
        self._run_times = [programme.run_times(length) if length else np.empty((0, count)) for length in range(count)]

    def open(self, target: float, most_states: int) -> bool:
        """Goes from the whole chain, which may take `target`, down; false if there are too many states."""
        whole = (len(self.programme) - 1, 0)
        self._asked = {whole: [(np.array([self.above.grid.room]), np.array([target]))]}
        self.memories.clear()
        self.times.clear()
        opened = 0
        for length in reversed(range(1, len(self.programme))):
            for first in range(len(self.programme) - length):
                opened += self._open_part((length, first))
                if opened > most_states:
                    return False
        return True

    def _open_part(self, part: _Part) -> int:
        asked = self._asked.pop(part, None)
        if asked is None:
            return 0
        memories, places = np.unique(np.concatenate([m for m, _ in asked]), return_inverse=True)
        allowed = np.full(len(memories), -np.inf)
        np.maximum.at(allowed, places, np.concatenate([a for _, a in asked]))
        high, low = self.above.at(*part, memories), self.below.at(*part, memories)
        allowed = np.minimum(allowed, high)
        unsettled = (low < high) & (low <= allowed)
        memories, allowed = memories[unsettled], allowed[unsettled]
        if not len(memories):
            return 0
        self.memories[part] = memories
        for floor, spent, children in self._choices(part):
            bounds = [self.below.at(*child, memories - less) for child, less in children]
            total = np.sum(bounds, axis=0) + spent
            hope = (memories >= floor) & (total <= allowed) & np.isfinite(total)
            for (child, less), bound in zip(children, bounds, strict=True):
                if child[0] and hope.any():
                    asked_now = (memories[hope] - less, allowed[hope] - total[hope] + bound[hope])
                    self._asked.setdefault(child, []).append(asked_now)
        return len(memories)

    def _choices(self, part: _Part) -> list[tuple[int, float, list[tuple[_Part, int]]]]:
        """Memory that each choice takes at least, its own time, and the parts it leads to with what they have less."""
        length, first = part
        programme = self.programme
        own = float(programme.both[first])
        found = [(int(self._tape_floors[length][first]), own, [((length - 1, first + 1), int(programme.taped[first]))])]
        for offset in range(1, length + 1):
            floor, spent = self._run_floors[length][offset - 1, first], self._run_times[length][offset - 1, first]
            rest = ((length - offset, first + offset), int(programme.inputs[first + offset]))
            found.append((int(floor), float(spent), [rest, ((offset - 1, first), 0)]))
        return found

    def settle(self) -> float:
        """Goes back up and returns the time of the whole chain."""
        for part in sorted(self.memories):
            memories = self.memories[part]
            best = np.full(len(memories), np.inf)
            for floor, spent, children in self._choices(part):
                total = spent + sum(self._time(child, memories - less) for child, less in children)
                np.minimum(best, np.where(memories >= floor, total, np.inf), out=best)
            self.times[part] = np.minimum(best, self.above.at(*part, memories))
        return float(self.times[(len(self.programme) - 1, 0)][0])

    def _time(self, part: _Part, memories: Ints) -> Floats:
        """The best that is known of states: exact where they were opened or are settled."""
        length, first = part
        if not length:
            return np.where(memories >= self._tape_floors[0][first], self.programme.both[first], np.inf)
        times = self.above.at(length, first, memories)
        if part in self.times:
            places = np.minimum(np.searchsorted(self.memories[part], memories), len(self.memories[part]) - 1)
            found = self.memories[part][places] == memories
            times = np.where(found, self.times[part][places], times)
        return times

    def schedule(self, part: _Part, memory: int, time: float) -> Schedule:
        """The ops of a state that can be done in `time`."""
        length, first = part
        if not length:
            return (Op(Action.TAPE, first), Op(Action.BACK, first))
        at = np.array([memory])
        opened = part in self.times and bool((self.memories[part] == memory).any())
        if not opened or time >= float(self.above.at(*part, at)[0]):
            return self.coarse(part, int(self.above.grid.shift(np.int64(self.above.grid.room - memory))))  # pyright: ignore[reportArgumentType]
        for offset, (floor, spent, children) in enumerate(self._choices(part)):
            each = [float(self._time(child, at - less)[0]) for child, less in children]
            if memory >= floor and spent + sum(each) <= time:
                inner = [self.schedule(c, memory - less, t) for (c, less), t in zip(children, each, strict=True)]
                return put_together(first, offset, inner)
        raise AssertionError("the time of a state comes from one of its choices")

    def coarse(self, part: _Part, slot: int) -> Schedule:
        """The ops of a part by the grid that is rounded up."""
        length, first = part
        if not length:
            return (Op(Action.TAPE, first), Op(Action.BACK, first))
        grid, times = self.above.grid, self.above.times
        memory, time = grid.room - slot * grid.unit, times[length][first, slot]
        for offset, (floor, spent, children) in enumerate(self._choices(part)):
            slots = [slot + int(grid.shift(np.int64(less))) for _, less in children]  # pyright: ignore[reportArgumentType]
            if memory < floor or max(slots) > grid.slots:
                continue
            total = sum(times[d][s, place] for ((d, s), _), place in zip(children, slots, strict=True)) + spent
            if total <= time:
                inner = [self.coarse(child, place) for (child, _), place in zip(children, slots, strict=True)]
                return put_together(first, offset, inner)
        raise AssertionError("the time of a part comes from one of its choices")
