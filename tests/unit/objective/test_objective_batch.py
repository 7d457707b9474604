"""The objective: one loss with and without a gradient, however the batch is cut."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from featherlight.meter import Meter
from featherlight.objective import BatchObjective, Objective, PerExampleObjective
from tests.unit.optim.problems import make_batch, make_model, squared_error


@given(rows=st.integers(1, 9), micro_batch=st.one_of(st.none(), st.integers(1, 12)), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_loss_and_gradient_do_not_depend_on_micro_batches(rows: int, micro_batch: int | None, seed: int) -> None:
    model = make_model(dtype=torch.float64, seed=seed)
    batch = make_batch(seed, rows=rows, dtype=torch.float64)
    expected = squared_error(model, batch).mean()
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    objective = BatchObjective(model, batch, squared_error, micro_batch=micro_batch)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    loss = objective()
    assert loss.shape == ()
    assert not loss.requires_grad
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-6, atol=0)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    values = objective.values()
    assert values.shape == (rows,)
    assert not values.requires_grad
    torch.testing.assert_close(objective.value(), values.mean(), rtol=0, atol=0)
    torch.testing.assert_close(values, squared_error(model, batch).detach())


def test_it_is_an_objective_that_tells_its_examples_apart() -> None:
    objective = BatchObjective(make_model(), make_batch(), squared_error)
    assert isinstance(objective, Objective)
    assert isinstance(objective, PerExampleObjective)
    assert not isinstance(lambda: None, Objective)


def test_the_window_is_where_the_pass_stands() -> None:
    seen: list[range] = []

    def watching(model: nn.Module, batch: Any) -> Tensor:
        seen.append(objective.window)
        assert torch.equal(batch["x"], whole["x"][objective.window.start : objective.window.stop])
        return squared_error(model, batch)

    whole = make_batch(rows=7)
    objective = BatchObjective(make_model(), whole, watching, micro_batch=3)
    objective.values()
    assert seen == [range(3), range(3, 6), range(6, 7)]


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_narrow_is_the_first_examples_in_one_pass(micro_batch: int | None) -> None:
    passes: list[int] = []

    def counting(model: nn.Module, batch: Any) -> Tensor:
        passes.append(len(batch["x"]))
        return squared_error(model, batch)

    objective = BatchObjective(make_model(), make_batch(rows=5), counting, micro_batch=micro_batch)
    first = objective.narrow(2).values()
    assert passes == [2]
    torch.testing.assert_close(first, objective.values()[:2])


def test_dropout_repeats_itself_by_seed_in_every_form_of_the_loss() -> None:
    def run(seed: int) -> list[Tensor]:
        model = make_model(dropout=0.5)
        objective = BatchObjective(model, make_batch(), squared_error, dropout_seed=seed, micro_batch=3)
        torch.rand(3, generator=torch.Generator().manual_seed(seed))
        return [objective(), objective.value(), objective.values().mean()]

    losses = run(1)
    assert torch.allclose(losses[0], losses[1])
    assert torch.equal(losses[1], losses[2])
    assert not torch.equal(run(2)[1], losses[1])


@pytest.mark.parametrize("batch", [{}, {"x": torch.zeros(0, 4)}, {"x": torch.zeros(3, 4), "y": torch.zeros(2, 2)}])
def test_batches_without_common_rows_are_refused(batch: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"`batch` must hold tensors of one common, positive number of rows; got"):
        BatchObjective(make_model(), batch, squared_error)


@pytest.mark.parametrize("micro_batch", [0, -3])
def test_micro_batches_without_rows_are_refused(micro_batch: int) -> None:
    with pytest.raises(ValueError, match=r"`micro_batch` must be at least 1 row; got"):
        BatchObjective(make_model(), make_batch(), squared_error, micro_batch=micro_batch)


@pytest.mark.parametrize(
    "reduce", [lambda losses: losses.mean(), lambda losses: losses[:, None], lambda losses: losses[1:]]
)
def test_a_loss_of_another_shape_is_refused(reduce: Any) -> None:
    objective = BatchObjective(make_model(), make_batch(), lambda m, b: reduce(squared_error(m, b)), meter=Meter())
    for call in (objective, objective.value, objective.values):
        with pytest.raises(ValueError, match=r"one loss per example, shape \(8,\); got"):
            call()
