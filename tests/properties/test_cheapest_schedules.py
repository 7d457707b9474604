"""The planner's schedules against search over all memory-persistent ones, and against their own accounting."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featherlight.planner.activation_checkpoint import least_budget, plan_chain
from featherlight.planner.chain import Chain, StageCost, condense, spread_out, usage
from featherlight.transforms.activation_checkpoint_schedule import Action, segments, store_all
from tests.oracles.memory_persistent_schedules import least_seconds


@st.composite
def chains(draw: st.DrawFn, longest: int, largest: int = 12) -> Chain:
    """Chains whose sizes have nothing in common, with a few stages that cannot be run again."""
    count = draw(st.integers(1, longest))
    size = st.integers(0, largest)
    stages = []
    for number in range(count):
        output, tape, gradient = draw(size), draw(size), draw(size) if number < count - 1 else 0
        forward, taped, back = (draw(size) for _ in range(3))
        stages.append(
            StageCost(
                name=f"s{number}",
                forward_seconds=draw(st.integers(0, 9)) * 1e-9,
                backward_seconds=draw(st.integers(0, 9)) * 1e-9,
                output_bytes=output,
                tape_bytes=tape,
                forward_bytes=output + forward,
                taped_forward_bytes=output + tape + taped,
                backward_bytes=tape + gradient + back,
                gradient_bytes=gradient,
                weight_gradient_bytes=draw(st.integers(0, 3)),
                recomputable=draw(st.integers(0, 9)) > 0,
            )
        )
    return Chain(stages=tuple(stages), held_bytes=draw(st.integers(0, 5)))


@given(st.one_of(chains(5), chains(8)), st.floats(0, 1), st.integers(1, 12))
@settings(max_examples=24)
def test_no_memory_persistent_schedule_is_faster(chain: Chain, share: float, slots: int) -> None:
    """With few slots, so that exact bytes are followed and not only a grid."""
    least, full = least_budget(chain), usage(chain, store_all(len(chain.stages))).peak_bytes
    budget = int(least + share * (full - least))
    plan = plan_chain(chain, budget, slots=(slots,))
    assert plan.proven
    assert plan.seconds == pytest.approx(least_seconds(chain, budget), abs=1e-15)
    assert usage(chain, plan.schedule) == (plan.peak_bytes, plan.seconds)
    assert plan.peak_bytes <= budget


@given(chains(6))
@settings(max_examples=40)
def test_below_the_least_budget_nothing_fits(chain: Chain) -> None:
    least = least_budget(chain)
    assert least_seconds(chain, least) is not None
    assert least_seconds(chain, least - 1) is None
    with pytest.raises(ValueError, match=f"into {least - 1:,} bytes: the least is {least:,}"):
        plan_chain(chain, least - 1)


@given(chains(14, largest=1000), st.integers(3, 8), st.floats(0, 1))
@settings(max_examples=30)
def test_a_condensed_chain_takes_what_its_stages_take(chain: Chain, most: int, share: float) -> None:
    short, groups = condense(chain, most)
    assert [stage for group in groups for stage in group] == list(range(len(chain.stages)))
    assert len(short.stages) <= max(most, 1)
    for schedule in (store_all(len(short.stages)), plan_chain(short, least_budget(short)).schedule):
        on_short, on_all = usage(short, schedule), usage(chain, spread_out(schedule, groups))
        assert on_all.peak_bytes <= on_short.peak_bytes
        assert on_all.seconds == pytest.approx(on_short.seconds, abs=1e-15)
    plan = plan_chain(chain, least_budget(chain, most_stages=most), most_stages=most)
    assert plan.condensed_to == len(short.stages)


def test_sixty_unequal_stages_are_settled() -> None:
    """Sizes without a common divisor; the segments of torch, for the same memory, take longer."""
    sizes = [(1_000_003 * (7 * i % 23 + 3), 4_000_037 * (5 * i % 19 + 2)) for i in range(60)]
    stages = [
        StageCost(
            name=f"s{i}",
            forward_seconds=1e-3 * (3 * i % 17 + 1),
            backward_seconds=2e-3 * (3 * i % 17 + 1),
            output_bytes=output,
            tape_bytes=tape,
            forward_bytes=output,
            taped_forward_bytes=output + tape,
            backward_bytes=tape + 2 * output,
            gradient_bytes=output if i < 59 else 0,
        )
        for i, (output, tape) in enumerate(sizes)
    ]
    chain = Chain(stages=tuple(stages))
    rival = usage(chain, segments(60, 4))
    plan = plan_chain(chain, rival.peak_bytes, slots=(500,))
    assert plan.proven
    assert plan.seconds < rival.seconds
    assert sum(op.action is Action.BACK for op in plan.schedule) == 60
