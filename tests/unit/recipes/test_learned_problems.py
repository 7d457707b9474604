"""Classes of problems: what is drawn is what the class says, the lowest losses are right, and races count evaluations."""

from dataclasses import replace

import pytest
import torch

from featherlight.optim.learned import ConvexRule, Safeguard, ScalarSteps, relative_gaps
from featherlight.recipes import recipes
from featherlight.recipes.config import changed
from featherlight.recipes.learned.guarded import run_guarded
from featherlight.recipes.learned.linear import LeastSquares
from featherlight.recipes.learned.networks import ImageNets, LogisticRegressions, TeacherStudents
from featherlight.recipes.learned.plants import ArxPlants, ImpulseResponses
from featherlight.recipes.learned.problems import PROBLEMS
from featherlight.recipes.learned.race import rivals, run_conjugate_gradients, run_rule, tuned
from featherlight.recipes.learned.records import MeasuredRecords

SMALL = [
    LeastSquares(unknowns=5, rows=9, condition=10.0),
    ImpulseResponses(taps=6, samples=40),
    ArxPlants(order=3, samples=60),
    TeacherStudents(inputs=4, width=5, samples=20),
    LogisticRegressions(inputs=4, samples=30),
    ImageNets(width=4, samples=20),
]


def drawn(problems, count: int = 4, seed: int = 0):
    return problems.sample(count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("problems", SMALL, ids=lambda one: type(one).__name__)
def test_tasks_are_drawn_from_the_generator_and_begin_above_their_lowest_loss(problems):
    if isinstance(problems, ImageNets):
        pytest.importorskip("sklearn")
    tasks, again, others = drawn(problems), drawn(problems), drawn(problems, seed=1)
    first = tasks.losses(tasks.starts)
    assert first.shape == (4,)
    assert bool(first.isfinite().all())
    assert torch.equal(first, again.losses(again.starts))
    others_gradients, gradients = (
        one.losses_and_gradients(tuple(p + 0.1 for p in one.starts))[1] for one in (others, tasks)
    )
    assert not torch.equal(others_gradients[-1], gradients[-1])
    if tasks.best is not None:
        assert bool((first > tasks.best).all())
        losses = run_guarded(ConvexRule(ScalarSteps(0.1)), tasks, 80, safeguard=Safeguard()).losses
        gaps = relative_gaps(losses, tasks.best)
        assert bool((gaps[-1] < 1e-2).all())
        assert bool((gaps[-1] > -1e-9).all())


def test_plants_without_noise_are_identified_exactly():
    for problems in (ImpulseResponses(taps=30, samples=80, noise=0.0), ArxPlants(order=4, samples=80, noise=0.0)):
        tasks = drawn(problems)
        assert tasks.best is not None
        assert float(tasks.best.max()) < 1e-15
        assert float(tasks.data["outputs"].std(1).min()) > 0.3


def test_measured_windows_come_from_their_part_of_each_record(real_data):
    tasks = drawn(MeasuredRecords(samples=64))
    assert tasks.data["regressors"].shape == (4, 64, 8)
    assert tasks.best is not None
    assert float((tasks.best / tasks.losses(tasks.starts)).max()) < 0.2
    with pytest.raises(ValueError, match="has 100 samples and a window needs 260"):
        drawn(MeasuredRecords(names=("ball-and-beam",), part=(0.0, 0.1)))


def test_logistic_optima_have_no_gradient():
    tasks = drawn(LogisticRegressions(inputs=3, samples=50, spread=2.0))
    losses = run_guarded(ConvexRule(ScalarSteps(4.0)), tasks, 60, safeguard=Safeguard()).losses
    assert tasks.best is not None
    assert float((losses[-1] - tasks.best).abs().max()) < 1e-9


def test_conjugate_gradients_end_after_as_many_steps_as_there_are_unknowns():
    tasks = drawn(ImpulseResponses(taps=6, samples=40))
    gaps = relative_gaps(run_conjugate_gradients(tasks, 40), tasks.best)
    assert float(gaps[7].max()) < 1e-10
    assert float(gaps[-1].max()) < 1e-10
    assert float(gaps[1].min()) == 1.0


def test_a_safeguard_keeps_a_rule_that_diverges_from_doing_so():
    tasks = drawn(ImpulseResponses(taps=6, samples=40))
    wild = ConvexRule(ScalarSteps(50.0))
    assert float(run_rule(wild, tasks, 30)[-1].min()) > 1e6
    found = run_guarded(wild, tasks, 30)
    assert float(relative_gaps(found.losses, tasks.best)[-1].max()) < 0.1
    assert found.trials.shape == (4,)


def test_rivals_are_tuned_over_the_same_number_of_settings():
    tasks = drawn(TeacherStudents(inputs=4, width=5, samples=20), 2)
    settings = []
    for rival in rivals(1, 1e-2, 1.0):
        setting, medians = tuned(rival, tasks, evaluations=6, target=0.5)
        losses = rival.run(setting)(tasks, 6)
        assert losses.shape == (7, 2)
        assert torch.allclose(losses[0], tasks.losses(tasks.starts))
        settings.append(list(medians))
    assert settings[0] == settings[1] == settings[2]


@pytest.mark.parametrize("name", sorted(PROBLEMS))
def test_every_class_of_the_configs_is_there(name):
    config = changed(recipes()["learned/least-squares"](), {"problem": name}, source="--set")
    assert config.problem == name  # pyright: ignore
    assert 0 < PROBLEMS[name]().target < 1


def test_bad_classes_get_a_sentence():
    with pytest.raises(ValueError, match="`unknowns` must be from 1 to `rows`"):
        LeastSquares(unknowns=9, rows=8)
    with pytest.raises(ValueError, match="a pole at 1 or beyond is not stable"):
        ImpulseResponses(radius=(0.5, 1.0))
    with pytest.raises(ValueError, match="`samples` must be at least the number of parameters"):
        replace(ArxPlants(), samples=4)
    with pytest.raises(ValueError, match="`ridge` must be positive"):
        LogisticRegressions(ridge=0.0)
    with pytest.raises(ValueError, match="`width` must be at least 1"):
        TeacherStudents(width=0)
    with pytest.raises(ValueError, match="`names` must be of"):
        MeasuredRecords(names=("nothing",))
    with pytest.raises(ValueError, match="`horizon` must be at least 1 step"):
        changed(recipes()["learned/least-squares"](), {"horizon": 0}, source="--set")
