"""Signs: any part drawn alone, in any order and chunking, is the part of the whole."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featherlight.functional import (
    SIGNS_PER_BLOCK,
    Segment,
    SignBits,
    SignStream,
    random_signs,
    random_words,
    signs,
    signs_at,
)
from tests.oracles.philox import sign, word
from tests.properties.test_exact_update import threads

SEEDS = st.integers(0, 2**64 - 1)
STEPS = st.integers(0, 2**32 - 1)
PARAMETERS = st.integers(0, 2**31 - 1)
DIRECTIONS = st.integers(0, 2**31 - 1)


@given(seed=SEEDS, step=STEPS, parameter=PARAMETERS, direction=DIRECTIONS, size=st.integers(1, 300))
@settings(max_examples=20)
def test_signs_equal_the_integer_oracle(seed: int, step: int, parameter: int, direction: int, size: int) -> None:
    stream = SignStream(seed=seed, step=step)
    drawn = random_signs((size,), stream=stream, parameter=parameter, direction=direction, dtype=torch.float64)
    expected = [sign(e, seed=seed, step=step, parameter=parameter, direction=direction) for e in range(size)]
    assert drawn.tolist() == expected


@given(
    seed=SEEDS, sizes=st.lists(st.integers(0, 400), min_size=1, max_size=4), count=st.integers(1, 6),
    chunk=st.integers(1, 9), data=st.data(),
)  # fmt: skip
@settings(max_examples=60)
def test_any_window_of_any_segment_and_rows_is_part_of_the_whole(
    seed: int, sizes: list[int], count: int, chunk: int, data: st.DataObject
) -> None:
    stream = SignStream(seed=seed, step=3)
    numbers = data.draw(st.permutations(range(10)))[:count]
    segments = [
        Segment(parameter=7 * i, start=SIGNS_PER_BLOCK * data.draw(st.integers(0, 3)), size=size)
        for i, size in enumerate(sizes)
    ]
    with pytest.MonkeyPatch.context() as patch, threads(data.draw(st.sampled_from([1, 2]))):
        patch.setattr(signs, "_BLOCKS_AT_ONCE", chunk)
        bits = SignBits(stream, segments, torch.tensor(numbers))
    assert bits.num_words == count * sum(4 * -(-size // 128) for size in sizes)
    for which, segment in enumerate(segments):
        end = segment.start + segment.size
        whole = torch.stack(
            [random_signs((end,), stream=stream, parameter=segment.parameter, direction=d) for d in numbers]
        )[:, segment.start :]
        start = data.draw(st.integers(0, segment.size))
        length = data.draw(st.integers(0, segment.size - start))
        rows = torch.tensor(data.draw(st.lists(st.integers(0, count - 1), max_size=5)), dtype=torch.int64)
        window = bits.signs(which, start, length, torch.float32)
        assert torch.equal(window, whole[:, start : start + length])
        assert torch.equal(
            bits.signs(which, start, length, torch.float32, rows=rows), whole[rows, start : start + length]
        )


@given(seed=SEEDS, elements=st.lists(st.integers(0, 2000), min_size=1, max_size=30), count=st.integers(1, 4))
@settings(max_examples=40)
def test_single_signs_are_those_of_the_whole(seed: int, elements: list[int], count: int) -> None:
    stream = SignStream(seed=seed, step=9)
    whole = torch.stack([random_signs((2001,), stream=stream, parameter=5, direction=d) for d in range(count)])
    at = torch.tensor(elements)
    of = torch.arange(len(elements)) % count
    drawn, num_words = signs_at(at, stream=stream, parameter=5, directions=of, dtype=torch.float32)
    assert torch.equal(drawn, whole[of, at])
    assert num_words == 4 * len({(d, e // 128) for d, e in zip(of.tolist(), elements, strict=True)})
    grid, _ = signs_at(at[None].expand(count, -1), stream=stream, parameter=5, directions=torch.arange(count)[:, None],
                       dtype=torch.float32)  # fmt: skip
    assert torch.equal(grid, whole[:, at])
    alone, _ = signs_at(at, stream=stream, parameter=5, directions=count - 1, dtype=torch.bfloat16)
    assert torch.equal(alone.float(), whole[count - 1, at])


@given(seed=SEEDS, start=st.integers(0, 100), count=st.integers(0, 50))
@settings(max_examples=40)
def test_words_of_the_rounding_stream_are_those_of_the_oracle(seed: int, start: int, count: int) -> None:
    drawn = random_words(
        count, stream=SignStream(seed=seed, step=4), parameter=6, start=start, device=torch.device("cpu")
    )
    expected = [word(i, seed=seed, step=4, parameter=6 | 1 << 31, direction=0) for i in range(start, start + count)]
    assert drawn.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_signs_have_the_shape_and_dtype_asked_for(dtype: torch.dtype) -> None:
    stream = SignStream(seed=1, step=2)
    drawn = random_signs((3, 5, 7), stream=stream, parameter=0, dtype=dtype)
    assert (drawn.dtype, drawn.shape) == (dtype, (3, 5, 7))
    assert set(drawn.flatten().tolist()) == {1.0, -1.0}
    assert random_signs((), stream=stream, parameter=0).shape == ()
    assert random_signs((0, 4), stream=stream, parameter=0).shape == (0, 4)


def test_signs_are_balanced_and_streams_uncorrelated() -> None:
    """2**17 signs: means and correlations have a standard deviation of 0.0028; 5 of them are allowed."""
    size = 1 << 17
    base = {"seed": 12, "step": 3, "parameter": 4, "direction": 5}
    others = [base | {name: base[name] + 1} for name in base] + [base | {"seed": 12 + (1 << 32)}]
    drawn = [
        random_signs(
            (size,), stream=SignStream(seed=o["seed"], step=o["step"]), parameter=o["parameter"],
            direction=o["direction"],
        )
        for o in (base, *others)
    ]  # fmt: skip
    assert max(abs(float(one.mean())) for one in drawn) < 5 / size**0.5
    assert max(abs(float((a * b).mean())) for a, b in itertools.combinations(drawn, 2)) < 5 / size**0.5
    for lag in (1, 31, 32, 64, 128, 4096):
        assert abs(float((drawn[0][lag:] * drawn[0][:-lag]).mean())) < 5 / (size - lag) ** 0.5


def test_every_bit_of_a_word_is_balanced() -> None:
    by_bit = random_signs((4096, 32), stream=SignStream(seed=3, step=1), parameter=2).mean(0)
    assert float(by_bit.abs().max()) < 5 / 4096**0.5


@pytest.mark.parametrize(("seed", "step"), [(-1, 0), (2**64, 0), (0, -1), (0, 2**32)])
def test_streams_out_of_range_are_refused(seed: int, step: int) -> None:
    with pytest.raises(ValueError, match=r"must fit in (64|32) bits without sign; got"):
        SignStream(seed=seed, step=step)
