"""Honest meters: what the library counts equals what is seen from outside."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from featherlight import functional
from featherlight.functional import SignStream, philox_4x32
from featherlight.meter import Meter, allocation_peak, process_peak_bytes
from featherlight.objective import BatchObjective
from featherlight.optim import MeZO, RankOneSigns, ZerothOrderSGD
from featherlight.optim.zeroth_order.evaluation import SlopeEvaluator
from tests.unit.optim.problems import make_batch, make_model, squared_error
from tests.unit.optim.zoo import CASES


@contextmanager
def philox_words() -> Iterator[list[int]]:
    """The number of words of every call of the generator, from outside."""
    drawn: list[int] = []

    def watched(counter: Tensor, key: tuple[int, int]) -> Tensor:
        words = philox_4x32(counter, key)
        drawn.append(words.numel())
        return words

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional.signs, "philox_4x32", watched)
        yield drawn


def count_forwards(model: nn.Module) -> list[int]:
    seen: list[int] = []
    model.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    return seen


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("count", [1, 2, None])
def test_forward_passes_are_those_that_hooks_see(count: int | None, micro_batch: int | None) -> None:
    model, meter = make_model(), Meter()
    seen = count_forwards(model)
    optimizer = ZerothOrderSGD(model, 1e-2, directions=RankOneSigns(count), meter=meter)
    objective = BatchObjective(model, make_batch(), squared_error, micro_batch=micro_batch, meter=meter)
    optimizer.step(objective)
    assert meter.example_forwards == sum(seen) == 2 * 8 + (0 if count == 1 else 9)
    optimizer.step(objective)
    assert meter.example_forwards == sum(seen) == 4 * 8 + (0 if count == 1 else 9)
    assert meter.backward_passes == 0


def test_backward_passes_are_those_that_hooks_see() -> None:
    model, meter = make_model(), Meter()
    seen = count_forwards(model)
    backward: list[int] = []
    model.register_full_backward_hook(lambda module, into, out: backward.append(len(out[0])))
    batch = make_batch()
    batch["x"].requires_grad_()
    BatchObjective(model, batch, squared_error, micro_batch=3, meter=meter)()
    assert meter.example_forwards == sum(seen) == 8
    assert meter.backward_passes == sum(backward) == 8


def test_tokens_are_those_that_the_mask_keeps() -> None:
    model, meter = make_model(), Meter()
    batch = make_batch() | {"attention_mask": torch.arange(40).reshape(8, 5) % 3 > 0}
    objective = BatchObjective(model, batch, squared_error, micro_batch=3, meter=meter)
    objective.value()
    assert meter.tokens == int(batch["attention_mask"].sum())


@pytest.mark.parametrize("name", ["embedding", "tied embedding and head", "small image classifier", "LSTM"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 2, None])
def test_random_words_are_those_that_the_generator_gave(name: str, dtype: torch.dtype, count: int | None) -> None:
    """Rounding takes half a word a weight; the generator gives four words at once, so some stay unused."""
    model, objective = CASES[name].build(0, dtype=dtype)
    meter = Meter()
    optimizer = ZerothOrderSGD(model, 1e-2, directions=RankOneSigns(count), meter=meter)
    optimizer.step(objective)
    meter.random_words = 0
    with philox_words() as drawn:
        for _ in range(3):
            optimizer.step(objective)
    unused = 0 if dtype == torch.float32 else 3 * 3 * len(optimizer.targets)
    assert meter.random_words <= sum(drawn) <= meter.random_words + unused


def test_signs_cost_about_one_word_for_32_of_them() -> None:
    """Rank one: rows + columns of a matrix, not their product."""
    model, meter = nn.Linear(1024, 2048, bias=False), Meter()
    batch = {"x": torch.ones(2, 1024), "y": torch.zeros(2, 2048)}
    optimizer = ZerothOrderSGD(model, 1e-3, meter=meter)
    with philox_words() as drawn:
        optimizer.step(BatchObjective(model, batch, squared_error))
    assert meter.random_words == sum(drawn) == (1024 + 2048) // 32


def test_a_forward_pass_draws_signs_of_touched_rows_alone() -> None:
    model, meter = nn.Embedding(1 << 16, 4), Meter()
    objective = BatchObjective(model, {"x": torch.tensor([[5], [70_00]])}, lambda m, b: m(b["x"]).flatten(1).sum(1))
    targets = ZerothOrderSGD(model, 1e-3).targets
    with philox_words() as drawn:
        measured = SlopeEvaluator(RankOneSigns(1), 1e-3).measure(objective, targets, SignStream(seed=0, step=0))
    assert sum(drawn) == measured.directions.num_words == 4 + 2 * 2 * 4
    assert meter.random_words == 0


@pytest.mark.parametrize("make", [
    (lambda m, meter: ZerothOrderSGD(m, 1e-2, meter=meter), 1),
    (lambda m, meter: ZerothOrderSGD(m, 1e-2, meter=meter, directions=RankOneSigns(None)), 1),
    (lambda m, meter: MeZO(m, 1e-2, meter=meter), 4),
])  # fmt: skip
def test_weight_passes_are_the_writes_that_a_dispatch_mode_sees(make: Any) -> None:
    build, passes = make
    model, meter = make_model(), Meter()
    optimizer = build(model, meter)
    writes: list[int] = []
    for step in range(2):
        with _counted_writes(model) as written:
            optimizer.step(BatchObjective(model, make_batch(step), squared_error, meter=meter))
        writes.append(written[0])
    assert meter.weight_passes == 2 * passes
    assert writes == [passes * sum(p.numel() for p in model.parameters())] * 2


@contextmanager
def _counted_writes(model: nn.Module) -> Iterator[list[int]]:
    """Elements of the model's storage that in-place operations wrote."""
    storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    written = [0]

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
            target = args[0] if func._schema.is_mutable and args else None
            if isinstance(target, Tensor) and target.untyped_storage().data_ptr() in storages:
                written[0] += target.numel()
            return func(*args, **(kwargs or {}))

    with Count():
        yield written


