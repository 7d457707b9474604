"""The least time of a chain under a budget, by search over the states of memory: no recursion over parts, no tree of choices.

A state is what is in memory between two ops: how many stages have gone backward, which inputs are kept, which stages are taped,
and the output that has just been made. Persistence: a kept input and a tape stay until their stage has gone backward.
"""

import heapq
from collections.abc import Iterator
from itertools import count

from featherlight.planner.chain import Chain

State = tuple[int, frozenset[int], frozenset[int], int]  # stages left, kept or taped inputs, tapes, flow (-1: none)


def least_seconds(chain: Chain, budget: int) -> float | None:
    """The least time within the budget; None if nothing fits. Dijkstra's algorithm; chains of up to 8 stages."""
    stages = chain.stages
    size = (0, *(stage.output_bytes for stage in stages))
    start: State = (len(stages), frozenset(), frozenset(), 0)
    number = count()
    queue = [(0.0, next(number), start)]
    done: set[State] = set()
    while queue:
        seconds, _, state = heapq.heappop(queue)
        if state in done:
            continue
        done.add(state)
        if state[0] == 0:
            return seconds
        for took, peak, after in _moves(chain, size, state):
            if peak + chain.held_bytes <= budget:
                heapq.heappush(queue, (seconds + took, next(number), after))
    return None


def _moves(chain: Chain, size: tuple[int, ...], state: State) -> Iterator[tuple[float, int, State]]:
    left, inputs, tapes, flow = state
    stages = chain.stages
    gradients = sum(stage.weight_gradient_bytes for stage in stages[left:])
    arriving = stages[left - 1].gradient_bytes if left < len(stages) else 0
    tape_bytes = {stage: stages[stage].tape_bytes for stage in tapes}

    def resident(places: set[int]) -> int:
        return sum(size[place] for place in places)

    for stage in range(left):
        if stage in tapes or (stage != flow and stage not in inputs):
            continue
        beside = resident({*inputs, stage}) + sum(tape_bytes.values()) + gradients + arriving
        cost = stages[stage]
        if cost.recomputable:
            yield cost.forward_seconds, beside + cost.forward_bytes, (left, inputs, tapes, stage + 1)
            yield cost.forward_seconds, beside + cost.forward_bytes, (left, inputs | {stage}, tapes, stage + 1)
        after = (left, inputs | {stage, stage + 1}, tapes | {stage}, stage + 1)
        yield cost.forward_seconds, beside + cost.taped_forward_bytes, after
    if left - 1 in tapes:
        cost = stages[left - 1]
        beside = resident(set(inputs) - {left}) + sum(tape_bytes.values()) - cost.tape_bytes + gradients
        remaining = inputs - {left, left - 1}
        yield cost.backward_seconds, beside + cost.backward_bytes, (left - 1, remaining, tapes - {left - 1}, -1)
