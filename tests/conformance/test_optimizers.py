"""One contract for every optimizer, torch's own included: `loss = optimizer.step(objective)`."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, StepLR

from featherlight import optim
from featherlight.objective import BatchObjective
from featherlight.optim import (
    AGZO,
    FZOO,
    LOZO,
    CentredRanks,
    Cone,
    ConMeZO,
    DistanceEstimate,
    LazySubspace,
    MeZO,
    MeZOSVRG,
    OneSided,
    OptimizersInTurn,
    OptimizersTogether,
    Prodigy,
    RankOneSigns,
    ScalarMoment,
    SpreadNormalized,
    WholeBatchSigns,
    WithLossScaling,
    ZerothOrderSGD,
    learned,
    muon_with_adamw,
    schedule_free_adamw,
)
from featherlight.optim.learned import (
    ConvexUpdate,
    DiagonalSteps,
    GreedyLeastSquares,
    KroneckerSteps,
    MeanCurvature,
    MovingAverage,
    PastTerms,
    PointIn,
    Safeguard,
    UpdateRule,
    adam,
)
from featherlight.solvers.convex import Box
from tests.properties.test_zeroth_order_laws import global_states
from tests.unit.optim.problems import bits_of, make_batch, make_model, squared_error

Make = Callable[..., Optimizer]


@dataclass(frozen=True, kw_only=True)
class Row:
    """How an optimizer is made, and what torch's L-BFGS cannot do.

    Attributes:
        kind: its class.
        make: takes a model, parameters or groups (None: all), and overriding options.
        groups: whether parameter groups may have rates of their own.
        copies: whether a deep copy works.
        ours: whether the library wrote it.
        by_gradient: whether it takes the closures of torch, and none where gradients are filled.
        averages: whether weights move on at a rate of 0, towards an average.
    """

    kind: type[Optimizer]
    make: Make
    groups: bool = True
    copies: bool = True
    ours: bool = False
    by_gradient: bool = False
    averages: bool = False


def of_torch(kind: Any, **options: Any) -> Row:
    def make(model: nn.Module, params: Any = None, **over: Any) -> Optimizer:
        chosen = [p for p in model.parameters() if p.requires_grad] if params is None else params
        return kind(chosen, **(options | over))

    able = kind is not torch.optim.LBFGS
    return Row(kind=kind, make=make, groups=able, copies=able)


def of_ours(kind: Any, **options: Any) -> Row:
    def make(model: nn.Module, params: Any = None, **over: Any) -> Optimizer:
        return kind(model, params=params, **(options | over))

    return Row(kind=kind, make=make, ours=True)


def of_rule(make_rule: Callable[[list[Tensor]], UpdateRule | dict[str, Any]], **options: Any) -> Row:
    """A ConvexUpdate by a rule, or by parts of one, for all trained parameters."""

    def make(model: nn.Module, params: Any = None, **over: Any) -> Optimizer:
        chosen = [p for p in model.parameters() if p.requires_grad]
        rule = make_rule([p.detach() for p in chosen])
        parts = rule if isinstance(rule, dict) else {"rule": rule}
        return ConvexUpdate(chosen if params is None else params, **parts, **(options | over))

    return Row(kind=ConvexUpdate, make=make, ours=True)


def around_one(kind: Any, inner: Row) -> Row:
    """An optimizer of optimizers, here of a single one."""
    return Row(kind=kind, make=lambda model, params=None, **over: kind([inner.make(model, params, **over)]), ours=True)


def loss_scaling(inner: Row) -> Row:
    return Row(
        kind=WithLossScaling,
        make=lambda model, params=None, **over: WithLossScaling(inner.make(model, params, **over)),
        ours=True,
    )


def of_parameters(kind: Any, make: Callable[..., Optimizer], **options: Any) -> Row:
    """A first-order optimizer that is made of parameters, as torch's are."""

    def of_model(model: nn.Module, params: Any = None, **over: Any) -> Optimizer:
        chosen = [p for p in model.parameters() if p.requires_grad] if params is None else params
        return make(chosen, **(options | over))

    return Row(kind=kind, make=of_model, ours=kind is make, by_gradient=True, averages=kind is not make)


