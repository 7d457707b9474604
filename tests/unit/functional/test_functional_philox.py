"""Philox against Random123's known answers and against Python integers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featherlight.functional import philox_4x32
from tests.oracles.philox import philox

WORD = st.integers(0, 2**32 - 1)
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers_of_random123(counter: str, key: str, answer: str) -> None:
    first, second = words(key)
    assert philox_4x32(torch.tensor(words(counter)), (first, second)).tolist() == words(answer)
    c0, c1, c2, c3 = words(counter)
    assert list(philox((c0, c1, c2, c3), (first, second))) == words(answer)


@given(counters=st.lists(st.tuples(WORD, WORD, WORD, WORD), min_size=1, max_size=8), key=st.tuples(WORD, WORD))
@settings(max_examples=60)
def test_any_counter_equals_python_integers(counters: list[tuple[int, int, int, int]], key: tuple[int, int]) -> None:
    drawn = philox_4x32(torch.tensor(counters), key)
    assert drawn.tolist() == [list(philox(counter, key)) for counter in counters]


def test_counters_of_any_shape_are_left_as_they_are() -> None:
    counters = torch.arange(24).reshape(2, 3, 4)
    before = counters.clone()
    drawn = philox_4x32(counters, (1, 2))
    assert drawn.shape == (2, 3, 4)
    assert torch.equal(counters, before)
    assert torch.equal(drawn[1, 2], philox_4x32(counters[1, 2], (1, 2)))
    assert philox_4x32(torch.empty(0, 4, dtype=torch.int64), (1, 2)).shape == (0, 4)