def test_normals_of_mezo_are_one_word_for_each_weight_and_pass() -> None:
    model, meter = make_model(), Meter()
    MeZO(model, 1e-2, meter=meter).step(BatchObjective(model, make_batch(), squared_error))
    assert meter.random_words == 4 * sum(p.numel() for p in model.parameters())


def test_counters_are_a_dict_of_plain_numbers() -> None:
    meter = Meter(tokens=3)
    assert meter.as_dict() == {
        "example_forwards": 0, "backward_passes": 0, "tokens": 3, "weight_passes": 0.0, "random_words": 0,
        "bytes_written": 0,
    }  # fmt: skip


def test_allocation_peak_is_what_tensors_took_at_once() -> None:
    size = 1 << 20
    with allocation_peak() as peak:
        for _ in range(3):
            held = torch.zeros(size)
            other = held + 1
            del held, other
    assert 2 * 4 * size <= peak.bytes < 2 * 4 * size + (1 << 16)


def test_forward_only_memory_is_that_of_inference_and_a_little() -> None:
    """No copy of the weights: the peak of a step stays below a quarter of them."""
    model = nn.Sequential(*[nn.Linear(512, 512) for _ in range(6)])
    batch = {"x": torch.ones(2, 512), "y": torch.zeros(2, 512)}
    optimizer = ZerothOrderSGD(model, 1e-3)
    objective = BatchObjective(model, batch, squared_error)
    optimizer.step(objective)
    weights = sum(4 * p.numel() for p in model.parameters())
    with allocation_peak() as peak:
        optimizer.step(objective)
    assert 0 < peak.bytes < weights / 4


def test_process_peak_counts_in_bytes() -> None:
    assert process_peak_bytes() > 50_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count a process by itself")
def test_the_peak_of_a_process_is_its_own_and_not_its_parents() -> None:
    large = b"1" * 1_000_000_000
    code = "from featherlight.meter import process_peak_bytes; print(process_peak_bytes())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process_peak_bytes() > len(large) > int(child.stdout)