def _adamw_and_sgd(model: nn.Module, params: Any = None, **over: Any) -> Optimizer:
    """AdamW for the first group or half of the parameters, SGD for the rest."""
    chosen = [p for p in model.parameters() if p.requires_grad] if params is None else list(params)
    first, rest = chosen[:1], chosen[1:]
    made: list[Optimizer] = [torch.optim.AdamW(first, **({"lr": 0.02} | over))]
    return OptimizersTogether([*made, *([torch.optim.SGD(rest, **({"lr": 0.02} | over))] if rest else [])])


def _muon(model: nn.Module, params: Any = None, **over: Any) -> Optimizer:
    assert params is None, "it chooses the parameters itself"
    return muon_with_adamw(model, **({"lr": 0.02} | over))


TABLE: dict[str, Row] = {
    "SGD": of_torch(torch.optim.SGD, lr=0.05, momentum=0.9),
    "AdamW": of_torch(torch.optim.AdamW, lr=0.02),
    "LBFGS": of_torch(torch.optim.LBFGS, lr=0.3, max_iter=3),
    "OptimizersInTurn": around_one(OptimizersInTurn, of_torch(torch.optim.AdamW, lr=0.02)),
    "WithLossScaling": loss_scaling(of_torch(torch.optim.AdamW, lr=0.02)),
    "OptimizersTogether": Row(kind=OptimizersTogether, make=_adamw_and_sgd, ours=True, by_gradient=True),
    "Muon with AdamW": Row(kind=OptimizersTogether, make=_muon, groups=False, ours=True, by_gradient=True),
    "AdamWScheduleFree": of_parameters(Optimizer, schedule_free_adamw, lr=0.02),
    "Prodigy": of_parameters(Prodigy, Prodigy, estimate=DistanceEstimate(start=1e-3)),
    "Prodigy, sampled": of_parameters(
        Prodigy, Prodigy, weight_decay=0.01, bias_correction=True, estimate=DistanceEstimate(start=1e-3, stride=3)
    ),
    "MeZO": of_ours(MeZO, lr=0.01, sigma=1e-2),
    "ZerothOrderSGD": of_ours(ZerothOrderSGD, lr=0.01, sigma=1e-2),
    "ZerothOrderSGD by example": of_ours(ZerothOrderSGD, lr=0.04, sigma=1e-2, directions=RankOneSigns(None)),
    "ZerothOrderSGD normalized": of_ours(
        ZerothOrderSGD, lr=0.02, sigma=1e-2, normalize=SpreadNormalized(decay=0.9), weight_decay=1e-3
    ),
    "ZerothOrderSGD one-sided": of_ours(ZerothOrderSGD, lr=0.01, sigma=1e-2, difference=OneSided()),
    "ZerothOrderSGD with a scalar moment": of_ours(
        ZerothOrderSGD, lr=0.01, sigma=1e-2, directions=WholeBatchSigns(2), normalize=ScalarMoment(decay=0.9)
    ),
    "FZOO": of_ours(FZOO, lr=2e-4, sigma=1e-2, directions=WholeBatchSigns(4)),
    "FZOO by example": of_ours(FZOO, lr=4e-4, sigma=1e-2, directions=RankOneSigns(None)),
    "ZerothOrderSGD by ranks": of_ours(
        ZerothOrderSGD, lr=0.02, sigma=1e-2, directions=RankOneSigns(None), shaping=CentredRanks()
    ),
    "MeZOSVRG": of_ours(MeZOSVRG, lr=0.005, anchor_lr=0.01, anchor_every=3, sigma=1e-2),
    "MeZOSVRG by example, normalized": of_ours(
        MeZOSVRG,
        lr=0.01,
        anchor_lr=0.02,
        sigma=1e-2,
        directions=RankOneSigns(None),
        normalize=SpreadNormalized(decay=0.9),
        weight_decay=1e-3,
    ),
    "LOZO": of_ours(LOZO, lr=0.01, subspace=LazySubspace(rank=2, period=3), sigma=1e-2),
    "LOZO with momentum": of_ours(
        LOZO,
        lr=0.02,
        subspace=LazySubspace(rank=2, period=5, beta=0.8),
        sigma=1e-2,
        normalize=SpreadNormalized(decay=0.9),
        weight_decay=1e-3,
    ),
    "LOZO with momentum, by example": of_ours(
        LOZO, lr=0.04, subspace=LazySubspace(rank=1, period=3, beta=0.8), sigma=1e-2, directions=RankOneSigns(None)
    ),
    "ConMeZO": of_ours(ConMeZO, lr=0.01, cone=Cone(window=3), sigma=1e-2),
    "ConMeZO by example, normalized": of_ours(
        ConMeZO,
        lr=0.02,
        cone=Cone(angle=1.2, beta=0.8, window=6),
        sigma=1e-2,
        directions=RankOneSigns(None),
        normalize=SpreadNormalized(decay=0.9),
        weight_decay=1e-3,
    ),
    "AGZO": of_ours(AGZO, lr=0.01, sigma=1e-2),
    "AGZO normalized": of_ours(
        AGZO, lr=0.02, rank=1, sigma=1e-2, normalize=SpreadNormalized(decay=0.9), weight_decay=1e-3
    ),
    "ConvexUpdate, Adam without a safeguard": of_rule(lambda _: adam(0.02), safeguard=None),
    "ConvexUpdate, Kronecker": of_rule(
        lambda points: {"metric": KroneckerSteps.constant(points, 0.1), "memory": PastTerms(step_weights=(0.5, 0.1))},
        lr=0.5,
    ),
    "ConvexUpdate, diagonal in a box": of_rule(
        lambda points: {
            "metric": DiagonalSteps.constant(points, 0.1),
            "memory": MovingAverage(0.5),
            "constraint": PointIn(Box(-2.0, 2.0)),
        },
        lr=0.5,
        safeguard=Safeguard(every=None),
    ),
}
LEARN_RULES = {GreedyLeastSquares, MeanCurvature}
"""These take the tasks of a MetaObjective, not the losses of a model."""
every_row = pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
with_groups = {name: row for name, row in TABLE.items() if row.groups}
every_row_with_groups = pytest.mark.parametrize("row", with_groups.values(), ids=with_groups)
with_copies = {name: row for name, row in TABLE.items() if row.copies}


