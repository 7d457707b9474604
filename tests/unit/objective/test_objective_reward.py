"""Scores as the objective: minus any number an example, checked, without a gradient."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featherlight.meter import Meter
from featherlight.objective import (
    BatchObjective,
    MinusScores,
    NonFiniteLossError,
    Objective,
    PerExampleObjective,
    RewardObjective,
    StreamedObjective,
    unchanging,
)
from featherlight.optim import SPSA, CentredRanks, MeZO, RankOneSigns, ZerothOrderSGD
from featherlight.optim.zeroth_order import targets_of
from tests.properties.test_zeroth_order_laws import global_states
from tests.unit.optim.problems import bits_of, make_batch, make_model, squared_error


def minus_error(model: nn.Module, batch: Any) -> Tensor:
    return -squared_error(model, batch)


RETURNED: dict[str, Callable[[Tensor], Any]] = {
    "float32": lambda scores: scores,
    "float64": lambda scores: scores.double(),
    "bfloat16": lambda scores: scores.bfloat16(),
    "int8": lambda scores: (10 * scores).to(torch.int8),
    "bool": lambda scores: scores > -1,
    "list": lambda scores: scores.tolist(),
    "tuple of ints": lambda scores: tuple(int(10 * score) for score in scores),
    "numpy": lambda scores: scores.numpy(),
    "numpy float16": lambda scores: scores.numpy().astype(np.float16),
    "numpy bool": lambda scores: scores.numpy() > -1,
    "list of numpy": lambda scores: list(scores.double().numpy()),
    "list of tensors": list,
}


@pytest.mark.parametrize("convert", RETURNED.values(), ids=RETURNED)
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_values_are_minus_the_scores_whatever_they_are_returned_as(convert: Any, micro_batch: int | None) -> None:
    model, batch, meter = make_model(), make_batch(), Meter()
    objective = RewardObjective(
        model, batch, lambda m, b: convert(minus_error(m, b)), micro_batch=micro_batch, meter=meter
    )
    with torch.no_grad():
        expected = [-float(score) for score in convert(minus_error(model, batch))]
    values = objective.values()
    assert values.dtype == torch.float64
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)
    assert objective.value() == values.mean()
    assert meter.example_forwards == 16
    torch.testing.assert_close(objective.narrow(2).values(), values[:2])
    assert objective.num_examples == 8
    assert isinstance(objective, Objective)
    assert isinstance(objective, PerExampleObjective)


def test_a_gradient_is_refused() -> None:
    model = make_model()
    objective = RewardObjective(model, make_batch(), minus_error)
    with pytest.raises(ValueError, match=r"a RewardObjective has no gradient .* Use a forward-only optimizer"):
        torch.optim.SGD(model.parameters(), lr=0.1).step(objective)
    stream = StreamedObjective(model, [make_batch()], MinusScores(lambda m, b: [0.0] * 8), num_examples=8)
    with pytest.raises(ValueError, match="the loss carries no graph, so it has no gradient"):
        stream()


@pytest.mark.parametrize(
    ("score", "sentence"),
    [
        (lambda m, b: minus_error(m, b).mean(), r"one number per example, shape \(8,\); got \(\)"),
        (lambda m, b: minus_error(m, b)[:, None], r"one number per example, shape \(8,\); got \(8, 1\)"),
        (lambda m, b: [1.0] * 7, r"one number per example, shape \(8,\); got \(7,\)"),
        (lambda m, b: 0.5, r"one number per example, shape \(8,\); got \(\)"),
        (lambda m, b: None, r"an array or a list of floats; got NoneType"),
        (lambda m, b: ["good"] * 8, r"an array or a list of floats; got list"),
        (lambda m, b: np.array(["a"] * 8), r"an array or a list of floats; got ndarray"),
        (lambda m, b: torch.zeros(8, dtype=torch.complex64), r"got Tensor \(torch.complex64 has no order\)"),
        (torch.enable_grad()(minus_error), "a tensor that carries a graph"),
        (torch.enable_grad()(lambda m, b: list(minus_error(m, b))), "a tensor that carries a graph"),
    ],
)
def test_what_is_not_one_number_an_example_is_refused(score: Any, sentence: str) -> None:
    model = make_model()
    before = bits_of(model)
    objective = RewardObjective(model, make_batch(), score)
    for call in (objective.value, objective.values, lambda: ZerothOrderSGD(model, 0.1).step(objective)):
        with pytest.raises(ValueError, match=sentence):
            call()
    assert bits_of(model) == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("directions", [1, None])
def test_scores_that_are_not_finite_end_the_step(bad: float, directions: int | None) -> None:
    model, global_before = make_model(), global_states()
    before = bits_of(model)
    objective = RewardObjective(model, make_batch(), lambda m, b: [0.0] * (len(b["x"]) - 1) + [bad])
    sentence = rf"`score` returned {bad} for example \d of the \d in a pass .* not applied"
    optimizer = ZerothOrderSGD(model, 0.1, directions=RankOneSigns(directions))
    with pytest.raises(NonFiniteLossError, match=sentence):
        optimizer.step(objective)
    assert bits_of(model) == before
    assert optimizer.steps_done == 0
    assert global_states() == global_before


def writing(model: nn.Module, batch: Any) -> Tensor:
    model[3].bias.data[0] += 2**-20
    return minus_error(model, batch)


def replacing(model: nn.Module, batch: Any) -> Tensor:
    model[3].bias = nn.Parameter(model[3].bias.detach().clone())
    return minus_error(model, batch)


@pytest.mark.parametrize("score", [writing, replacing])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_score_that_changes_the_weights_is_found_in_debug_mode(score: Any, dtype: torch.dtype) -> None:
    model = make_model(dtype=dtype)
    with torch.no_grad():
        model[3].bias.zero_()
    batch = make_batch(dtype=dtype)
    RewardObjective(model, batch, score).value()
    objective = RewardObjective(model, batch, score, debug=True)
    for one in (objective, objective.narrow(2)):
        with pytest.raises(ValueError, match=r"changed parameter `3.bias`, but it must leave the weights alone"):
            one.value()
    with pytest.raises(ValueError, match=r"changed parameter `3.bias`"):
        BatchObjective(model, batch, unchanging(score)).value()


@pytest.mark.parametrize("directions", [1, None])
def test_debug_mode_changes_nothing_else(directions: int | None) -> None:
    finals = []
    for debug in (False, True):
        model = make_model()
        optimizer = ZerothOrderSGD(model, 0.01, directions=RankOneSigns(directions))
        for step in range(3):
            optimizer.step(RewardObjective(model, make_batch(step), minus_error, debug=debug))
        finals.append(bits_of(model))
    assert finals[0] == finals[1]


@pytest.mark.parametrize("directions", [1, None])
def test_minus_a_loss_is_trained_as_the_loss_is(directions: int | None) -> None:
    finals = []
    for make in (lambda m, b: BatchObjective(m, b, squared_error), lambda m, b: RewardObjective(m, b, minus_error)):
        model = make_model(dtype=torch.float64)
        optimizer = ZerothOrderSGD(model, 0.01, directions=RankOneSigns(directions))
        for step in range(5):
            optimizer.step(make(model, make_batch(step, dtype=torch.float64)))
        finals.append(bits_of(model))
    assert finals[0] == finals[1]


def test_sampling_within_a_score_repeats_itself_in_a_step() -> None:
    def sampled(model: nn.Module, batch: Any) -> Tensor:
        return torch.rand(len(batch["x"]))

    one, same = (RewardObjective(make_model(), make_batch(), sampled, dropout_seed=1) for _ in range(2))
    before = global_states()
    assert torch.equal(one.values(), one.values())
    assert torch.equal(one.values(), same.values())
    assert not torch.equal(RewardObjective(make_model(), make_batch(), sampled, dropout_seed=2).values(), one.values())
    assert global_states() == before


def test_another_process_may_be_the_judge() -> None:
    """The judge prefers outputs near a number that only it knows."""
    code = "import sys\nfor line in sys.stdin: print(-abs(float(line) - 3), flush=True)"
    model = make_model()
    batch = {"x": torch.randn(16, 4, generator=torch.Generator().manual_seed(0))}
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True, bufsize=1) as judge:
        assert judge.stdin is not None
        assert judge.stdout is not None
        pipes = judge.stdin, judge.stdout

        def judged(module: nn.Module, rows: Any) -> list[float]:
            pipes[0].writelines(f"{float(y)}\n" for y in module(rows["x"])[:, 0])
            pipes[0].flush()
            return [float(pipes[1].readline()) for _ in rows["x"]]

        objective = RewardObjective(model, batch, judged)
        start = float(objective.value())
        optimizer = ZerothOrderSGD(model, 0.02, sigma=1e-2, directions=RankOneSigns(None), shaping=CentredRanks())
        for _ in range(60):
            optimizer.step(objective)
        assert float(objective.value()) < 0.5 * start
        judge.stdin.close()
        judge.wait()


class Broken:
    """An objective of someone's own, that returns what it is told to."""

    num_examples = 8
    window = range(8)

    def __init__(self, returned: Any) -> None:
        self.returned = returned

    def __call__(self) -> Any:
        return self.returned

    value = values = __call__

    def narrow(self, count: int) -> "Broken":
        return self


