"""The journal: what is written is read, and no damage is ever read as a step."""

import errno
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from featherlight.meter import Meter
from featherlight.optim import RankOneSigns, ZerothOrderSGD
from featherlight.optim.zeroth_order import Echo, StepRecord, Target, apply_update, targets_of
from featherlight.trainer import JournalContents, JournalWriter, read_journal, replay_journal, weights_digest
from featherlight.trainer.journal import encode_record
from tests.unit.optim.problems import bits_of, make_model, make_objective


def make_record(step: int, *, count: int = 2, groups: int = 1, seed: int = 0) -> StepRecord:
    draw = torch.Generator().manual_seed(step + seed)
    rates = torch.rand(groups, generator=draw).tolist()
    return StepRecord(
        step=step,
        seed=2**64 - 1 - step,
        world=2 + step,
        epoch=2**32 - 1 - step,
        scale=float(torch.rand((), generator=draw)),
        rates=tuple(rates),
        decays=tuple(1.0 for _ in rates),
        coefficients=torch.randint(-4095, 4096, (count,), generator=draw),
    )


def make_targets() -> list[Target]:
    model = nn.Linear(2, 1, bias=False)
    return targets_of(model, [{"params": list(model.parameters())}])


def write_journal(path: Path, num_records: int, **options: Any) -> Meter:
    meter = Meter()
    writer = JournalWriter(path, header={"seed": 1}, fitted={"head": torch.arange(3.0)}, meter=meter)
    for step in range(num_records):
        writer.append(make_record(step, **options), make_targets())
    writer.close()
    return meter


def plain(records: list[StepRecord]) -> list[tuple[Any, ...]]:
    return [(r.step, r.world, r.epoch, r.seed, r.scale, r.rates, r.decays, r.coefficients.tolist()) for r in records]


def ends_of_records(path: Path, num_records: int) -> list[int]:
    """Offsets in the file after the header and after each record."""
    sizes = [len(encode_record(make_record(step))) + 4 for step in range(num_records)]
    begin = path.stat().st_size - sum(sizes)
    return [begin + sum(sizes[:number]) for number in range(num_records + 1)]


@given(
    steps=st.integers(0, 4), count=st.sampled_from([1, 2, 64, 4096]), groups=st.integers(1, 3), scale=st.floats(width=32)
)  # fmt: skip
@settings(max_examples=25)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, steps: int, count: int, groups: int, scale: float
) -> None:
    path = tmp_path_factory.mktemp("run") / "journal"
    meter = write_journal(path, steps + 1, count=count, groups=groups)
    contents = read_journal(path)
    assert contents.damage is None
    assert contents.intact_bytes == path.stat().st_size == meter.bytes_written
    assert plain(contents.records) == plain([make_record(s, count=count, groups=groups) for s in range(steps + 1)])
    assert torch.equal(contents.fitted["head"], torch.arange(3.0))
    assert contents.header["seed"] == 1
    assert (
        contents.header["parameters"][0] | {"shape": [1, 2], "dtype": "torch.float32"}
        == contents.header["parameters"][0]
    )


@pytest.mark.parametrize("count", [1, 64, 4096])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_step_takes_at_most_48_bytes_and_two_a_direction(groups: int, count: int) -> None:
    assert len(encode_record(make_record(0, count=count, groups=groups))) + 4 <= 48 + 2 * count


def check_damaged(path: Path, data: bytes, ends: list[int], intact: int) -> JournalContents | None:
    """Reads `data`, of which the first `intact` records are whole: they come back, and no others."""
    path.write_bytes(data)
    try:
        contents = read_journal(path)
    except ValueError as error:
        said = str(error)
    else:
        said = ""
    if said:
        assert intact == 0
        assert str(path) in said
        return None
    assert plain(contents.records) == plain([make_record(step) for step in range(intact)])
    assert contents.intact_bytes == ends[intact]
    return contents