def objective_at(model: nn.Module, step: int) -> BatchObjective:
    return BatchObjective(model, make_batch(step % 3, rows=32), squared_error, dropout_seed=step)


def train(model: nn.Module, optimizer: Optimizer, steps: range) -> list[float]:
    return [float(optimizer.step(objective_at(model, step))) for step in steps]


def test_every_exported_optimizer_stands_in_the_table() -> None:
    rooms = [*inspect.getmembers(optim, inspect.isclass), *inspect.getmembers(learned, inspect.isclass)]
    exported = {kind for _, kind in rooms if issubclass(kind, Optimizer)}
    exported = {kind for kind in exported if not inspect.isabstract(kind)} - LEARN_RULES
    assert exported
    assert exported == {row.kind for row in TABLE.values() if row.ours}


@every_row
def test_loss_falls_and_is_returned_as_a_number(row: Row) -> None:
    model = make_model()
    optimizer = row.make(model)
    loss = optimizer.step(objective_at(model, 0))
    assert isinstance(loss, Tensor)
    assert loss.shape == ()
    assert not loss.requires_grad
    before = float(objective_at(model, 0).value())

    def falls_by(first: int) -> bool:
        train(model, optimizer, range(first, first + 20))
        return float(objective_at(model, 0).value()) < 0.8 * before

    assert any(falls_by(first) for first in range(1, 121, 20))


@every_row
def test_state_round_trips_in_the_middle_to_the_same_bits(row: Row) -> None:
    model = make_model(dropout=0.2)
    optimizer = row.make(model)
    train(model, optimizer, range(4))
    saved = copy.deepcopy(optimizer.state_dict())
    resumed_model = copy.deepcopy(model)
    train(model, optimizer, range(4, 8))
    resumed = row.make(resumed_model)
    resumed.load_state_dict(saved)
    train(resumed_model, resumed, range(4, 8))
    assert bits_of(resumed_model) == bits_of(model)


@pytest.mark.parametrize("row", with_copies.values(), ids=with_copies)
def test_a_deep_copy_trains_on_independently_to_the_same_bits(row: Row) -> None:
    model = make_model()
    optimizer = row.make(model)
    scheduler = StepLR(optimizer, 3, 0.5)
    train(model, optimizer, range(3))
    scheduler.step()
    twin_model, twin = copy.deepcopy((model, optimizer))
    before = bits_of(model)
    train(twin_model, twin, range(3, 6))
    assert bits_of(model) == before
    train(model, optimizer, range(3, 6))
    assert bits_of(twin_model) == bits_of(model)


