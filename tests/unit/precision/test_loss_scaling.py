"""Loss scaling: any optimizer, closures, micro-batches, clipping, several processes; and what it says when nothing helps."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featherlight.objective import (
    BatchObjective,
    ClipGradient,
    NonFiniteLossError,
    ObjectivesInTurn,
    ScalableObjective,
    SharedObjective,
    StreamedObjective,
    autocast,
)
from featherlight.optim import (
    OptimizersInTurn,
    WithLossScaling,
    ZerothOrderSGD,
    evaluation_weights,
    schedule_free_adamw,
)
from featherlight.optim.first_order import AveragingOptimizer
from featherlight.precision import LossScaler, Precision
from tests.unit.optim.problems import bits_of, make_batch, make_model, make_objective, squared_error

OPTIMIZERS = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=0.02, fused=True),
    "LBFGS": lambda model: torch.optim.LBFGS(model.parameters(), lr=0.3, max_iter=4, line_search_fn="strong_wolfe"),
    "schedule-free": lambda model: schedule_free_adamw(model.parameters(), lr=0.02),
}


class Overflows:
    """A loss whose gradient is infinite in some evaluations, by their number, or where the scale is too large."""

    def __init__(self, *, at: set[int] = frozenset(), above: float = float("inf"), scaler: LossScaler | None = None):  # pyright: ignore[reportArgumentType]
        self.at, self.above, self.scaler, self.calls = at, above, scaler, 0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        losses = squared_error(model, batch)
        bad = self.calls in self.at or (self.scaler is not None and self.scaler.scale > self.above)
        self.calls += 1
        if bad:
            losses.register_hook(lambda gradient: gradient * float("inf"))
        return losses


def overflowing(loss: Overflows, model: nn.Module, step: int = 0) -> BatchObjective:
    return BatchObjective(model, make_batch(step), loss, dropout_seed=step)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_power_of_two_changes_no_bit(name: str, micro_batch: int | None) -> None:
    plain, scaled = make_model(dropout=0.1), make_model(dropout=0.1)
    one, other = OPTIMIZERS[name](plain), WithLossScaling(OPTIMIZERS[name](scaled), LossScaler(growth_every=3))
    for step in range(8):
        losses = [
            optimizer.step(ClipGradient(make_objective(model, step, micro_batch=micro_batch), model.parameters(), 0.5))
            for model, optimizer in ((plain, one), (scaled, other))
        ]
        assert torch.equal(*losses)
    assert bits_of(plain) == bits_of(scaled)
    assert other.scaler.scale == 2.0**18
    assert other.scaler.skipped == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_overflow_leaves_weights_and_state_alone_and_the_next_step_as_if_it_had_never_been(name: str) -> None:
    model = make_model()
    optimizer = WithLossScaling(OPTIMIZERS[name](model))
    twin_model = make_model()
    twin = WithLossScaling(OPTIMIZERS[name](twin_model))
    for step in range(2):
        optimizer.step(make_objective(model, step))
        twin.step(make_objective(twin_model, step))
    before, state = bits_of(model), copy.deepcopy(optimizer.optimizers[0].state_dict()["state"])
    loss = optimizer.step(ClipGradient(overflowing(Overflows(at={0}), model), model.parameters(), 0.1))
    assert loss.isfinite()
    assert bits_of(model) == before
    torch.testing.assert_close(optimizer.optimizers[0].state_dict()["state"], state, rtol=0, atol=0)
    assert (optimizer.scaler.scale, optimizer.scaler.skipped, optimizer.scaler.overflowed) == (2.0**15, 1, True)
    optimizer.step(make_objective(model, 5))
    twin.step(make_objective(twin_model, 5))
    assert bits_of(model) == bits_of(twin_model) != before


def test_later_gradients_of_a_step_are_computed_again() -> None:
    model, plain = make_model(), make_model()
    optimizer = WithLossScaling(OPTIMIZERS["LBFGS"](model))
    optimizer.step(overflowing(Overflows(at={2, 3}), model))
    OPTIMIZERS["LBFGS"](plain).step(make_objective(plain))
    assert bits_of(model) == bits_of(plain)
    assert (optimizer.scaler.scale, optimizer.scaler.skipped, optimizer.scaler.recomputed) == (2.0**14, 0, 2)
    with pytest.raises(NonFiniteLossError, match="not finite in the midst of a step, even without loss scaling"):
        optimizer.step(overflowing(Overflows(at=set(range(1, 40))), model))


def test_a_gradient_is_taken_anew_where_an_optimizer_moves_the_weights_before_it_asks() -> None:
    class Ahead(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for parameter in self.param_groups[0]["params"]:
                parameter.add_(0.01)
            with torch.enable_grad():
                loss = closure()
            super().step()
            return loss

    model, plain = make_model(), make_model()
    WithLossScaling(Ahead(model.parameters(), lr=0.1)).step(make_objective(model))
    Ahead(plain.parameters(), lr=0.1).step(make_objective(plain))
    assert bits_of(model) == bits_of(plain)


def test_the_scale_falls_to_what_holds_and_grows_after_good_steps_and_never_below_one() -> None:
    model, scaler = make_model(), LossScaler(initial=2.0**6, growth_every=2)
    optimizer = WithLossScaling(torch.optim.SGD(model.parameters(), lr=0.01), scaler)
    scales = []
    for step in range(12):
        optimizer.step(overflowing(Overflows(above=4.0, scaler=scaler), model, step))
        scales.append(scaler.scale)
    assert scales == [32, 16, 8, 4, 4, 8, 4, 4, 8, 4, 4, 8]
    assert scaler.skipped == 6
    bad = Overflows(at=set(range(100)))
    for _ in range(12):
        optimizer.step(overflowing(bad, model))
    assert scaler.scale == 1
    with pytest.raises(NonFiniteLossError, match=r"in 10 steps in turn, even without loss scaling .* in bfloat16"):
        optimizer.step(overflowing(bad, model))


def test_underflow_share_is_of_what_float16_would_lose_without_the_scale() -> None:
    scaler = LossScaler(initial=2.0**10)
    gradient = torch.tensor([0.0, 2.0**-15, 2.0**-26, -(2.0**-30), 2.0**-14, 1.0, -3.0, 0.0]) * scaler.scale
    scaler.unscale([gradient])
    assert scaler.underflow_share == 3 / 8
    assert not scaler.overflowed
    assert gradient[3] == -(2.0**-30)
    scaler.unscale([torch.ones(2), torch.sparse_coo_tensor([[0]], [float("nan")], (3,), check_invariants=True)])
    assert scaler.overflowed


def test_saved_and_loaded_it_goes_on_to_the_same_bits() -> None:
    def start() -> tuple[nn.Module, WithLossScaling]:
        model = make_model()
        return model, WithLossScaling(OPTIMIZERS["AdamW"](model), LossScaler(growth_every=3))

    def train(model: nn.Module, optimizer: WithLossScaling, steps: range) -> None:
        for step in steps:
            optimizer.step(overflowing(Overflows(above=2.0**15, scaler=optimizer.scaler), model, step))

    whole, first = start(), start()
    train(*whole, range(10))
    train(*first, range(4))
    model = copy.deepcopy(first[0])
    second = model, WithLossScaling(OPTIMIZERS["AdamW"](model), LossScaler(growth_every=3))
    second[1].load_state_dict(first[1].state_dict())
    train(*second, range(4, 10))
    assert bits_of(second[0]) == bits_of(whole[0])
    assert second[1].scaler.state_dict() == whole[1].scaler.state_dict()
    second[1].load_state_dict(OPTIMIZERS["AdamW"](second[0]).state_dict())
    assert second[1].scaler.state_dict() == whole[1].scaler.state_dict()


class Two:
    """Both processes of a step that this one computes alone: the other's counts are handed in."""

    rank, size = 0, 1

    def __init__(self, others: list[int]) -> None:
        self.others = torch.tensor(others)

    def add_gradient(self, loss: Any, batch: Any, scale: float, *, last: bool) -> Tensor:
        part = loss(self.model, batch).sum() * scale
        part.backward()
        return part.detach()

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor + self.others if tensor.dtype == torch.int64 else tensor


