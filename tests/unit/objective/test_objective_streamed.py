"""A streamed objective is that of one large batch, chunk by chunk, and holds one chunk at a time."""

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

from featherlight.meter import Meter
from featherlight.objective import BatchObjective, Objective, PerExampleObjective, StreamedObjective
from featherlight.optim import MeZOSVRG, RankOneSigns, ZerothOrderSGD
from tests.properties.test_zeroth_order_laws import global_states
from tests.unit.optim.problems import bits_of, make_batch, make_model, squared_error


class Chunks:
    """Rows of a batch in chunks, made anew for each way through, with a weak reference to each."""

    def __init__(self, batch: dict[str, Tensor], size: int) -> None:
        self.batch = batch
        self.size = size
        self.made: list[weakref.ref[Tensor]] = []
        self.most_alive = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(self.batch["x"]), self.size):
            alive = sum(ref() is not None for ref in self.made)
            self.most_alive = max(self.most_alive, alive + 1)
            yield self._make(start)

    def _make(self, start: int) -> dict[str, Tensor]:
        chunk = {name: rows[start : start + self.size].clone() for name, rows in self.batch.items()}
        self.made.append(weakref.ref(chunk["x"]))
        return chunk


def streamed(model: nn.Module, chunks: Any, num_examples: int, **options: Any) -> StreamedObjective:
    return StreamedObjective(model, chunks, squared_error, num_examples=num_examples, **options)


@given(rows=st.integers(1, 9), size=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_it_is_the_objective_of_all_rows_at_once(rows: int, size: int, seed: int) -> None:
    model, batch = make_model(dtype=torch.float64, seed=seed), make_batch(seed, rows=rows, dtype=torch.float64)
    meters = Meter(), Meter()
    whole = BatchObjective(model, batch, squared_error, meter=meters[0])
    parts = streamed(model, Chunks(batch, size), rows, meter=meters[1])
    expected, gradients = whole(), [p.grad for p in model.parameters()]
    torch.testing.assert_close(parts().double(), expected.double(), rtol=1e-6, atol=0)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    torch.testing.assert_close(parts.values(), whole.values())
    whole.value()
    torch.testing.assert_close(parts.value(), parts.values().mean(), rtol=0, atol=0)
    assert meters[1].example_forwards == meters[0].example_forwards + rows
    assert meters[1].backward_passes == meters[0].backward_passes == rows


def test_one_chunk_is_held_at_a_time() -> None:
    chunks = Chunks(make_batch(rows=10), 3)
    objective = streamed(make_model(), chunks, 10)
    objective()
    objective.values()
    assert len(chunks.made) == 8
    assert chunks.most_alive == 1


def test_dropout_is_the_same_in_every_evaluation_and_the_generators_stay() -> None:
    before = global_states()
    chunks = Chunks(make_batch(rows=10), 4)
    losses = [streamed(make_model(dropout=0.5), chunks, 10, dropout_seed=seed).value for seed in (1, 1, 2)]
    first, same, other = (call() for call in losses)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert global_states() == before


def test_a_data_loader_is_a_source_and_shuffles_alike_in_both_evaluations() -> None:
    batch = make_batch(rows=10)
    rows = [{name: tensor[i] for name, tensor in batch.items()} for i in range(10)]
    model = make_model()
    objective = streamed(model, DataLoader(rows, batch_size=4, shuffle=True), 10, dropout_seed=3)
    values = objective.values()
    assert torch.equal(values, objective.values())
    torch.testing.assert_close(values.sort().values, squared_error(model, batch).detach().sort().values)


@pytest.mark.parametrize("directions", [RankOneSigns(), RankOneSigns(None), RankOneSigns(3)])
def test_forward_only_steps_are_those_of_one_batch(directions: RankOneSigns) -> None:
    batch, finals = make_batch(rows=10, dtype=torch.float64), []
    for chunked in (False, True):
        model = make_model(dtype=torch.float64)
        objective = streamed(model, Chunks(batch, 4), 10) if chunked else BatchObjective(model, batch, squared_error)
        assert isinstance(objective, Objective)
        assert isinstance(objective, PerExampleObjective)
        optimizer = ZerothOrderSGD(model, 0.01, directions=directions)
        for _ in range(4):
            optimizer.step(objective)
        finals.append(model)
    for ours, theirs in zip(finals[1].parameters(), finals[0].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_it_serves_the_anchors_of_mezo_svrg() -> None:
    model, everything = make_model(), make_batch(rows=64)
    optimizer = MeZOSVRG(model, 0.005, 0.01, anchor_every=3, sigma=1e-2, directions=RankOneSigns(None))
    start = float(squared_error(model, everything).mean().detach())
    for step in range(90):
        few = {name: rows[step % 8 * 8 :][:8] for name, rows in everything.items()}
        anchor = streamed(model, Chunks(everything, 16), 64)
        optimizer.step(anchor if optimizer.next_is_anchor else BatchObjective(model, few, squared_error))
    assert float(squared_error(model, everything).mean().detach()) < 0.8 * start


@pytest.mark.parametrize("size", [1, 2, 8])
def test_narrow_gathers_the_first_rows(size: int) -> None:
    model, batch = make_model(), make_batch(rows=8)
    objective = streamed(model, Chunks(batch, size), 8)
    first = objective.narrow(3)
    assert first.num_examples == 3
    torch.testing.assert_close(first.values(), objective.values()[:3])
    assert objective.narrow(99).num_examples == 8


def test_first_rows_in_chunks_of_other_shapes_are_refused() -> None:
    ragged = [{"x": torch.zeros(1, 4)}, {"x": torch.zeros(2, 5)}]
    with pytest.raises(
        ValueError, match=r"the first 3 rows of `source` are in chunks of different shapes .* at least 3"
    ):
        StreamedObjective(make_model(), ragged, squared_error, num_examples=3).narrow(3)


def test_a_source_for_one_way_through_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`source` can be gone through once only \(it is a generator\)"):
        streamed(make_model(), (one for one in [make_batch()]), 8)


@pytest.mark.parametrize(("said", "found"), [(7, "at least 8"), (9, "8 rows"), (100, "8 rows")])
def test_another_number_of_rows_is_refused(said: int, found: str) -> None:
    model = make_model()
    before = bits_of(model)
    for call in (lambda o: o.value(), lambda o: o()):
        with pytest.raises(ValueError, match=rf"`source` has {found}.* but `num_examples` is {said}"):
            call(streamed(model, Chunks(make_batch(rows=8), 4), said))
    assert bits_of(model) == before


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="`num_examples` must be at least 1 row in all chunks together; got 0"):
        streamed(make_model(), [], 0)
    with pytest.raises(ValueError, match="`batch` must hold tensors of one common, positive number of rows; got"):
        streamed(make_model(), [{"x": torch.zeros(0, 4)}], 3).value()
