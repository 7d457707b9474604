"""Laws of weights held as whole numbers: steps beside them are exact, rounding is fair, and a replay ends in the same bits."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from featherlight.functional import QuantizedTensor, SignStream, quantized_tensor
from featherlight.meter import Meter
from featherlight.objective import BatchObjective
from featherlight.optim import MeZOSVRG, RankOneSigns, SpreadNormalized, ZerothOrderSGD
from featherlight.optim.zeroth_order import Echo, StepRecord, Target, apply_update, apply_updates, update
from featherlight.transforms import dequantize, quantize_base
from tests.oracles.quantized_update import units_of, weights_after
from tests.oracles.slopes import trained
from tests.properties.test_exact_update import threads
from tests.unit.optim.problems import make_batch, make_model, squared_error


def float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))


def records_of(count: int, *, directions: int, seed: int, decay: float = 1.0, rate: float = 1e-6) -> list[StepRecord]:
    generator = torch.Generator().manual_seed(seed % 2**63)
    return [
        StepRecord(
            step=step, seed=seed, scale=1.0, rates=(float32(rate * (1 + step)),), decays=(float32(decay),),
            coefficients=torch.randint(-4095, 4096, (directions,), generator=generator),
        )
        for step in range(count)
    ]  # fmt: skip


def held_target(
    shape: tuple[int, int] = (9, 45), *, bits: int = 8, group: int | None = None, merge_rank: int = 10**6
) -> Target:
    generator = torch.Generator().manual_seed(0)
    weight = QuantizedTensor.rounded(
        torch.randn(shape, generator=generator), bits=bits, group=group, merge_rank=merge_rank
    )
    [target] = trained(nn.ParameterList([nn.Parameter(weight)]))
    return target


def weight_of(target: Target) -> QuantizedTensor:
    assert isinstance(target.parameter, QuantizedTensor)
    return target.parameter


def apply(targets: Sequence[Target], records: Sequence[StepRecord]) -> Meter:
    meter, earlier = Meter(), {}
    for record in records:
        earlier[record.step] = record
        apply_update(targets, record, meter=meter, earlier=earlier)
    return meter


@given(
    steps=st.integers(1, 5),
    directions=st.integers(1, 5),
    decay=st.sampled_from([1.0, 0.99]),
    layout=st.sampled_from([(8, None), (4, 32), (4, 6)]),
    shape=st.sampled_from([(9, 45), (1, 3), (130, 20)]),
    shared=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
)
@settings(max_examples=25)
def test_steps_kept_beside_a_weight_are_the_dense_formula(
    steps: int, directions: int, decay: float, layout: tuple, shape: tuple, shared: bool, seed: int
) -> None:
    target = held_target(shape, bits=layout[0], group=layout[1])
    target.shared = shared
    weight, records = weight_of(target), records_of(steps, directions=directions, seed=seed, decay=decay)
    codes = weight.codes.clone()
    expected = weights_after(weight, target, records)
    apply([target], records)
    assert torch.equal(weight.codes, codes)
    torch.testing.assert_close(weight.plain().double(), expected, rtol=1e-6, atol=1e-6)
    for count in (2, 400):
        x = torch.randn(count, shape[1], generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(
            nn.functional.linear(x, weight), (x.double() @ expected.T).float(), rtol=1e-4, atol=1e-4
        )
        z = torch.randn(count, shape[0], generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(z @ weight, (z.double() @ expected).float(), rtol=1e-4, atol=1e-4)


def test_a_step_that_echoes_earlier_ones_is_the_same_as_on_floats() -> None:
    target = held_target()
    first, second = records_of(2, directions=3, seed=5)
    echoing = replace(second, echoes=(Echo(step=0, rates=(float32(3e-6),)),))
    [plain] = trained(nn.ParameterList([nn.Parameter(weight_of(target).plain())]))
    apply([target], [first, echoing])
    apply([plain], [first, echoing])
    assert torch.equal(weight_of(target).plain(), plain.parameter.detach())


@given(layout=st.sampled_from([(8, None), (4, 32)]), merge_rank=st.integers(0, 7), seed=st.integers(0, 2**64 - 1))
@settings(max_examples=15)
def test_a_merge_rounds_the_exact_sum_to_a_neighbour_on_the_grid(layout: tuple, merge_rank: int, seed: int) -> None:
    target = held_target(bits=layout[0], group=layout[1], merge_rank=merge_rank)
    weight = weight_of(target)
    steps = merge_rank // 2 + 1
    records = records_of(steps, directions=2, seed=seed)
    expected = weights_after(weight, target, records)
    meter = apply([target], records)
    assert weight.change is None
    assert meter.weight_passes == 1
    units = units_of(weight)
    reach = (weight.grid.highest + 0.5) * units
    inside = expected.abs() < reach
    assert ((weight.plain() - expected).abs() <= units * (1 + 1e-4))[inside].all()


def test_a_change_of_another_kind_is_not_dropped() -> None:
    target = held_target()
    weight_of(target).change = object()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match=r"has a object beside its whole numbers, onto which steps cannot be put"):
        apply([target], records_of(1, directions=2, seed=0))


def test_merges_are_fair() -> None:
    """Over many seeds the mean of merged weights is the exact sum."""
    [record] = records_of(1, directions=2, seed=0, rate=3e-6)
    errors = []
    for seed in range(200):
        target = held_target((4, 12), merge_rank=0)
        one = replace(record, seed=seed)
        inside = weight_of(target).codes[:, :12].abs() < 126
        expected = weights_after(weight_of(target), target, [one])
        apply([target], [one])
        errors.append(((weight_of(target).plain() - expected) / units_of(weight_of(target))) * inside)
    found = torch.stack(errors)
    assert found.abs().max() <= 1 + 1e-4
    assert found.std() > 0.1
    assert found.mean(0).abs().max() < 5 * 0.5 / 200**0.5


def test_no_slope_leaves_every_whole_number() -> None:
    target = held_target(merge_rank=0)
    codes = weight_of(target).codes.clone()
    [record] = records_of(1, directions=2, seed=3)
    apply([target], [replace(record, coefficients=torch.zeros(2, dtype=torch.int64))])
    assert weight_of(target).change is None
    assert torch.equal(weight_of(target).codes, codes)


@pytest.mark.parametrize("merge_rank", [0, 5, 1000])
def test_bits_do_not_depend_on_blocks_threads_or_runs_of_steps(
    merge_rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = records_of(7, directions=3, seed=11, decay=0.999)
    one, other = (held_target((20, 33), bits=8, merge_rank=merge_rank) for _ in range(2))
    first = apply([one], records)
    second = Meter()
    with threads(2), monkeypatch.context() as patch:
        patch.setattr(quantized_tensor, "_ELEMENTS_AT_ONCE", 150)
        patch.setattr(update, "_ELEMENTS_AT_ONCE", 77)
        apply_updates([other], records, meter=second)
        assert torch.equal(weight_of(one).plain(), weight_of(other).plain())
    assert torch.equal(weight_of(one).codes, weight_of(other).codes)
    assert first.weight_passes == pytest.approx(second.weight_passes)


def held_model(merge_rank: int = 20, bits: int = 8) -> nn.Module:
    model = make_model()
    quantize_base(model, bits=bits, merge_rank=merge_rank)
    return model


def objective_at(model: nn.Module, step: int) -> BatchObjective:
    return BatchObjective(model, make_batch(step % 3, rows=32), squared_error, dropout_seed=step)


def plain_weights(model: nn.Module) -> list[Tensor]:
    return [p.plain() if isinstance(p, QuantizedTensor) else p.detach().clone() for p in model.parameters()]


class Kept:
    def __init__(self) -> None:
        self.records: list[StepRecord] = []

    def append(self, record: StepRecord, targets: list[Target]) -> None:
        self.records.append(record)


METHODS = {
    "sgd": lambda model, journal: ZerothOrderSGD(model, 0.01, sigma=1e-2, journal=journal),
    "by example": lambda model, journal: ZerothOrderSGD(
        model, 0.04, sigma=1e-2, directions=RankOneSigns(None), normalize=SpreadNormalized(), weight_decay=1e-3,
        journal=journal,
    ),
    "svrg": lambda model, journal: MeZOSVRG(model, 0.005, 0.01, anchor_every=3, sigma=1e-2, journal=journal),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_run_lowers_the_loss_and_its_records_replay_to_the_same_bits(method: str) -> None:
    model, journal = held_model(), Kept()
    base = copy.deepcopy(model)
    optimizer = METHODS[method](model, journal)
    before = float(objective_at(model, 0).value())
    for step in range(40):
        optimizer.step(objective_at(model, step))
    assert float(objective_at(model, 0).value()) < 0.9 * before
    twin = METHODS[method](base, None)
    with threads(2):
        twin.replay(journal.records)
    assert all(map(torch.equal, plain_weights(model), plain_weights(base)))
    after = float(objective_at(model, 0).value())
    assert dequantize(model)
    assert float(objective_at(model, 0).value()) == pytest.approx(after, rel=1e-5)


def test_state_round_trips_with_steps_kept_beside_the_weights() -> None:
    model = held_model(merge_rank=50)
    optimizer = METHODS["sgd"](model, None)
    for step in range(10):
        optimizer.step(objective_at(model, step))
    other = held_model(merge_rank=50)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed = METHODS["sgd"](other, None)
    resumed.load_state_dict(optimizer.state_dict())
    for step in range(10, 30):
        assert torch.equal(optimizer.step(objective_at(model, step)), resumed.step(objective_at(other, step)))
    assert all(map(torch.equal, plain_weights(model), plain_weights(other)))


def test_evaluations_leave_weights_and_kept_steps_alone() -> None:
    model = held_model()
    optimizer = METHODS["by example"](model, None)
    for step in range(3):
        optimizer.step(objective_at(model, step))
    before = plain_weights(model)
    held = [p.change for p in model.parameters() if isinstance(p, QuantizedTensor)]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.evaluator.measure(objective_at(model, 9), optimizer.targets, SignStream(seed=1, step=3))
    assert all(map(torch.equal, before, plain_weights(model)))
    assert held == [p.change for p in model.parameters() if isinstance(p, QuantizedTensor)]
