"""FZOO, the scalar moment and Adam on estimates: against their formulas, and in what they count, refuse and replay."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featherlight.functional import SignStream
from featherlight.meter import Meter
from featherlight.objective import BatchObjective
from featherlight.optim import (
    FZOO,
    SPSA,
    Central,
    Gaussian,
    MeZOSVRG,
    OneSided,
    RankOneSigns,
    RecordedOptimizer,
    ScalarMoment,
    SpreadNormalized,
    StandardDeviation,
    WholeBatchSigns,
    ZerothOrderSGD,
)
from featherlight.optim.zeroth_order import NonFiniteLossError, targets_of
from featherlight.optim.zeroth_order.evaluation import SlopeEvaluator
from featherlight.optim.zeroth_order.layout import Layout
from featherlight.trainer import JournalWriter, read_journal
from tests.oracles.adaptive_zeroth_order import Adam, Meazo, fzoo_step, sign_directions
from tests.unit.optim.problems import bits_of, make_model, make_objective, squared_error

STEPS = 15


def loss_of(step: int) -> Callable[[nn.Module], Tensor]:
    return lambda model: make_objective(model, step).value()


def assert_same_path(model: nn.Module, other: nn.Module, start: nn.Module) -> None:
    """Rates are float32, so two paths agree to that."""
    for one, two, origin in zip(*(m.state_dict().values() for m in (model, other, start)), strict=True):
        scale = float((two - origin).abs().max())
        assert scale > 1e-3
        assert float((one - two).abs().max()) < 2e-6 * scale


@pytest.mark.parametrize("count", [2, 5])
def test_fzoo_is_its_formula(count: int) -> None:
    model = make_model(dtype=torch.float64)
    dense, start = copy.deepcopy(model), copy.deepcopy(model)
    optimizer = FZOO(model, 2e-5, sigma=1e-3, directions=WholeBatchSigns(count), seed=2**40 + 1)
    for step in range(STEPS):
        loss = optimizer.step(make_objective(model, step))
        directions = sign_directions(dense, count, seed=2**40 + 1, step=step)
        base = fzoo_step(dense, loss_of(step), directions, lr=2e-5, sigma=1e-3)
        assert float(loss) == pytest.approx(base, rel=1e-6)
    assert_same_path(model, dense, start)


@pytest.mark.parametrize("count", [1, 4])
def test_the_scalar_moment_is_its_formula(count: int) -> None:
    model = make_model(dtype=torch.float64)
    dense, start = copy.deepcopy(model), copy.deepcopy(model)
    optimizer = ZerothOrderSGD(
        model, 1e-2, directions=WholeBatchSigns(count), normalize=ScalarMoment(decay=0.8, eps=0.1), seed=3
    )
    oracle = Meazo(lr=1e-2, sigma=1e-3, decay=0.8, eps=0.1)
    for step in range(STEPS):
        optimizer.step(make_objective(model, step))
        oracle.step(dense, loss_of(step), sign_directions(dense, count, seed=3, step=step))
    assert_same_path(model, dense, start)


def test_adam_of_torch_on_spsa_is_adam_on_estimates_and_lowers_the_loss() -> None:
    model = make_model(dtype=torch.float64)
    dense, start = copy.deepcopy(model), copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    targets = targets_of(model, optimizer.param_groups)
    oracle = Adam(lr=1e-2, sigma=1e-3)

    def train(step: int) -> None:
        objective = make_objective(model, step)
        optimizer.step(SPSA(objective, targets, sigma=1e-3, directions=RankOneSigns(), seed=5, step=step))

    for step in range(STEPS):
        train(step)
        oracle.step(dense, loss_of(step), sign_directions(dense, 1, seed=5, step=step)[0])
    assert_same_path(model, dense, start)
    for step in range(STEPS, 300):
        train(step)
    assert float(loss_of(0)(model)) < 0.5 * float(loss_of(0)(start))


def test_fzoo_is_its_parts_at_the_rate_over_sigma() -> None:
    ours, parts = make_model(), make_model()
    fzoo = FZOO(ours, 1e-4, sigma=1e-2, weight_decay=0.0, seed=8)
    sgd = ZerothOrderSGD(
        parts,
        1e-2,
        sigma=1e-2,
        directions=WholeBatchSigns(8),
        difference=OneSided(),
        normalize=StandardDeviation(),
        seed=8,
    )
    for step in range(3):
        assert float(fzoo.step(make_objective(ours, step))) == float(sgd.step(make_objective(parts, step)))
    for one, other in zip(ours.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


CASES: list[tuple[Any, Any, int]] = [
    (WholeBatchSigns(3), OneSided(), 4),
    (WholeBatchSigns(3), Central(), 6),
    (RankOneSigns(1), OneSided(), 2),
    (RankOneSigns(None), OneSided(), 2),
    (RankOneSigns(None), Central(), 2),
]


@pytest.mark.parametrize(("directions", "difference", "passes"), CASES)
def test_passes_are_those_that_hooks_count(directions: Any, difference: Any, passes: int) -> None:
    model, meter, rows = make_model(), Meter(), []
    model.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    optimizer = ZerothOrderSGD(model, 1e-3, directions=directions, difference=difference, meter=meter)
    optimizer.step(make_objective(model, meter=meter))
    first = sum(rows)
    optimizer.step(make_objective(model, meter=meter))
    assert sum(rows) - first == passes * 8
    assert meter.example_forwards == sum(rows)
    assert meter.weight_passes == 2


@pytest.mark.parametrize("directions", [RankOneSigns(1), RankOneSigns(None), WholeBatchSigns(3)])
def test_one_sided_steps_return_the_loss_at_the_weights(directions: Any) -> None:
    model = make_model(dtype=torch.float64, dropout=0.3)
    objective = make_objective(model, micro_batch=3)
    expected = float(objective.value())
    optimizer = ZerothOrderSGD(model, 1e-3, sigma=0.1, directions=directions, difference=OneSided())
    assert float(optimizer.step(objective)) == pytest.approx(expected, rel=1e-12)


def test_all_passes_of_a_step_see_the_same_dropout() -> None:
    masks: list[Tensor] = []
    model = make_model(dropout=0.5)
    model.get_submodule("1").register_forward_hook(lambda module, args, out: masks.append(torch.eq(out, 0)))
    FZOO(model, 1e-6, directions=WholeBatchSigns(4)).step(make_objective(model))
    assert len(masks) == 5
    assert all(torch.equal(mask, masks[0]) for mask in masks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("directions", [WholeBatchSigns(3), RankOneSigns(1), RankOneSigns(None)])
def test_one_sided_evaluations_change_no_bit(directions: Any, dtype: torch.dtype) -> None:
    model = make_model(dtype=dtype)
    targets = targets_of(model, [{"params": list(model.parameters())}])
    before = bits_of(model)
    evaluator = SlopeEvaluator(directions, 0.05, difference=OneSided())
    for step in range(5):
        evaluator.measure(make_objective(model, step), targets, SignStream(seed=1, step=step))
    assert bits_of(model) == before


Make = Callable[..., RecordedOptimizer]
MAKES: dict[str, Make] = {
    "FZOO": lambda model, **options: FZOO(model, 1e-4, sigma=0.02, directions=WholeBatchSigns(3), **options),
    "FZOO by example": lambda model, **options: FZOO(model, 1e-4, sigma=0.02, directions=RankOneSigns(None), **options),
    "running deviation": lambda model, **options: ZerothOrderSGD(
        model, 1e-2, directions=RankOneSigns(4), normalize=StandardDeviation(decay=0.5), **options
    ),
    "scalar moment": lambda model, **options: ZerothOrderSGD(
        model, 1e-2, directions=WholeBatchSigns(2), normalize=ScalarMoment(decay=0.5), **options
    ),
    "SVRG along whole-batch directions": lambda model, **options: MeZOSVRG(
        model, 1e-2, 1e-2, 3, directions=WholeBatchSigns(2), normalize=ScalarMoment(decay=0.5), **options
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MAKES)
def test_a_replay_ends_in_the_weights_and_the_state_of_the_run(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    model = make_model(dtype=dtype)
    base = copy.deepcopy(model)
    journal = JournalWriter(tmp_path / "journal", header={}, fitted={}, meter=Meter())
    leader = MAKES[name](model, weight_decay=0.1, seed=2**63 + 5, journal=journal)
    for step in range(5):
        leader.step(make_objective(model, step))
    journal.close()
    assert bits_of(model) != bits_of(base)
    follower = MAKES[name](base, weight_decay=0.1, seed=2**63 + 5)
    follower.replay(read_journal(tmp_path / "journal").records)
    assert bits_of(base) == bits_of(model)
    assert follower.state_dict() == leader.state_dict()


@pytest.mark.parametrize("name", MAKES)
def test_a_loss_that_is_not_finite_changes_nothing(name: str) -> None:
    def broken(model: nn.Module, batch: Any) -> Tensor:
        return squared_error(model, batch) * float("nan")

    model = make_model()
    optimizer = MAKES[name](model)
    optimizer.step(make_objective(model))
    before, state = bits_of(model), optimizer.state_dict()
    with pytest.raises(NonFiniteLossError, match="loss of step 1 is not finite"):
        optimizer.step(BatchObjective(model, make_objective(model).batch, broken))
    assert bits_of(model) == before
    assert optimizer.state_dict() == state


def test_equal_losses_take_no_step() -> None:
    model = make_model()
    before = bits_of(model)
    flat = BatchObjective(model, make_objective(model).batch, lambda m, b: 0.0 * squared_error(m, b))
    FZOO(model, 1e-4).step(flat)
    assert bits_of(model) == before


def test_whole_batches_may_mix_their_examples() -> None:
    def centred(model: nn.Module, batch: Any) -> Tensor:
        losses = squared_error(model, batch)
        return losses - 0.5 * losses.mean()

    model = make_model()
    before = bits_of(model)
    FZOO(model, 1e-4).step(BatchObjective(model, make_objective(model).batch, centred))
    assert bits_of(model) != before


@pytest.mark.parametrize("difference", [Central(), OneSided()])
def test_directions_of_whole_batches_start_from_an_offset_too(difference: Any) -> None:
    """The slopes of an SVRG step between anchors are those at the weights minus those at the anchor itself."""
    model = make_model(dtype=torch.float64)
    optimizer = MeZOSVRG(model, 1e-2, 1e-1, 4, directions=WholeBatchSigns(3), difference=difference)
    anchor = copy.deepcopy(model)
    for step in range(2):
        optimizer.step(make_objective(model, step))
    stream = SignStream(seed=0, step=2)
    measured = optimizer._measure(make_objective(model, 2), stream)
    evaluator = SlopeEvaluator(WholeBatchSigns(3), 1e-3, difference=difference)
    here, there = (
        evaluator.measure(make_objective(m, 2), targets_of(m, [{"params": list(m.parameters())}]), stream).slopes
        for m in (model, anchor)
    )
    assert float((here - there).abs().max()) > 1e-3
    torch.testing.assert_close(measured.slopes, here - there, rtol=1e-5, atol=1e-9)


def test_what_shares_a_direction_is_evaluated_along_the_one_it_is_moved_along() -> None:
    """A state of a run by example may say that a parameter shares; it is moved along direction 0 then."""
    model = make_model(dtype=torch.float64)
    targets = targets_of(model, [{"params": list(model.parameters())}])
    for target in targets:
        target.shared = True
    measured = SlopeEvaluator(WholeBatchSigns(3), 1e-3).measure(
        make_objective(model), targets, SignStream(seed=0, step=0)
    )
    assert len(set(measured.slopes.tolist())) == 1


def test_layouts_are_measured_for_directions_of_single_examples_alone() -> None:
    evaluator = SlopeEvaluator(WholeBatchSigns(2), 1e-3)
    model = make_model()
    targets = targets_of(model, [{"params": list(model.parameters())}])
    evaluator.measure(make_objective(model), targets, SignStream(seed=0, step=0))
    assert evaluator._layout is None
    by_example = SlopeEvaluator(RankOneSigns(None), 1e-3)
    by_example.measure(make_objective(model), targets, SignStream(seed=0, step=0))
    assert isinstance(by_example._layout, Layout)


def integers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def test_each_normalization_is_its_statistic_of_the_slopes() -> None:
    coefficients, scale = integers(4095, -17, 900, -2000), 0.25
    slopes = coefficients.double() * scale * 4
    spread = SpreadNormalized(decay=0.0)
    assert spread.spread(spread.next(0.0, coefficients, scale), 1) == pytest.approx(
        float(slopes.square().mean() ** 0.5)
    )
    deviation = StandardDeviation()
    assert deviation.spread(deviation.next(7.0, coefficients, scale), 5) == pytest.approx(float(slopes.std()))
    moment = ScalarMoment(decay=0.0, eps=0.5)
    assert moment.spread(moment.next(0.0, coefficients, scale), 1) == pytest.approx(abs(float(slopes.mean())) + 0.5)


@pytest.mark.parametrize("kind", [SpreadNormalized, StandardDeviation, ScalarMoment])
def test_running_moments_of_a_constant_are_the_constant(kind: Any) -> None:
    normalize, one = kind(decay=0.9), kind(decay=0.0)
    coefficients = integers(4095, 100)
    expected = one.spread(one.next(0.0, coefficients, 0.1), 1)
    moment = 0.0
    for step in range(1, 6):
        moment = normalize.next(moment, coefficients, 0.1)
        assert normalize.spread(moment, step) == pytest.approx(expected, rel=1e-12)


def test_with_one_direction_the_scalar_moment_is_the_spread_to_the_bit() -> None:
    ours, theirs = make_model(), make_model()
    for model, normalize in ((ours, ScalarMoment(eps=0.0)), (theirs, SpreadNormalized())):
        optimizer = ZerothOrderSGD(model, 1e-2, normalize=normalize)
        for step in range(5):
            optimizer.step(make_objective(model, step))
    assert bits_of(ours) == bits_of(theirs) != bits_of(make_model())


def test_largest_coefficients_do_not_overflow() -> None:
    coefficients = torch.full((4096,), 4095, dtype=torch.int64)
    coefficients[::2] *= -1
    expected = 4095.0 * 4096 * (4096 / 4095) ** 0.5
    deviation = StandardDeviation()
    assert deviation.spread(deviation.next(0.0, coefficients, 1.0), 1) == pytest.approx(expected, rel=1e-12)
    moment = ScalarMoment(decay=0.0, eps=0.0)
    assert moment.spread(moment.next(0.0, coefficients.abs(), 1.0), 1) == pytest.approx(4095.0 * 4096, rel=1e-12)


@pytest.mark.parametrize("kind", [StandardDeviation, ScalarMoment])
@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_decay_out_of_range_is_refused(kind: Any, decay: float) -> None:
    with pytest.raises(ValueError, match=r"`decay` must be in \[0, 1\) .* got"):
        kind(decay=decay)


@pytest.mark.parametrize("eps", [-1e-9, float("inf"), float("nan")])
def test_eps_out_of_range_is_refused(eps: float) -> None:
    with pytest.raises(ValueError, match="`eps` must be a finite number of at least 0"):
        ScalarMoment(eps=eps)


@pytest.mark.parametrize("count", [0, -1, 4097])
def test_counts_out_of_range_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=r"`count` must be between 1 and 4096 .* got"):
        WholeBatchSigns(count)


@pytest.mark.parametrize("directions", [WholeBatchSigns(1), RankOneSigns(1)])
def test_fzoo_along_one_direction_is_refused(directions: Any) -> None:
    with pytest.raises(ValueError, match=r"FZOO needs two directions or more, .* got \w+Signs\(count=1\)"):
        FZOO(make_model(), 1e-4, directions=directions)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lr": -1.0}, "`lr` must be a finite positive number; got -1.0"),
        ({"sigma": 0.0}, "`sigma` must be a finite positive number; got 0.0"),
        ({"weight_decay": float("nan")}, "`weight_decay` must be"),
        ({"seed": -1}, r"`seed` must fit in 64 bits .* got -1"),
    ],
)
def test_numbers_out_of_range_are_refused_by_fzoo(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FZOO(make_model(), **({"lr": 1e-4} | options))  # pyright: ignore[reportArgumentType]


def test_a_single_slope_has_no_deviation_and_nothing_is_applied() -> None:
    model = make_model()
    before = bits_of(model)
    optimizer = ZerothOrderSGD(model, 1e-2, normalize=StandardDeviation())
    with pytest.raises(ValueError, match=r"has 1 direction, .* no standard deviation"):
        optimizer.step(make_objective(model))
    assert bits_of(model) == before
    assert optimizer.steps_done == 0


def test_one_sided_differences_are_a_part_of_spsa_along_normals_too() -> None:
    model = make_model(dtype=torch.float64)
    targets = targets_of(model, [{"params": list(model.parameters())}])
    objective = make_objective(model)
    estimate = SPSA(objective, targets, sigma=1e-6, directions=Gaussian(), difference=OneSided(), seed=2)
    assert float(estimate()) == pytest.approx(float(objective.value()), rel=1e-12)
    one_sided = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    SPSA(objective, targets, sigma=1e-6, directions=Gaussian(), seed=2)()
    for one, parameter in zip(one_sided, model.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(one, parameter.grad, rtol=1e-3, atol=1e-3)
