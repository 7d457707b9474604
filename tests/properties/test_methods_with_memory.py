"""LOZO, ConMeZO and AGZO take the steps of their dense references, and the recorded ones replay to the same bits."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from featherlight.meter import Meter
from featherlight.objective import BatchObjective
from featherlight.optim import (
    AGZO,
    LOZO,
    Cone,
    ConMeZO,
    LazySubspace,
    RankOneSigns,
    RecordedOptimizer,
    SpreadNormalized,
)
from featherlight.optim.zeroth_order import StepRecord, Target, apply_update, apply_updates, update
from featherlight.optim.zeroth_order.addend import inner_product
from featherlight.optim.zeroth_order.update import echo_of
from featherlight.trainer import JournalWriter, read_journal
from featherlight.trainer.journal import encode_record
from featherlight.trainer.save import load_save, write_save
from tests.oracles.dense_agzo import DenseAGZO
from tests.oracles.dense_con_mezo import DenseConMeZO
from tests.oracles.dense_lozo import DenseLOZO
from tests.oracles.dense_weights import sign_direction
from tests.oracles.slopes import largest_difference
from tests.properties.test_exact_update import threads
from tests.unit.optim.problems import bits_of, make_model, make_objective
from tests.unit.optim.zoo import CASES

SEED = 2**40 + 3
MODELS = ["linear on sequences", "tied embedding and head", "small image classifier", "layer norm"]


class Keep:
    """A journal in memory."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []

    def append(self, record: StepRecord, targets: list[Target]) -> None:
        self.records.append(record)


