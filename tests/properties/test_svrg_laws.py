"""Laws of MeZO-SVRG: an anchor at an offset is the anchor, the oracle's trajectory, cancelled noise, exact replay."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from featherlight.functional import SignStream
from featherlight.meter import Meter
from featherlight.objective import BatchObjective
from featherlight.optim import MeZOSVRG, RankOneSigns, SpreadNormalized
from featherlight.optim.zeroth_order import Target, apply_update, offset, targets_of
from featherlight.optim.zeroth_order.addend import Addend
from featherlight.optim.zeroth_order.evaluation import SlopeEvaluator
from featherlight.optim.zeroth_order.offset import Offset
from featherlight.optim.zeroth_order.targets import Directions
from featherlight.trainer import JournalWriter, read_journal
from tests.oracles.slopes import trained
from tests.oracles.svrg import svrg
from tests.properties.test_exact_update import threads
from tests.unit.optim.problems import bits_of, make_batch, make_model, make_objective, squared_error
from tests.unit.optim.zoo import CASES

BESIDE, COPIED = 0, 1 << 40


def addends(targets: list[Target]) -> list[Addend]:
    """Two changes, of one and of three directions, as big as what an anchor would be away after large steps."""
    made = []
    for step, coefficients in ((3, torch.tensor([41])), (4, torch.tensor([17, -30, 5]))):
        directions = Directions(targets, SignStream(seed=9, step=step), len(coefficients))
        made.append(Addend(directions=directions, coefficients=coefficients, rates=(2e-3,)))
    return made


def move(targets: list[Target], changes: list[Addend]) -> None:
    """Adds the changes to the weights themselves, as dense tensors."""
    for target in targets:
        for change in changes:
            for number, coefficient in enumerate(change.coefficients):
                dense = change.directions.dense(target, 0 if target.shared else number, target.parameter.dtype)
                target.parameter.data.add_(dense, alpha=float(coefficient) * change.rates[target.group])


@pytest.mark.parametrize(("count", "share"), [(1, COPIED), (None, BESIDE)])
@pytest.mark.parametrize("name", CASES)
def test_slopes_at_an_offset_are_those_of_moved_weights(
    name: str, count: int | None, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offset, "_CHEAP_SHARE", share)
    model, objective = CASES[name].build(5, micro_batch=2)
    targets = trained(model)
    evaluator, stream = SlopeEvaluator(RankOneSigns(count), 0.01), SignStream(seed=1, step=2)
    evaluator.measure(objective, targets, stream)
    before = bits_of(model)
    changes = addends(targets)
    fused = evaluator.measure(objective, targets, stream, offset=Offset(changes))
    assert bits_of(model) == before
    here = evaluator.measure(objective, targets, stream)
    move(targets, changes)
    moved = evaluator.measure(objective, targets, stream)
    scale = float(moved.slopes.abs().max())
    torch.testing.assert_close(fused.slopes, moved.slopes, rtol=0, atol=1e-9 * scale)
    torch.testing.assert_close(fused.loss, moved.loss, rtol=1e-11, atol=0)
    assert abs(float(here.loss - moved.loss)) > 1e-4 * float(moved.loss), "the change must show"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_offset_shows_in_low_precision_where_a_rounded_copy_would_lose_it(dtype: torch.dtype) -> None:
    layer = nn.Linear(8, 8, bias=False).to(dtype)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    (target,) = targets_of(layer, [{"params": list(layer.parameters())}])
    directions = Directions([target], SignStream(seed=0, step=0), 1)
    away = Offset([Addend(directions=directions, coefficients=torch.tensor([1]), rates=(1e-4,))])
    assert torch.equal(away.added_to(target), layer.weight)
    assert away.is_cheaper_beside(target)


def objective_at(model: nn.Module, step: int, every: int) -> BatchObjective:
    """All 24 rows at anchors, four of them between."""
    whole = make_batch(7, rows=24, dtype=torch.float64)
    first = 4 * step % 24
    rows = whole if step % every == 0 else {name: x[first : first + 4] for name, x in whole.items()}
    return BatchObjective(model, rows, squared_error)


@pytest.mark.parametrize(("every", "count"), [(1, 3), (2, None), (5, 1), (5, None)])
def test_twenty_steps_follow_the_oracle_with_a_copied_anchor(every: int, count: int | None) -> None:
    model = make_model(dtype=torch.float64)
    oracle = copy.deepcopy(model)
    settings = {"lr": 0.01, "anchor_lr": 0.02, "anchor_every": every, "sigma": 1e-2}
    optimizer = MeZOSVRG(model, seed=5, directions=RankOneSigns(count), **settings)
    start = float(objective_at(model, 0, 1).value())
    for step in range(20):
        assert optimizer.next_is_anchor == (step % every == 0)
        optimizer.step(objective_at(model, step, every))
    svrg(oracle, lambda m, step: objective_at(m, step, every), steps=20, count=count, seed=5, **settings)
    assert float(objective_at(model, 0, 1).value()) < 0.9 * start
    for mine, theirs in zip(model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-7)


@pytest.mark.parametrize("count", [1, None])
def test_at_the_anchor_itself_the_minibatch_cancels_and_leaves_the_full_slopes(count: int | None) -> None:
    model = make_model(dtype=torch.float64)
    optimizer = MeZOSVRG(model, 0.01, 0.0, 3, sigma=1e-2, directions=RankOneSigns(count))
    optimizer.step(objective_at(model, 0, 3))
    kept = KeepRecords()
    optimizer.journal = kept
    optimizer.step(objective_at(model, 1, 3))
    (record,) = kept.records
    assert record.coefficients.numel() > 0
    assert record.scale * 4095 < 1e-12
    assert [echo.step for echo in record.echoes] == [0]
    assert record.echoes[0].rates[0] > 0


class KeepRecords:
    def __init__(self) -> None:
        self.records: list = []

    def append(self, record: object, targets: list[Target]) -> None:
        self.records.append(record)


def groups(model: nn.Module) -> list[dict]:
    return [
        {"params": [p for n, p in model.named_parameters() if n.endswith("bias")], "lr": 3e-3, "scale": 2.0},
        {"params": [p for n, p in model.named_parameters() if n.endswith("weight")]},
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("normalize", "count"), [(None, 1), (SpreadNormalized(decay=0.7), 3)])
def test_base_and_journal_are_the_trained_weights(
    tmp_path: Path, normalize: SpreadNormalized | None, count: int, dtype: torch.dtype
) -> None:
    model = make_model(dtype=dtype, dropout=0.3)
    base, resumed = copy.deepcopy(model), copy.deepcopy(model)
    journal = JournalWriter(tmp_path / "journal", header={}, fitted={}, meter=Meter())

    def make(model: nn.Module, journal: JournalWriter | None) -> MeZOSVRG:
        return MeZOSVRG(
            model, 1e-2, 2e-2, 3, sigma=0.02, directions=RankOneSigns(count), normalize=normalize, weight_decay=0.1,
            params=groups(model), seed=2**63 + 5, journal=journal,
        )  # fmt: skip

    optimizer = make(model, journal)
    for step in range(8):
        optimizer.step(make_objective(model, step, micro_batch=3))
    journal.close()
    contents = read_journal(tmp_path / "journal")
    assert contents.damage is None
    assert len(contents.records) == 8
    assert [len(record.echoes) for record in contents.records] == [0, 1, 1, 0, 1, 1, 0, 1]
    assert [record.decays[0] < 1 for record in contents.records[:6]] == [False, False, True, False, False, True]
    known = {record.step: record for record in contents.records}
    with threads(2):
        for record in contents.records:
            apply_update(contents.targets(base), record, meter=Meter(), earlier=known)
    assert bits_of(base) == bits_of(model) != bits_of(resumed)
    follower = make(resumed, None)
    follower.replay(contents.records[:5])
    follower.replay(contents.records[5:])
    assert bits_of(resumed) == bits_of(model)
    assert follower.state_dict() == optimizer.state_dict()
    optimizer.journal = None
    optimizer.step(make_objective(model, 8))
    follower.step(make_objective(resumed, 8))
    assert bits_of(resumed) == bits_of(model)


def test_an_anchor_period_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`anchor_every` must be at least 1 step .* got 0"):
        MeZOSVRG(make_model(), 1e-3, 1e-3, 0)
    with pytest.raises(ValueError, match="`lr` must be a finite positive number; got 0"):
        MeZOSVRG(make_model(), 0.0, 1e-3)