@pytest.mark.parametrize("make", [ZerothOrderSGD, MeZO])
@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        (0.5, r"Broken.value\(\) must return a tensor of shape \(\), .* got a float"),
        (torch.zeros(8), r"Broken.value\(\) must return a tensor of shape \(\), .* got shape \(8,\)"),
        (torch.zeros((), requires_grad=True), r"Broken.value\(\) returned a tensor with a graph"),
        (torch.tensor(float("nan")), "the loss of step 0 is not finite"),
    ],
)
def test_an_objective_of_ones_own_is_checked_too(make: Any, returned: Any, sentence: str) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=sentence):
        make(model, 0.1).step(Broken(returned))


@pytest.mark.parametrize("returned", [torch.zeros(()), torch.zeros(7), [0.0] * 8, torch.zeros(8, requires_grad=True)])
def test_its_losses_of_examples_are_checked_too(returned: Any) -> None:
    with pytest.raises(
        ValueError, match=r"Broken.values\(\) (must return a tensor of shape \(8,\)|returned a tensor with)"
    ):
        ZerothOrderSGD(make_model(), 0.1, directions=RankOneSigns(None)).step(Broken(returned))


def test_a_loss_with_a_graph_where_gradients_are_off_is_refused() -> None:
    objective = BatchObjective(make_model(), make_batch(), torch.enable_grad()(squared_error))
    with pytest.raises(ValueError, match="`loss` returned a tensor with a graph although gradients are off"):
        objective.values()
    objective()


def test_spsa_takes_a_score_to_any_optimizer_of_torch() -> None:
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    targets = targets_of(model, optimizer.param_groups)
    objective = RewardObjective(model, make_batch(rows=32), minus_error)
    start = float(objective.value())
    for step in range(60):
        optimizer.step(SPSA(objective, targets, sigma=1e-3, directions=RankOneSigns(), seed=1, step=step))
    assert float(objective.value()) < 0.9 * start