def in_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The first parameter moves further than the others."""
    first, *others = model.parameters()
    return [group for group in ({"params": [first], "scale": 3.0}, {"params": others}) if group["params"]]


def weights_of(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().double().clone() for parameter in model.parameters()]


def assert_same_path(
    name: str,
    make: Callable[[nn.Module], RecordedOptimizer],
    reference: Callable[..., Any],
    steps: int,
    micro_batch: int | None = None,
) -> None:
    """Both ways, from the same weights, and compared by how far they went."""
    model, objective = CASES[name].build(3, micro_batch=micro_batch)
    twin = copy.deepcopy(model)
    start = weights_of(model)
    optimizer = make(model)
    dense = reference(twin, make(twin).targets)
    of_twin = BatchObjective(twin, objective.batch, CASES[name].loss, micro_batch=micro_batch)
    for _ in range(steps):
        optimizer.step(objective)
        dense.step(of_twin)
    ours, theirs = (
        [w - s for w, s in zip(weights_of(one), start, strict=True)] for one in (model, twin)
    )  # fmt: skip
    assert all(moved.abs().max() > 0 for moved in theirs)
    assert largest_difference(ours, theirs) < 2e-5


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "subspace",
    [
        LazySubspace(rank=1, period=3),
        LazySubspace(rank=3, period=4),
        LazySubspace(rank=1, period=3, beta=0.7),
        LazySubspace(rank=2, period=1, beta=0.5),
        LazySubspace(rank=3, period=4, beta=0.9),
    ],
)
def test_lozo_takes_the_steps_of_the_dense_reference(name: str, subspace: LazySubspace) -> None:
    options = {"lr": 2e-3, "sigma": 1e-3, "seed": SEED}
    assert_same_path(
        name,
        lambda model: LOZO(model, subspace=subspace, params=in_groups(model), **options),
        lambda model, targets: DenseLOZO(targets, subspace, **options),
        steps=10,
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cone", [Cone(angle=1.2, beta=0.8, window=40), Cone(angle=0.6, beta=0.5, window=2)])
def test_con_mezo_takes_the_steps_of_the_dense_reference(name: str, cone: Cone) -> None:
    options = {"lr": 2e-3, "sigma": 1e-3, "seed": SEED}
    assert_same_path(
        name,
        lambda model: ConMeZO(model, cone=cone, params=in_groups(model), **options),
        lambda model, targets: DenseConMeZO(targets, cone, **options),
        steps=10,
    )


ALONE = {
    "linear on sequences": {"0.weight", "2.weight"},
    "linear, rows beyond one block": {"0.weight", "1.weight"},
    "tied embedding and head": {"mix.weight"},
    "small image classifier": {"5.weight"},
    "one layer at two ranks": {"layer.weight"},
}


@pytest.mark.parametrize(
    ("name", "rank", "micro_batch"),
    [*((name, rank, None) for name in ALONE for rank in (1, 3)), ("linear on sequences", 2, 2)],
)
def test_agzo_takes_the_steps_of_the_dense_reference(name: str, rank: int, micro_batch: int | None) -> None:
    options = {"lr": 2e-3, "rank": rank, "sigma": 1e-3, "seed": SEED}
    assert_same_path(
        name,
        lambda model: AGZO(model, params=in_groups(model), **options),
        lambda model, targets: DenseAGZO(model, targets, ALONE[name], **options),
        steps=6,
        micro_batch=micro_batch,
    )


@pytest.mark.parametrize("rank", [1, 2, 50])
@pytest.mark.parametrize(("name", "index", "side"), [("Conv1D of transformers", 0, 0), ("linear on sequences", 0, 1)])
def test_agzo_moves_a_layer_within_the_span_of_its_inputs(name: str, index: int, side: int, rank: int) -> None:
    model, objective = CASES[name].build(1, rows=1)
    weight = list(model.parameters())[index]
    before = weight.detach().clone()
    optimizer = AGZO(model, 1e-3, rank, sigma=1e-3)
    for _ in range(4):
        optimizer.step(objective)
    change = (weight.detach() - before).movedim(side, -1)
    inputs = objective.batch["x"].flatten(0, -2)
    assert inputs.shape[0] < inputs.shape[1], "the span is not everything"
    inside = change @ torch.linalg.pinv(inputs) @ inputs
    torch.testing.assert_close(inside, change, rtol=1e-9, atol=1e-12)
    assert change.abs().max() > 0


RECORDED: dict[str, Callable[..., RecordedOptimizer]] = {
    "LOZO": lambda model, **options: LOZO(model, 1e-2, LazySubspace(rank=2, period=3), **options),
    "LOZO with momentum": lambda model, **options: LOZO(
        model, 1e-2, LazySubspace(rank=3, period=3, beta=0.8), normalize=SpreadNormalized(decay=0.7), **options
    ),
    "LOZO with momentum, by example": lambda model, **options: LOZO(
        model, 1e-2, LazySubspace(rank=1, period=2, beta=0.8), directions=RankOneSigns(None), **options
    ),
    "ConMeZO": lambda model, **options: ConMeZO(
        model, 1e-2, Cone(angle=1.1, beta=0.7, window=3), normalize=SpreadNormalized(decay=0.7), **options
    ),
    "ConMeZO by example": lambda model, **options: ConMeZO(
        model, 1e-2, Cone(window=4), directions=RankOneSigns(None), **options
    ),
}


def rows_at(step: int) -> int:
    """Batches of more and of fewer examples than the first."""
    return (5, 8, 3)[step % 3]


def objective_of(model: nn.Module, step: int) -> BatchObjective:
    whole = make_objective(model, step)
    rows = rows_at(step)
    return BatchObjective(model, {name: tensor[:rows] for name, tensor in whole.batch.items()}, whole.loss)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.bfloat16) for name in RECORDED),
        *zip(RECORDED, [torch.float32, torch.float16, torch.float64, torch.float32, torch.float16], strict=True),
    ],
)
def test_base_and_journal_are_the_trained_weights(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    model = make_model(dtype=dtype)
    base, again = copy.deepcopy(model), copy.deepcopy(model)
    journal = JournalWriter(tmp_path / "journal", header={}, fitted={}, meter=Meter())
    optimizer = RECORDED[name](model, seed=SEED, weight_decay=0.1, params=in_groups(model), sigma=2e-2, journal=journal)
    for step in range(8):
        optimizer.step(objective_of(model, step))
    journal.close()
    contents = read_journal(tmp_path / "journal")
    assert contents.damage is None
    with threads(2):
        apply_updates(contents.targets(base), contents.records, meter=Meter())
    assert bits_of(base) == bits_of(model)
    targets, earlier = contents.targets(again), {record.step: record for record in contents.records}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(update, "_ELEMENTS_AT_ONCE", 7)
        for record in contents.records:
            apply_update(targets, record, meter=Meter(), earlier=earlier)
    assert bits_of(again) == bits_of(model)


@pytest.mark.parametrize("name", RECORDED)
def test_a_replayed_run_goes_on_as_the_run_did(name: str) -> None:
    keep = Keep()
    model = make_model()
    follower_model = copy.deepcopy(model)
    leader, follower = RECORDED[name](model, journal=keep), RECORDED[name](follower_model)
    for step in range(5):
        leader.step(objective_of(model, step))
    follower.keep_targets([t.index for t in leader.targets], [t.index for t in leader.targets if t.shared])
    follower.replay(keep.records[:2])
    follower.replay(keep.records[2:])
    assert bits_of(follower_model) == bits_of(model)
    for step in range(5, 8):
        leader.step(objective_of(model, step))
        follower.step(objective_of(follower_model, step))
    assert bits_of(follower_model) == bits_of(model)


@pytest.mark.parametrize(
    "make",
    [
        lambda model: LOZO(model, 1e-2, LazySubspace(rank=2, period=3, beta=0.8)),
        lambda model: ConMeZO(model, 1e-2, Cone(window=2)),
        lambda model: AGZO(model, 1e-2, normalize=SpreadNormalized()),
    ],
)
def test_a_save_takes_up_the_run_to_the_same_bits(tmp_path: Path, make: Callable[..., RecordedOptimizer]) -> None:
    model = make_model(dtype=torch.bfloat16)
    resumed_model = copy.deepcopy(model)
    optimizer, resumed = make(model), make(resumed_model)
    for step in range(4):
        optimizer.step(make_objective(model, step))
    write_save(tmp_path / "save", model, optimizer, {}, meter=Meter())
    load_save(tmp_path / "save", resumed_model, resumed)
    for step in range(4, 7):
        optimizer.step(make_objective(model, step))
        resumed.step(make_objective(resumed_model, step))
    assert bits_of(resumed_model) == bits_of(model)


def test_momentum_of_lozo_takes_rows_times_directions() -> None:
    model = make_model()
    keep = Keep()
    optimizer = LOZO(model, 1e-2, LazySubspace(rank=2, period=4, beta=0.9), journal=keep)
    for step in range(6):
        optimizer.step(make_objective(model, step))
    trails = {target.name: tuple(target.trail.shape) for target in optimizer.targets if target.trail is not None}
    assert trails == {"0.weight": (2, 6), "0.bias": (1, 6), "3.weight": (2, 2), "3.bias": (1, 2)}
    assert {len(encode_record(record)) for record in keep.records} == {36 + 2 * 2}


def test_the_cone_remembers_its_window_alone() -> None:
    model = make_model()
    keep = Keep()
    optimizer = ConMeZO(model, 1e-2, Cone(window=3), journal=keep)
    for step in range(7):
        optimizer.step(make_objective(model, step))
    assert [len(record.echoes) for record in keep.records] == [0, 1, 2, 3, 3, 3, 3]
    assert list(optimizer.earlier) == list(optimizer.weights) == [4, 5, 6]
    assert len(encode_record(keep.records[-1])) == 36 + 2 + 3 * 8


def test_a_step_of_no_slope_leaves_the_cone_and_the_weights_alone() -> None:
    model = make_model()
    optimizer = ConMeZO(model, 1e-2, normalize=SpreadNormalized())
    before = bits_of(model)
    for step in range(2):
        flat = BatchObjective(model, make_objective(model, step).batch, lambda m, batch: 0 * m(batch["x"]).sum(1))
        optimizer.step(flat)
    assert bits_of(model) == before
    optimizer.step(make_objective(model))
    optimizer.step(make_objective(model))
    assert bits_of(model) != before


def test_momentum_goes_on_where_the_slope_is_zero() -> None:
    model = make_model()
    optimizer = LOZO(model, 1e-2, LazySubspace(rank=2, period=9, beta=0.9))
    optimizer.step(make_objective(model))
    before = bits_of(model)
    optimizer.step(BatchObjective(model, make_objective(model).batch, lambda m, batch: 0 * m(batch["x"]).sum(1)))
    assert bits_of(model) != before


@pytest.mark.parametrize("shared", [False, True])
def test_inner_products_of_directions_are_exact(shared: bool) -> None:
    model, _ = CASES["tied embedding and head"].build(0)
    optimizer = ConMeZO(model, 1e-2, seed=SEED)
    optimizer.targets[0].shared = shared
    records = [
        StepRecord(
            step=step, seed=SEED, scale=1.0, rates=(1.0,), decays=(1.0,), coefficients=torch.tensor(coefficients)
        )
        for step, coefficients in ((4, [3, -4095, 7]), (9, [4095, 11]))
    ]
    expected = 0
    for target in optimizer.targets:
        sums = [torch.zeros_like(target.parameter) for _ in records]
        for total, record in zip(sums, records, strict=True):
            for number, coefficient in enumerate(record.coefficients.tolist()):
                number = 0 if target.shared else number
                step = record.step
                total += coefficient * sign_direction(target, seed=SEED, step=step, right_step=step, number=number)
        expected += int((sums[0] * sums[1]).sum())
    one, other = (echo_of(optimizer.targets, record, (1.0,)) for record in records)
    assert inner_product(optimizer.targets, one, other) == expected


def test_records_of_agzo_are_not_replayed() -> None:
    model = make_model()
    optimizer = AGZO(model, 1e-2)
    with pytest.raises(ValueError, match="directions of AGZO depend on the data"):
        optimizer.replay([])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LazySubspace(rank=0), "`rank` must be between 1 and 4096; got 0"),
        (lambda: LazySubspace(period=0), "`period` must be at least 1 step .* got 0"),
        (lambda: LazySubspace(beta=1.0), r"`beta` must be in \[0, 1\) .* got 1.0"),
        (lambda: Cone(angle=0.0), r"`angle` must be in \(0, pi / 2\] .* got 0.0"),
        (lambda: Cone(angle=1.6), "`angle` must be in"),
        (lambda: Cone(beta=-0.1), r"`beta` must be in \[0, 1\)"),
        (lambda: Cone(window=0), "`window` must be between 1 and 1024 .* got 0"),
        (
            lambda: LOZO(make_model(), 1e-3, LazySubspace(rank=2), directions=RankOneSigns(4)),
            "`rank` 2 is for one direction a batch",
        ),
        (lambda: LOZO(make_model(), 1e-3, sigma=0.0), "`sigma` must be a finite positive number"),
        (lambda: ConMeZO(make_model(), -1.0), "`lr` must be a finite positive number"),
        (lambda: AGZO(make_model(), 1e-3, 0), "`rank` must be at least 1 mixture .* got 0"),
        (lambda: AGZO(make_model(), 1e-3, sigma=float("nan")), "`sigma` must be a finite positive number"),
    ],
)
def test_bad_choices_get_a_sentence(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()