def test_no_flipped_byte_is_read_as_a_step(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write_journal(path, 3)
    whole, ends = path.read_bytes(), ends_of_records(path, 3)
    for offset in range(len(whole)):
        for flip in (0x01, 0x80, 0xFF, 0x20):
            data = bytearray(whole)
            data[offset] ^= flip
            intact = sum(offset >= end for end in ends[1:])
            contents = check_damaged(path, bytes(data), ends, intact)
            assert (contents is None) == (offset < ends[0])
            if contents is not None:
                assert contents.damage is not None
                assert f"after step {intact}" in contents.damage
                assert f"{len(whole) - ends[intact]} bytes at offset {ends[intact]}" in contents.damage


def test_no_truncation_is_read_as_a_step(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write_journal(path, 3)
    whole, ends = path.read_bytes(), ends_of_records(path, 3)
    for length in range(len(whole)):
        intact = sum(length >= end for end in ends[1:])
        contents = check_damaged(path, whole[:length], ends, intact)
        assert (contents is None) == (length < ends[0])
        if contents is not None:
            assert (contents.damage is None) == (length in ends)


@given(tail=st.binary(min_size=1, max_size=80))
@settings(max_examples=60)
def test_no_garbage_behind_the_end_is_read_as_a_step(tmp_path_factory: pytest.TempPathFactory, tail: bytes) -> None:
    path = tmp_path_factory.mktemp("run") / "journal"
    write_journal(path, 2)
    ends = ends_of_records(path, 2)
    contents = check_damaged(path, path.read_bytes() + tail, ends, 2)
    assert contents is not None
    assert contents.damage is not None


@pytest.mark.parametrize("parts", [(0, 1, 1), (0, 2), (1, 0, 2), (0, 2, 1), (0, 1, "other")])
def test_parts_that_are_repeated_left_out_swapped_or_of_another_run_are_damage(
    tmp_path: Path, parts: tuple[int | str, ...]
) -> None:
    """Each part is whole and its number may fit, yet it does not follow from what stands before it."""
    path, other = tmp_path / "journal", tmp_path / "other"
    write_journal(path, 3)
    write_journal(other, 3, seed=9)
    whole, ends = path.read_bytes(), ends_of_records(path, 3)
    pieces = {number: whole[ends[number] : ends[number + 1]] for number in range(3)}
    pieces["other"] = other.read_bytes()[ends[2] : ends[3]]  # pyright: ignore[reportArgumentType]
    intact = next(number for number, part in enumerate(parts) if part != number)
    shuffled = whole[: ends[0]] + b"".join(pieces[part] for part in parts)  # pyright: ignore[reportArgumentType]
    contents = check_damaged(path, shuffled, ends, intact)
    assert contents is not None
    assert contents.damage is not None


def train(path: Path, steps: int, **options: Any) -> nn.Module:
    """A run whose journal notes its state every second step."""
    model = make_model()
    resume = read_journal(path) if path.exists() else None
    journal = JournalWriter(path, header={}, fitted={}, meter=Meter(), state_every=2, resume=resume, **options)
    optimizer = ZerothOrderSGD(model, 1e-2, journal=journal)
    if resume is not None:
        optimizer.replay(resume.records)
    for step in range(optimizer.steps_done, steps):
        optimizer.step(make_objective(model, step))
    journal.note_state(steps)
    journal.close()
    return model


def test_states_are_those_of_a_replay_and_a_resumed_journal_is_the_same_to_the_bit(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    model = train(whole, 5)
    contents = read_journal(whole)
    assert [state.steps for state in contents.states] == [2, 4, 5]
    assert contents.states[-1].weights.hex() == weights_digest(dict(model.named_parameters()))
    assert bits_of(train(parts, 4)) != bits_of(model)
    assert bits_of(train(parts, 5)) == bits_of(model)
    assert parts.read_bytes() == whole.read_bytes()
    for steps in range(6):
        replay_journal(contents, again := make_model(), steps=steps)
        assert (bits_of(again) == bits_of(model)) == (steps == 5)


def test_a_replay_on_altered_weights_stops_at_the_first_state(tmp_path: Path) -> None:
    train(tmp_path / "journal", 5)
    model = make_model()
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(ValueError, match=r"after a replay to step 2 .* are not those the run had there"):
        replay_journal(read_journal(tmp_path / "journal"), model)


def test_no_flipped_bit_of_a_state_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    train(path, 2)
    whole = path.read_bytes()
    for bit in range(8 * (len(whole) - 75), 8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(data)
        contents = read_journal(path)
        assert contents.states == []
        assert contents.damage is not None
        assert len(contents.records) == 2


def test_a_damaged_tail_is_kept_aside_and_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write_journal(path, 3)
    whole, ends = path.read_bytes(), ends_of_records(path, 3)
    path.write_bytes(whole[: ends[2] + 7])
    writer = JournalWriter(path, header={}, fitted={}, meter=Meter(), resume=read_journal(path))
    writer.append(make_record(2), make_targets())
    writer.close()
    assert path.read_bytes() == whole
    assert (tmp_path / "journal.damaged").read_bytes() == whole[: ends[2] + 7]


def test_an_intact_journal_goes_on_without_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write_journal(path, 2)
    writer = JournalWriter(path, header={}, fitted={}, meter=Meter(), resume=read_journal(path))
    writer.append(make_record(2), make_targets())
    writer.close()
    assert plain(read_journal(path).records) == plain([make_record(step) for step in range(3)])
    assert [file.name for file in tmp_path.iterdir()] == ["journal"]


def test_an_existing_journal_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write_journal(path, 1)
    whole = path.read_bytes()
    with pytest.raises(ValueError, match="exists already"):
        write_journal(path, 1)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "no journal at"),
        (b"", "is not a journal"),
        (b"hello", "is not a journal"),
        (b"FLJOURN2", "cut off"),
        (b"FLJOURN1", "of another format"),
    ],
)
def test_what_is_not_a_journal_is_named(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "journal"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        read_journal(path)


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    writer = JournalWriter(path, header={"format": 3}, fitted={}, meter=Meter())
    writer.append(make_record(0), make_targets())
    writer.close()
    with pytest.raises(ValueError, match=r"journal format 3; this version reads format 2"):
        read_journal(path)


def test_each_step_is_on_disk_before_its_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every flush the file holds all steps so far and the weights are still those before the step."""
    model, path = make_model(), tmp_path / "journal"
    journal = JournalWriter(path, header={}, fitted={}, meter=Meter())
    optimizer = ZerothOrderSGD(model, 1e-2, journal=journal)
    seen: list[tuple[int, bool]] = []
    flush = os.fdatasync

    def watched(descriptor: int) -> None:
        flush(descriptor)
        seen.append((len(read_journal(path).records), bits_of(model) == before))

    monkeypatch.setattr(os, "fdatasync", watched)
    for step in range(3):
        before = bits_of(model)
        optimizer.step(make_objective(model, step))
    journal.close()
    assert seen == [(1, True), (2, True), (3, True)]


def test_a_full_disk_stops_the_step_and_a_second_try_leaves_a_sound_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = make_model(), tmp_path / "journal"
    base = make_model()
    journal = JournalWriter(path, header={}, fitted={}, meter=Meter())
    optimizer = ZerothOrderSGD(model, 1e-2, journal=journal, directions=RankOneSigns(None))
    optimizer.step(make_objective(model, 0))
    before, length = bits_of(model), path.stat().st_size

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", full)
        with pytest.raises(OSError, match="No space left"):
            optimizer.step(make_objective(model, 1))
    assert bits_of(model) == before
    assert optimizer.steps_done == 1
    assert path.stat().st_size == length
    optimizer.step(make_objective(model, 1))
    journal.close()
    contents = read_journal(path)
    assert contents.damage is None
    assert [record.step for record in contents.records] == [0, 1]
    for record in contents.records:
        apply_update(contents.targets(base), record, meter=Meter())
    assert bits_of(base) == bits_of(model)


def test_a_full_disk_in_the_header_leaves_no_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "journal"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_journal(path, 1)
    assert list(tmp_path.iterdir()) == []
    write_journal(path, 1)
    assert len(read_journal(path).records) == 1


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda model: model.double(), r"\[\[6, 4\], 'torch.float64'\]"),
        (lambda model: nn.Sequential(nn.Linear(5, 6)), r"\[\[6, 5\], 'torch.float32'\]"),
        (lambda model: nn.Linear(4, 6), "no such parameter"),
    ],
)
def test_a_journal_of_another_model_is_refused(tmp_path: Path, change: Any, seen: str) -> None:
    model = make_model()
    journal = JournalWriter(tmp_path / "journal", header={}, fitted={}, meter=Meter())
    ZerothOrderSGD(model, 1e-2, journal=journal).step(make_objective(model))
    journal.close()
    contents = read_journal(tmp_path / "journal")
    with pytest.raises(ValueError, match=rf"the journal trains `0.weight` of shape \[6, 4\] .* {seen}"):
        contents.targets(change(make_model()))


def test_header_is_readable_json_by_anyone(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write_journal(path, 1)
    data = path.read_bytes()
    length = int.from_bytes(data[8:12], "little")
    assert json.loads(data[12 : 12 + length])["format"] == 2


def test_digest_sees_names_types_shapes_and_every_bit() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    others = [
        {"a": torch.zeros(3, 2), "b": base["b"]},
        {"c": base["a"], "b": base["b"]},
        {"a": torch.zeros(2, 3).double(), "b": base["b"]},
        {"a": -base["a"], "b": base["b"]},
        {"a": base["a"]},
    ]
    digests = [weights_digest(tensors) for tensors in (base, *others)]
    assert len(set(digests)) == len(digests)
    assert weights_digest({"b": base["b"], "a": base["a"].T.contiguous().T}) == digests[0]


def test_the_vector_of_the_docs_is_what_is_written(tmp_path: Path) -> None:
    """The page has a reader of its own for it, which a test of the docs runs."""
    page = (Path(__file__).parents[3] / "docs" / "journal.md").read_text()
    vector = bytes.fromhex("".join(re.findall(r'^    "([0-9a-f]+)"$', page, re.MULTILINE)))
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))
    targets = targets_of(model, [{"params": list(model.parameters())}])
    facts: dict[str, Any] = {"seed": 7, "scale": 0.5, "rates": (0.25,), "decays": (1.0,)}
    steps = [StepRecord(step=step, coefficients=torch.tensor([3, -4]), **facts) for step in range(2)]
    steps[1] = replace(steps[1], echoes=(Echo(step=0, rates=(0.125,)),), world=2, epoch=1)
    journal = JournalWriter(tmp_path / "journal", header={"base": "b"}, fitted={}, meter=Meter())
    for step in steps:
        journal.append(step, targets)
    journal.note_state(2)
    journal.close()
    assert (tmp_path / "journal").read_bytes() == vector
