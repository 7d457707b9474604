"""Laws of a team, on a simulated clock and network (`team_machine.py`); the long form is a campaign of `make faults`."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings

from featherlight.trainer.team.messages import Hello, Over, Ready, Told, decode
from featherlight.trainer.team.protocol import NO_STEPS, Host, chain_after
from tests.properties.team_machine import FACTS, TeamMachine

TestTeam = TeamMachine.TestCase
TestTeam.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"facts": FACTS | {"base": "other"}}, "the member's base is other and that of the run is b"),
        ({"facts": FACTS | {"data": "x" * 64}}, "the member's data is xxxxxxxxxxxx... and that of the run is d"),
        ({"facts": {"base": "b", "data": "d"}}, "the member's format is not given"),
        ({"steps": 3}, "the member has 3 steps and the host 2"),
        ({"chain": b"12345678"}, "the 1 steps that the member has are not the first 1 of this run"),
    ],
)
def test_who_does_not_fit_is_refused_with_a_sentence(change, sentence):
    host = Host(FACTS, [b"one", b"two"], 4)
    hello = Hello(facts=FACTS, steps=1, chain=chain_after(NO_STEPS, b"one"))
    ((_, welcome),) = host.hear(1, hello)
    assert welcome.records == [b"two"]
    ((_, refused),) = host.hear(2, replace(hello, **change))
    assert isinstance(refused, Over)
    assert refused.kind == "refused"
    assert sentence in refused.sentence
    host.hear(2, Ready(steps=2))
    assert host.ready == []


def test_one_without_a_place_does_not_count():
    host = Host(FACTS, [], 0)
    host.hear(1, Hello(facts=FACTS, steps=0, chain=NO_STEPS))
    host.hear(1, Told(step=0, data=b"early"))
    assert host.parts() == []
    host.hear(1, Ready(steps=0))
    host.advance(b"zero", 0.0)
    assert (host.seat.epoch, host.seat.count, host.seated) == (1, 2, [1])
    assert not host.is_settled
    host.hear(1, Told(step=0, data=b"late"))
    assert not host.is_settled
    assert host.of_other_size(4) == []
    host.hear(1, Told(step=1, data=b"longer"))
    assert (host.of_other_size(4), host.of_other_size(6)) == ([1], [])
    host.lose(1)
    assert host.is_settled
    assert host.parts() == [None]


@pytest.mark.parametrize(
    ("kind", "body"), [(9, b""), (0, b"{}"), (0, b"["), (1, b"\xff\0\0\0a"), (2, b""), (4, b"1"), (6, b"3")]
)
def test_bytes_of_somebody_else_are_refused(kind, body):
    with pytest.raises(ValueError, match="is no message of a team"):
        decode(kind, body)