@pytest.mark.parametrize(("others", "skipped"), [([0, 0, 0], 0), ([1, 0, 0], 1)])
def test_processes_agree_on_a_skip(others: list[int], skipped: int) -> None:
    model, plain = make_model(), make_model()
    team = Two(others)
    team.model = model
    optimizer = WithLossScaling(OPTIMIZERS["SGD"](model))
    objective = ClipGradient(make_objective(model, micro_batch=4), model.parameters(), 0.1).share(team)
    loss = optimizer.step(objective)
    expected = OPTIMIZERS["SGD"](plain).step(
        ClipGradient(make_objective(plain, micro_batch=4), plain.parameters(), 0.1)
    )
    assert torch.equal(loss, expected)
    assert optimizer.scaler.skipped == skipped
    assert bits_of(model) == bits_of(make_model() if skipped else plain)


def test_every_objective_with_a_gradient_of_a_model_can_be_scaled() -> None:
    model = make_model()
    stream = StreamedObjective(model, [make_batch()], squared_error, num_examples=8)
    for objective in (make_objective(model), stream, SharedObjective(make_objective(model), Two([0, 0, 0]))):
        assert isinstance(objective, ScalableObjective)
    scaler = LossScaler()
    stream.scaled(scaler)()
    expected = [parameter.grad for parameter in model.parameters()]
    make_objective(model)()
    assert all(torch.equal(one.grad, other) for one, other in zip(model.parameters(), expected, strict=True))


