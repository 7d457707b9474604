"""Laws of forward-only training: exact restore, exact replay, no ambient randomness, nothing changed after a refusal."""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featherlight.functional import SignStream
from featherlight.meter import Meter
from featherlight.objective import BatchObjective, Objective
from featherlight.optim import SPSA, Gaussian, MeZO, RankOneSigns, SpreadNormalized, ZerothOrderSGD
from featherlight.optim.zeroth_order import NonFiniteLossError, StepRecord, Target, apply_update, targets_of
from featherlight.optim.zeroth_order.evaluation import SlopeEvaluator
from featherlight.trainer import JournalWriter, read_journal
from tests.properties.test_exact_update import threads
from tests.unit.optim.problems import bits_of, make_model, make_objective, squared_error
from tests.unit.optim.zoo import CASES

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def attributes(model: nn.Module) -> dict[str, Any]:
    """All that a module carries besides its tensors' contents: objects, flags, hooks, forward functions."""
    return {
        f"{name}.{key}": (id(value), repr(value) if not isinstance(value, Tensor) else None)
        for name, module in model.named_modules()
        for owner in (vars(module), *(vars(module)[table] for table in ("_parameters", "_buffers")))
        for key, value in owner.items()
    }


class Raising(BatchObjective):
    """Runs the whole model, and then fails at the `at`-th call."""

    at = 2
    calls = 0

    def values(self) -> Tensor:
        self.calls += 1
        losses = super().values()
        if self.calls == self.at:
            raise RuntimeError("broken on purpose")
        return losses


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, None])
@pytest.mark.parametrize("name", ["tied embedding and head", "small image classifier", "LSTM", "transformer layer"])
def test_evaluations_change_no_bit_and_leave_modules_alone(name: str, count: int | None, dtype: torch.dtype) -> None:
    model, objective = CASES[name].build(0, dtype=dtype)
    targets = targets_of(model, [{"params": list(model.parameters())}])
    evaluator = SlopeEvaluator(RankOneSigns(count), 0.05)
    before, structure = bits_of(model), attributes(model)
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    for step in range(8):
        evaluator.measure(objective, targets, SignStream(seed=1, step=step))
    assert bits_of(model) == before
    assert attributes(model) == structure
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers
    assert all(parameter._version == 0 or parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, None])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_objective_that_fails_midway_leaves_every_bit(at: int, count: int | None, dtype: torch.dtype) -> None:
    model = make_model(dtype=dtype)
    model.append(nn.BatchNorm1d(2, dtype=dtype))
    objective = Raising(model, make_objective(model).batch, squared_error)
    objective.at = at
    before, structure = bits_of(model), attributes(model)
    optimizer = ZerothOrderSGD(model, 0.0, directions=RankOneSigns(count))
    for _ in range((at - 1) // 2):
        optimizer.step(objective)
    with pytest.raises(RuntimeError, match="on purpose"):
        optimizer.step(objective)
    model(make_objective(model).batch["x"]).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters()), "no mode may be left behind"
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm1d)):
        assert norm.training
        norm.reset_running_stats()
    model.zero_grad()
    assert {n: b for n, b in bits_of(model).items() if "num_batches" not in n} == {
        n: b for n, b in before.items() if "num_batches" not in n
    }
    assert attributes(model) == structure


def test_batch_norm_in_training_mode_keeps_its_statistics() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    optimizer = ZerothOrderSGD(model, 1e-2, directions=RankOneSigns(None))
    for step in range(3):
        optimizer.step(make_objective(model, step))
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert model.training
    assert model[1].training


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    return [
        {"params": [p for n, p in model.named_parameters() if n.endswith("bias")], "lr": 3e-3, "weight_decay": 0.0},
        {"params": [p for n, p in model.named_parameters() if n.endswith("weight")]},
    ]


