"""What the processes of a team tell each other: bytes, sums in one unit, and who came to other weights."""

import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featherlight.optim import ZerothOrderSGD
from featherlight.optim.zeroth_order import Part, Slot, StepRecord, combine, mean_loss
from featherlight.optim.zeroth_order.update import COEFFICIENT_LIMIT, quantize_coefficients
from featherlight.trainer.team import HostGather, Measured, Pace, require_agreement
from featherlight.trainer.team.messages import Hello, Over, Ready, Told
from featherlight.trainer.team.protocol import NO_STEPS
from featherlight.trainer.team.switchboard import Heard

INTEGERS = st.lists(st.integers(-COEFFICIENT_LIMIT, COEFFICIENT_LIMIT), min_size=3, max_size=3)
UNITS = st.floats(0.0, 1e6, width=32)


def part(coefficients: list[int], scale: float = 1.0) -> Part:
    return Part(coefficients=torch.tensor(coefficients), scale=scale, loss=0.5)


@given(st.lists(st.tuples(INTEGERS, UNITS), min_size=1, max_size=4), st.data())
def test_parts_in_one_unit_are_the_slopes_of_the_mean_to_half_a_unit(values, data):
    parts = [part(integers, unit) for integers, unit in values]
    missing = data.draw(st.integers(0, len(parts)))
    present = [None if number == missing else one for number, one in enumerate(parts)]
    if not any(present):
        return
    coefficients, scale = combine(present)
    count = sum(one is not None for one in present)
    exact = torch.cat(
        [torch.zeros(3) if one is None else one.coefficients.double() * one.scale / count for one in present]
    )
    assert coefficients.abs().max() <= COEFFICIENT_LIMIT
    assert float((coefficients * scale - exact).abs().max()) <= scale * (0.5 + COEFFICIENT_LIMIT * 2**-23)


def test_the_parts_of_one_process_are_its_own():
    coefficients, scale = quantize_coefficients(torch.randn(9, generator=torch.Generator().manual_seed(0)).double())
    found, unit = combine([Part(coefficients=coefficients, scale=scale, loss=1.0)])
    assert found.tolist() == coefficients.tolist()
    assert unit == scale


def test_parts_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"measured \[3, 2\] directions, and a step needs as many from each"):
        combine([part([1, 2, 3]), part([1, 2])])
    with pytest.raises(ValueError, match="3 processes with 2000 directions each make 6000"):
        Slot(number=0, count=3).total(2000)


def test_the_loss_is_the_mean_over_those_that_arrived():
    assert mean_loss([part([1]), None, Part(coefficients=torch.tensor([1]), scale=1.0, loss=1.5)]) == 1.0


@given(INTEGERS, st.floats(width=32, allow_nan=False), st.booleans(), st.none() | st.binary(min_size=8, max_size=8))
def test_what_is_told_arrives(integers, loss, signalled, digest):
    told = Measured(
        part=Part(coefficients=torch.tensor(integers), scale=0.5, loss=loss),
        seconds=1.1,
        signalled=signalled,
        digest=digest,
    )
    data = told.encode()
    found = Measured.decode(data)
    assert found.encode() == data
    assert found.part.coefficients.tolist() == integers
    assert (found.seconds, found.signalled, found.digest, found.failed) == (1.1, signalled, digest, False)
    with pytest.raises(ValueError, match="are no message of a step"):
        Measured.decode(data[:-1])


def test_the_odd_one_of_three_is_named():
    require_agreement({0: b"a", 1: b"a"}, 8, 4)
    with pytest.raises(
        ValueError, match="process 1 came to other weights than the 2 that agree, between step 4 and step 8"
    ):
        require_agreement({0: b"a", 1: b"b", 2: b"a"}, 8, 4)
    with pytest.raises(ValueError, match="there is no majority"):
        require_agreement({0: b"a", 1: b"b"}, 8, 4)


def test_all_go_by_the_seconds_of_the_first_without_losing_its_own():
    first, second = Pace(10.0), Pace(10.0)
    clocks = [10.0, 10.0]
    for took, slower in ((1.0, 3.0), (2.0, 5.0), (0.5, 0.1)):
        told = first.seconds
        for pace in (first, second):
            pace.hear(signalled=False, seconds=told)
        clocks = [
            pace.agree(False, clock + own)[1]
            for pace, clock, own in zip((first, second), clocks, (took, slower), strict=True)
        ]
        assert clocks == [told, told]
    assert first.seconds == 13.5


def test_a_copy_of_an_optimizer_belongs_to_no_team():
    optimizer = ZerothOrderSGD(torch.nn.Linear(2, 2), 1e-3, gather=object())  # pyright: ignore[reportArgumentType]
    assert copy.copy(optimizer).gather is None


def test_a_member_that_measures_other_directions_is_told_to_leave():
    heard = [Heard(1, Hello(facts={}, steps=0, chain=NO_STEPS)), Heard(1, Ready(steps=0))]
    said = []
    board = SimpleNamespace(
        receive=lambda timeout: heard.pop(0) if heard else None,
        send=lambda peer, message: said.append(message),
        hang_up=lambda peer: None,
    )
    optimizer = ZerothOrderSGD(torch.nn.Linear(2, 2), 1e-3)
    host = HostGather(board, optimizer, SimpleNamespace(), facts={}, records=[], digest_every=9)  # pyright: ignore[reportArgumentType]
    host.wait_for(1)
    heard.append(Heard(1, Told(step=0, data=Measured(part=part([1, 2])).encode())))

    def record_of(parts):
        arrived = torch.tensor([sum(one is not None for one in parts)])
        return StepRecord(step=0, seed=0, scale=1.0, rates=(1.0,), decays=(1.0,), coefficients=arrived)

    settled = host.settle(part([1, 2, 3]), record_of)
    assert settled.record.coefficients.tolist() == [1]
    assert isinstance(said[-1], Over)
    assert "another number of directions than the host, 3" in said[-1].sentence