@every_row_with_groups
def test_groups_move_by_their_own_rates(row: Row) -> None:
    model = make_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    first, second = list(model[0].parameters()), list(model[3].parameters())
    optimizer = row.make(model, [{"params": first, "lr": 0.0}, {"params": second}], weight_decay=0.01)
    train(model, optimizer, range(3))
    moved = {name for name, p in model.named_parameters() if not torch.allclose(p, before[name], rtol=0, atol=1e-6)}
    assert moved == {"3.weight", "3.bias"}


@every_row_with_groups
def test_a_group_of_twice_the_rate_goes_twice_as_far(row: Row) -> None:
    def distance(factor: float) -> float:
        model = make_model(dtype=torch.float64)
        start = model[0].weight.detach().clone()
        lr = row.make(model).param_groups[0]["lr"]
        groups = [{"params": list(model[0].parameters()), "lr": factor * lr}, {"params": list(model[3].parameters())}]
        optimizer = row.make(model, groups, weight_decay=0.0)
        batch = make_batch(0, dtype=torch.float64)
        optimizer.step(BatchObjective(model, batch, squared_error))
        return float((model[0].weight.detach() - start).norm())

    assert distance(1.0) > 0
    assert distance(2.0) == pytest.approx(2 * distance(1.0), rel=1e-5)


SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    "step": lambda optimizer: StepLR(optimizer, 1, 0.1),
    "lambda": lambda optimizer: LambdaLR(optimizer, lambda step: 0.1**step),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, 0.01, total_steps=5, cycle_momentum=False),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@every_row
def test_schedules_of_torch_set_the_rate(row: Row, schedule: str) -> None:
    model = make_model()
    optimizer = row.make(model)
    scheduler = SCHEDULES[schedule](optimizer)
    rates = []
    for step in range(4):
        train(model, optimizer, range(step, step + 1))
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    assert len(set(rates)) == 4
    if row.averages:
        return
    for group in optimizer.param_groups:
        group["lr"] = group["weight_decay"] = 0.0
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model, optimizer, range(4, 5))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=0, atol=1e-6)


class Tied(nn.Module):
    """A table that is the head's weight too, and a frozen layer between."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4)
        self.middle = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(self.table(ids))))


def next_token_loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch["ids"]), (batch["ids"] + 1) % 6, reduction="none")


@every_row
def test_frozen_parameters_stay_and_tied_ones_stay_tied(row: Row) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Tied()
    optimizer = row.make(model)
    objective = BatchObjective(model, {"ids": torch.arange(6)}, next_token_loss)
    before, frozen = bits_of(model), bits_of(model.middle)
    start = float(objective.value())
    for _ in range(15):
        optimizer.step(objective)
    assert bits_of(model.middle) == frozen
    assert bits_of(model) != before
    assert model.head.weight is model.table.weight
    assert len(optimizer.param_groups[0]["params"]) == 1
    assert float(objective.value()) < start


@every_row
def test_global_random_state_is_neither_read_nor_moved(row: Row) -> None:
    results = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = make_model(dropout=0.3)
            optimizer = row.make(model)
            before = global_states()
            train(model, optimizer, range(2))
            assert global_states() == before
        results.append(bits_of(model))
    assert results[0] == results[1]


@every_row
def test_the_model_keeps_its_parameters_and_mode(row: Row) -> None:
    model = make_model(dropout=0.3)
    objects = [id(parameter) for parameter in model.parameters()]
    keys = {name: set(vars(module)) for name, module in model.named_modules()}
    train(model, row.make(model), range(2))
    assert [id(parameter) for parameter in model.parameters()] == objects
    assert {name: set(vars(module)) for name, module in model.named_modules()} == keys
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


ours = {name: row for name, row in TABLE.items() if row.ours}


@pytest.mark.parametrize("row", ours.values(), ids=ours)
@pytest.mark.parametrize("closure", [None, lambda: torch.zeros(()), "loss"])
def test_a_missing_objective_is_a_clear_error(row: Row, closure: Any) -> None:
    if row.by_gradient and closure != "loss":
        pytest.skip("it goes by gradients, which need no objective")
    model = make_model()
    before = bits_of(model)
    with pytest.raises(ValueError, match=f"{row.kind.__name__}.step needs an Objective"):
        row.make(model).step(closure)
    assert bits_of(model) == before


@pytest.mark.parametrize("row", ours.values(), ids=ours)
def test_it_says_whether_it_can_be_replayed(row: Row) -> None:
    assert isinstance(row.kind.replayable, bool)
