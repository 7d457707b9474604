"""The cheapest activation checkpointing: the schedule of least time under a budget of bytes, with its proof.

A schedule is memory-persistent if what it keeps stays until it has been used in the backward pass. The best of these on the
stages s..t of a chain either tapes stage s and goes on with s + 1..t, or keeps only the input of s, runs to some stage r, does
r..t, and then s..r - 1 again (Beaumont et al. 2019, hal-02352969, whose solver counts memory in slots). Here bytes count:

1. On a grid of memories two programmes are solved, one with all sizes rounded up and one with all rounded down. The first
   gives a schedule, the second a bound.
2. From the budget down, exact byte values are followed wherever the two differ and the bound allows for something better, and
   solved exactly from below. Where that takes too many values, the grid is refined.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from featherlight.planner.chain import Chain, condense, spread_out, usage
from featherlight.planner.chain_grid import Grid, Programme, solve_grid
from featherlight.planner.chain_refine import refine
from featherlight.transforms.activation_checkpoint_schedule import Schedule, store_all

MOST_STAGES = 110
"""Of a chain that is solved as it is; a longer one is condensed."""

_MOST_STATES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ChainPlan:
    """The schedule of least time for a chain under a budget.

    Attributes:
        schedule: for the stages of the chain.
        peak_bytes: that it takes, by `usage`; at most the budget.
        seconds: of a pass forward and backward.
        bound_seconds: no memory-persistent schedule under the budget takes less, of stages as they were condensed.
        condensed_to: number of stages for which the bound holds; that of the chain unless it is longer than `MOST_STAGES`.
    """

    schedule: Schedule
    peak_bytes: int
    seconds: float
    bound_seconds: float
    condensed_to: int

    @property
    def proven(self) -> bool:
        """Whether the bound is reached, so that the schedule is the best there is."""
        return self.bound_seconds >= self.seconds


def plan_chain(chain: Chain, budget: int, *, slots: Sequence[int] = (), most_stages: int = MOST_STAGES) -> ChainPlan:
    """The memory-persistent schedule of least time whose peak is at most `budget`.

    Args:
        chain: costs of the stages. Times count in whole nanoseconds.
        budget: bytes.
        slots: sizes of the grids that are tried in turn; of none given, 20 for each stage and then four times as many.
        most_stages: stages of a chain that is solved as it is; a longer one is condensed to so many.

    Returns:
        The schedule, what it takes, and the bound.

    Raises:
        ValueError: no schedule fits; says the least budget for which there is one.

    Cost: O(stages^3 slots); a chain of 100 stages takes a few seconds. Memory: 16 stages^2 slots bytes.
    """
    short, groups = condense(chain, most_stages)
    programme = Programme.of(short)
    table = programme.least_memory()
    least = int(table[-1][0]) + chain.held_bytes
    if budget < least:
        raise ValueError(
            f"no way to run the {len(chain.stages)} stages fits into {budget:,} bytes: the least is {least:,}, with "
            "everything recomputed that can be. Raise the budget, use a smaller batch, or cut the chain into smaller stages."
        )
    room, bound = budget - chain.held_bytes, 0.0
    full = store_all(len(short.stages))
    known = full if usage(short, full).peak_bytes <= budget else programme.least_schedule(table, len(programme) - 1, 0)
    for number in slots or (20 * len(programme), 80 * len(programme)):
        above, below = (solve_grid(programme, Grid(room, number, up=up)) for up in (True, False))
        time = programme.nanoseconds(known)
        found = refine(programme, above, below, known=time, most_states=_MOST_STATES)
        known, bound = found.schedule or known, max(bound, found.bound)
        if found.exact:
            break
    schedule = spread_out(known, groups)
    took = usage(chain, schedule)
    assert took.peak_bytes <= budget, "a schedule takes what the programme says"
    return ChainPlan(
        schedule=schedule,
        peak_bytes=took.peak_bytes,
        seconds=took.seconds,
        bound_seconds=took.seconds if bound >= programme.nanoseconds(known) else bound * 1e-9,
        condensed_to=len(short.stages),
    )


def least_budget(chain: Chain, *, most_stages: int = MOST_STAGES) -> int:
    """The fewest bytes for which `plan_chain` finds a schedule."""
    short, _ = condense(chain, most_stages)
    return int(Programme.of(short).least_memory()[-1][0]) + chain.held_bytes
