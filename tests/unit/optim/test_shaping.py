"""Shaped pairs: centred ranks against a slow reference, what they leave alone, and the warning where pairs tie."""

import copy
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from featherlight.objective import BatchObjective, RewardObjective
from featherlight.optim import CentredRanks, MeZO, RankOneSigns, ZerothOrderSGD
from featherlight.optim.zeroth_order import StepRecord, Target
from featherlight.optim.zeroth_order.shaping import pair_slopes
from tests.oracles.centred_ranks import centred_rank_differences
from tests.unit.optim.problems import bits_of, make_batch, make_model, make_objective, squared_error

PAIRS = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=7)


@given(pairs=PAIRS)
@settings(max_examples=60)
def test_centred_ranks_are_those_of_the_slow_reference(pairs: list[tuple[int, int]]) -> None:
    plus, minus = torch.tensor(pairs, dtype=torch.float64).T
    expected = centred_rank_differences(plus.tolist(), minus.tolist())
    torch.testing.assert_close(CentredRanks()(plus, minus).tolist(), expected, rtol=1e-12, atol=1e-12)


@given(pairs=PAIRS, seed=st.integers(0, 99))
@settings(max_examples=30)
def test_they_see_nothing_but_the_order(pairs: list[tuple[int, int]], seed: int) -> None:
    plus, minus = torch.tensor(pairs, dtype=torch.float64).T
    ranks = CentredRanks()(plus, minus)
    assert torch.equal(CentredRanks()(plus.exp(), minus.exp()), ranks)
    assert torch.equal(CentredRanks()(minus, plus), -ranks)
    assert torch.equal(ranks.sign(), (plus - minus).sign())
    order = torch.randperm(len(plus), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(CentredRanks()(plus[order], minus[order]), ranks[order])


@pytest.mark.parametrize(("plus", "minus", "expected"), [(2.0, 1.0, 1.0), (1.0, 2e9, -1.0), (3.0, 3.0, 0.0)])
def test_one_direction_goes_by_the_sign(plus: float, minus: float, expected: float) -> None:
    one = torch.tensor([plus], dtype=torch.float64), torch.tensor([minus], dtype=torch.float64)
    assert CentredRanks()(*one).tolist() == [expected]


def test_an_identity_shaping_gives_the_raw_slopes_for_uneven_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    plus, minus = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    direction_of = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    raw = pair_slopes(plus, minus, direction_of, 3, None)
    torch.testing.assert_close(pair_slopes(plus, minus, direction_of, 3, lambda a, b: a - b), raw)
    torch.testing.assert_close(raw.sum(), plus.mean() - minus.mean())


def test_a_shaping_of_another_shape_is_refused() -> None:
    model = make_model()
    optimizer = sgd(model, directions=RankOneSigns(4), shaping=lambda plus, minus: (plus - minus).sum())
    with pytest.raises(ValueError, match=r"`shaping` must return one number a direction, shape \(4,\).* got \(\)"):
        optimizer.step(make_objective(model))


class InMemory:
    def __init__(self) -> None:
        self.records: list[StepRecord] = []

    def append(self, record: StepRecord, targets: list[Target]) -> None:
        self.records.append(record)


def sgd(model: nn.Module, **options: Any) -> ZerothOrderSGD:
    return ZerothOrderSGD(model, 0.01, sigma=1e-2, **options)


@pytest.mark.parametrize("count", [1, 3, None])
def test_a_shaped_run_is_replayed_to_the_same_bits(count: int | None) -> None:
    model, journal = make_model(), InMemory()
    base = copy.deepcopy(model)
    options = {"directions": RankOneSigns(count), "shaping": CentredRanks(), "seed": 3}
    optimizer = sgd(model, journal=journal, **options)
    losses = [float(optimizer.step(make_objective(model, step))) for step in range(6)]
    again = sgd(base, **options)
    again.replay(journal.records)
    assert bits_of(base) == bits_of(model)
    assert losses[0] == pytest.approx(float(make_objective(make_model(), 0).value()), rel=1e-2)


@pytest.mark.parametrize("count", [1, None])
def test_the_scale_of_the_loss_does_not_matter(count: int | None) -> None:
    finals = []
    for factor in (1.0, 2.0**20):
        model = make_model(dtype=torch.float64)
        optimizer = sgd(model, directions=RankOneSigns(count), shaping=CentredRanks())
        for step in range(5):
            batch = make_batch(step, dtype=torch.float64)
            optimizer.step(BatchObjective(model, batch, lambda m, b, factor=factor: factor * squared_error(m, b)))
        finals.append(bits_of(model))
    assert finals[0] == finals[1]


def test_slopes_are_the_ranks_over_the_distance() -> None:
    model, batch = make_model(dtype=torch.float64), make_batch(dtype=torch.float64)
    raw, shaped = (sgd(copy.deepcopy(model), directions=RankOneSigns(4), shaping=s) for s in (None, CentredRanks()))
    losses: list[list[Tensor]] = []
    for optimizer in (raw, shaped):
        seen: list[Tensor] = []

        def watching(m: nn.Module, b: Any, seen: list[Tensor] = seen) -> Tensor:
            seen.append(squared_error(m, b))
            return seen[-1]

        optimizer.step(BatchObjective(optimizer.model, batch, watching))
        losses.append([one for one in seen if len(one) == 8])
    plus, minus = (one.unflatten(0, (4, 2)).mean(1) for one in losses[1])
    expected = torch.tensor(centred_rank_differences(plus.tolist(), minus.tolist()), dtype=torch.float64)
    before, after = model[3].bias.detach(), shaped.model[3].bias.detach()
    assert not torch.equal(raw.model[3].bias, after)
    directions = [RankOneSigns().dense(shaped.targets, seed=0, step=0, number=k)[3] for k in range(4)]
    step = sum(slope * direction for slope, direction in zip(expected / (4 * 2 * 1e-2), directions, strict=True))
    torch.testing.assert_close(after, before - 0.01 * step, rtol=1e-3, atol=1e-4)


def run_ties(model: nn.Module, optimizer: Any, levels: int, steps: int) -> list[str]:
    """The messages of steps on a score that is rounded to so many levels."""

    def rounded(m: nn.Module, batch: Any) -> Tensor:
        return (-squared_error(m, batch) * levels).round() / levels

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(steps):
            optimizer.step(RewardObjective(model, make_batch(step), rounded))
    return [str(one.message) for one in caught]


@pytest.mark.parametrize("count", [1, None])
@pytest.mark.parametrize("shaping", [None, CentredRanks()])
def test_pairs_that_tie_are_warned_of_once(count: int | None, shaping: Any) -> None:
    model = make_model()
    optimizer = ZerothOrderSGD(model, 1e-6, sigma=1e-7, directions=RankOneSigns(count), shaping=shaping)
    (message,) = run_ties(model, optimizer, levels=1, steps=50)
    assert "both points of" in message
    assert "(100%)" in message
    assert "Raise `sigma` (now 1e-07)" in message


def test_the_published_baseline_warns_too() -> None:
    model = make_model()
    (message,) = run_ties(model, MeZO(model, 1e-9, sigma=1e-7), levels=1, steps=30)
    assert "both points of" in message


def test_sixteen_bits_with_a_small_sigma_tie_and_are_warned_of() -> None:
    model = make_model(dtype=torch.bfloat16)
    optimizer = ZerothOrderSGD(model, 1e-6, sigma=1e-6)
    for step in range(19):
        optimizer.step(make_objective(model, step))
    with pytest.warns(UserWarning, match=r"weights of 16 bits need a larger `sigma` too"):
        optimizer.step(make_objective(model))


@pytest.mark.parametrize(("levels", "steps"), [(2**30, 40), (1, 19)])
def test_no_warning_where_pairs_differ_or_steps_are_few(levels: int, steps: int) -> None:
    model = make_model()
    assert run_ties(model, ZerothOrderSGD(model, 1e-6, sigma=1e-2 if levels > 1 else 1e-7), levels, steps) == []