def test_averages_are_seen_through_it() -> None:
    model = make_model()
    optimizer = WithLossScaling(schedule_free_adamw(model.parameters(), lr=0.1))
    assert not isinstance(optimizer, AveragingOptimizer)
    for step in range(5):
        optimizer.step(make_objective(model, step))
    before = bits_of(model)
    with evaluation_weights(optimizer):
        assert bits_of(model) != before
    assert bits_of(model) == before


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float16])
def test_a_lowered_loss_computes_in_16_bits_and_trains_both_ways(compute: torch.dtype) -> None:
    seen = []

    def watched(model: nn.Module, batch: Any) -> Tensor:
        out = model(batch["x"])
        seen.append(out.dtype)
        return (out - batch["y"]).square().mean(1)

    loss = autocast(watched, Precision(compute=compute))
    model = make_model()
    objective = BatchObjective(model, make_batch(rows=32), loss, micro_batch=16)
    assert objective.values().dtype == torch.float32
    assert float(objective.value()) == pytest.approx(
        float(BatchObjective(model, make_batch(rows=32), watched).value()), 0.02
    )
    assert seen[:2] == [compute, compute]
    for optimizer in (
        WithLossScaling(torch.optim.AdamW(model.parameters(), lr=0.02)),
        ZerothOrderSGD(model, lr=0.01, sigma=1e-2),
    ):
        before = float(objective.value())
        for _ in range(30):
            optimizer.step(objective)
        assert float(objective.value()) < before
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert autocast(watched, Precision()) is watched


def test_wrong_parts_are_refused_with_a_sentence() -> None:
    model = make_model()
    with pytest.raises(ValueError, match=r"`initial` must be a power of two from 1 on.*got 1000"):
        LossScaler(initial=1000)
    with pytest.raises(ValueError, match="`growth_every` must be at least 1 step; got 0"):
        LossScaler(growth_every=0)
    with pytest.raises(ValueError, match=r"`compute` must be .* got torch\.float64"):
        Precision(compute=torch.float64)
    with pytest.raises(ValueError, match=r"a parameter is in float16.*`model.float\(\)`"):
        WithLossScaling(torch.optim.SGD(make_model(dtype=torch.float16).parameters(), lr=0.1))
    turns = ObjectivesInTurn([lambda: make_objective(model)])
    with pytest.raises(ValueError, match=r"got a ObjectivesInTurn\. For several objectives in turn, wrap each"):
        WithLossScaling(torch.optim.SGD(model.parameters(), lr=0.1)).step(turns)
    OptimizersInTurn([WithLossScaling(torch.optim.SGD(model.parameters(), lr=0.1))]).step(turns)