def build_shared(dtype: torch.dtype) -> tuple[nn.Module, Callable[[int], Objective]]:
    """One layer with an axis of examples, a table of positions without."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 4)
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x + self.table(torch.arange(4)).mean(0))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = Positions().to(dtype)
    return model, lambda step: make_objective(model, step)


def build_plain(dtype: torch.dtype) -> tuple[nn.Module, Callable[[int], Objective]]:
    model = make_model(dtype=dtype, dropout=0.3)
    return model, lambda step: make_objective(model, step, micro_batch=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("count", [1, 3, None])
@pytest.mark.parametrize(("build", "normalize"), [(build_plain, SpreadNormalized(decay=0.7)), (build_shared, None)])
def test_base_and_journal_are_the_trained_weights(
    tmp_path: Path, build: Callable[..., Any], normalize: SpreadNormalized | None, count: int | None, dtype: torch.dtype
) -> None:
    model, objective_at = build(dtype)
    base = copy.deepcopy(model)
    journal = JournalWriter(tmp_path / "journal", header={}, fitted={}, meter=Meter())
    optimizer = ZerothOrderSGD(
        model, 1e-2, sigma=0.02, directions=RankOneSigns(count), normalize=normalize, weight_decay=0.1,
        params=groups_of(model), seed=2**63 + 5, journal=journal,
    )  # fmt: skip
    for step in range(6):
        optimizer.step(objective_at(step))
    journal.close()
    assert bits_of(model) != bits_of(base)
    contents = read_journal(tmp_path / "journal")
    assert contents.damage is None
    assert len(contents.records) == 6
    with threads(2):
        for record in contents.records:
            apply_update(contents.targets(base), record, meter=Meter())
    assert bits_of(base) == bits_of(model)


def test_steps_taken_under_autocast_replay_outside_of_it(tmp_path: Path) -> None:
    model = make_model()
    base = copy.deepcopy(model)
    journal = JournalWriter(tmp_path / "journal", header={}, fitted={}, meter=Meter())
    optimizer = ZerothOrderSGD(model, 1e-2, sigma=0.1, directions=RankOneSigns(None), journal=journal)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for step in range(4):
            optimizer.step(make_objective(model, step))
    journal.close()
    contents = read_journal(tmp_path / "journal")
    for record in contents.records:
        apply_update(contents.targets(base), record, meter=Meter())
    assert bits_of(base) == bits_of(model)


def test_records_drive_another_optimizer_to_the_same_state() -> None:
    class Keep:
        def __init__(self) -> None:
            self.records: list[StepRecord] = []

        def append(self, record: StepRecord, targets: list[Target]) -> None:
            self.records.append(record)

    def make(model: nn.Module, journal: Keep | None) -> ZerothOrderSGD:
        return ZerothOrderSGD(
            model, 1e-2, directions=RankOneSigns(4), normalize=SpreadNormalized(decay=0.5), journal=journal
        )

    model, keep = make_model(), Keep()
    follower_model = copy.deepcopy(model)
    leader, follower = make(model, keep), make(follower_model, None)
    for step in range(3):
        leader.step(make_objective(model, step))
    for record in keep.records:
        follower.replay([record])
    assert follower.state_dict() == leader.state_dict()
    leader.step(make_objective(model, 3))
    follower.step(make_objective(follower_model, 3))
    assert bits_of(follower_model) == bits_of(model)
    with pytest.raises(ValueError, match="does not fit an optimizer at step 4"):
        follower.replay(keep.records[:1])


def test_a_large_batch_and_small_passes_take_the_same_directions() -> None:
    def run(micro_batch: int | None) -> dict[str, list[int]]:
        model = make_model(dtype=torch.float64)
        optimizer = ZerothOrderSGD(model, 1e-2, directions=RankOneSigns(None), sigma=0.05)
        optimizer.step(make_objective(model, micro_batch=micro_batch))
        return {name: [round(v, 6) for v in p.detach().flatten().tolist()] for name, p in model.named_parameters()}

    assert run(None) == run(1) == run(3)


def global_states() -> tuple[Any, ...]:
    numpy_state = np.random.get_state(legacy=True)  # noqa: NPY002
    return torch.get_rng_state().tolist(), [part.tolist() if isinstance(part, np.ndarray) else part
                                            for part in numpy_state], random.getstate()  # fmt: skip


def zeroth_order(count: int | None) -> Callable[[nn.Module], Callable[[Objective], Any]]:
    return lambda model: ZerothOrderSGD(model, 1e-3, directions=RankOneSigns(count)).step


def spsa(family: Any) -> Callable[[nn.Module], Callable[[Objective], Any]]:
    def make(model: nn.Module) -> Callable[[Objective], Any]:
        targets = targets_of(model, [{"params": list(model.parameters())}])
        return lambda objective: SPSA(objective, targets, sigma=1e-3, directions=family)()

    return make


STEPS: dict[str, Callable[[nn.Module], Callable[[Objective], Any]]] = {
    "ZerothOrderSGD": zeroth_order(1),
    "ZerothOrderSGD by example": zeroth_order(None),
    "MeZO": lambda model: MeZO(model, 1e-3).step,
    "SPSA with signs": spsa(RankOneSigns(None)),
    "SPSA with normals": spsa(Gaussian(2)),
    "the closure": lambda model: lambda objective: objective(),
    "the value": lambda model: lambda objective: objective.value(),
    "the values": lambda model: lambda objective: objective.values(),
}


@pytest.mark.parametrize("name", STEPS)
def test_global_generators_are_neither_read_nor_moved(name: str) -> None:
    results = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = make_model(dropout=0.4)
            step = STEPS[name](model)
            before = global_states()
            step(make_objective(model, micro_batch=3))
            step(make_objective(model, 1))
            assert global_states() == before
        results.append(bits_of(model))
    assert results[0] == results[1]


def test_global_generators_are_put_back_when_the_backward_pass_fails() -> None:
    model = nn.Linear(4, 2)

    def fail(gradient: Tensor) -> None:
        raise RuntimeError("no gradient today")

    def failing(module: nn.Module, batch: Any) -> Tensor:
        losses = squared_error(module, batch)
        losses.register_hook(fail)
        return losses

    before = global_states()
    with pytest.raises(RuntimeError, match="no gradient today") as caught:
        BatchObjective(model, make_objective(model).batch, failing)()
    assert global_states() == before
    assert caught.value is not None


@pytest.mark.parametrize("count", [1, None])
def test_both_evaluations_see_the_same_dropout(count: int | None) -> None:
    masks: list[Tensor] = []
    model = make_model(dropout=0.5)
    model[1].register_forward_hook(lambda module, args, out: masks.append(out == 0))
    optimizer = ZerothOrderSGD(model, 1e-3, directions=RankOneSigns(count))
    optimizer.step(make_objective(model, 0))
    masks.clear()
    optimizer.step(make_objective(model, 1))
    plus, minus = masks
    assert torch.equal(plus, minus)
    optimizer.step(make_objective(model, 2))
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("count", [1, None])
def test_a_loss_that_is_not_finite_names_the_step_and_changes_nothing(count: int | None, bad: float) -> None:
    class Count:
        calls = 0

        def append(self, record: StepRecord, targets: list[Target]) -> None:
            self.calls += 1

    def broken(model: nn.Module, batch: Any) -> Tensor:
        losses = squared_error(model, batch)
        return torch.where(torch.arange(len(losses)) == len(losses) - 1, bad, losses)

    model, journal = make_model(), Count()
    optimizer = ZerothOrderSGD(
        model, 1e-2, directions=RankOneSigns(count), journal=journal, normalize=SpreadNormalized()
    )
    optimizer.step(make_objective(model, 0))
    before, state = bits_of(model), optimizer.state_dict()
    with pytest.raises(NonFiniteLossError, match=r"loss of step 1 is not finite"):
        optimizer.step(BatchObjective(model, make_objective(model).batch, broken))
    assert bits_of(model) == before
    assert optimizer.state_dict() == state
    assert journal.calls == 1
    optimizer.step(make_objective(model, 1))
    assert journal.calls == 2


def test_a_journal_that_cannot_be_written_stops_the_step() -> None:
    class Full:
        def append(self, record: StepRecord, targets: list[Target]) -> None:
            raise OSError(28, "No space left on device")

    model = make_model()
    optimizer = ZerothOrderSGD(model, 1e-2, journal=Full())
    before, state = bits_of(model), optimizer.state_dict()
    with pytest.raises(OSError, match="No space left"):
        optimizer.step(make_objective(model))
    assert bits_of(model) == before
    assert optimizer.state_dict() == state


def test_the_scale_of_a_group_is_in_its_evaluations_and_in_its_rate() -> None:
    model = nn.Linear(4, 2, dtype=torch.float64)
    moved, before = copy.deepcopy(model), copy.deepcopy(model)
    optimizer = ZerothOrderSGD(
        moved, 1e-2, params=[{"params": [moved.weight]}, {"params": [moved.bias], "scale": 4.0}], sigma=1e-4, seed=3
    )
    optimizer.step(make_objective(moved))
    targets = targets_of(model, [{"params": [model.weight]}, {"params": [model.bias], "scale": 4.0}])
    torch.optim.SGD(model.parameters(), 1e-2).step(
        SPSA(make_objective(model), targets, sigma=1e-4, directions=RankOneSigns(), seed=3)
    )
    for one, other, start in zip(moved.parameters(), model.parameters(), before.parameters(), strict=True):
        assert torch.allclose(one - start, other - start, rtol=1e-5, atol=0.0)
        assert not torch.equal(other, start)
    with pytest.raises(ValueError, match="`scale` must be a finite positive number; got -1"):
        ZerothOrderSGD(moved, 1e-2, params=[{"params": [moved.weight], "scale": -1.0}])
