"""Optimizers in turn: each on its own objective, and one to schedulers and saves."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from featherlight.objective import BatchObjective, ObjectivesInTurn
from featherlight.optim import OptimizersInTurn
from tests.unit.optim.problems import bits_of, make_batch, make_model, squared_error


def players() -> tuple[nn.Module, nn.Module, OptimizersInTurn]:
    one, other = make_model(seed=0), make_model(seed=1)
    optimizers = [
        torch.optim.AdamW(one.parameters(), lr=1e-2),
        torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.5),
    ]
    return one, other, OptimizersInTurn(optimizers)


def objectives(one: nn.Module, other: nn.Module, step: int, seen: list[torch.Tensor]) -> ObjectivesInTurn:
    """The second player learns what the first one says after its step."""

    def second() -> BatchObjective:
        batch = make_batch(step)
        with torch.no_grad():
            target = one(batch["x"])
        seen.append(target)
        return BatchObjective(other, {"x": batch["x"], "y": target}, squared_error)

    return ObjectivesInTurn([lambda: BatchObjective(one, make_batch(step), squared_error), second])


def test_each_steps_on_what_the_one_before_has_become() -> None:
    one, other, both = players()
    alone = make_model(seed=0)
    lone = torch.optim.AdamW(alone.parameters(), lr=1e-2)
    seen: list[torch.Tensor] = []
    for step in range(5):
        loss = both.step(objectives(one, other, step, seen))
        expected = lone.step(BatchObjective(alone, make_batch(step), squared_error))  # pyright: ignore
        assert torch.equal(loss, expected)  # pyright: ignore
        torch.testing.assert_close(seen[-1], alone(make_batch(step)["x"]))
    assert bits_of(one) == bits_of(alone)
    assert bits_of(other) != bits_of(make_model(seed=1))


def test_one_schedule_and_one_state_for_all() -> None:
    one, other, both = players()
    scheduler = LambdaLR(both, lambda step: 0.5**step)
    for step in range(3):
        both.step(objectives(one, other, step, []))
        scheduler.step()
    rates = [group["lr"] for inner in both.optimizers for group in inner.param_groups]
    assert rates == pytest.approx([1e-2 / 8, 0.1 / 8])
    saved = copy.deepcopy(both.state_dict())
    twins = copy.deepcopy((one, other))
    both.step(objectives(one, other, 3, []))
    again = OptimizersInTurn(
        [torch.optim.AdamW(twins[0].parameters()), torch.optim.SGD(twins[1].parameters(), momentum=0.5)]
    )
    again.load_state_dict(saved)
    again.step(objectives(*twins, 3, []))
    assert [bits_of(twin) for twin in twins] == [bits_of(one), bits_of(other)]


def test_an_objective_with_other_parts_is_refused_and_the_composite_is_its_first() -> None:
    one, other, both = players()
    with pytest.raises(ValueError, match="a part for each of its 2 optimizers; got 1"):
        both.step(BatchObjective(one, make_batch(0), squared_error))
    with pytest.raises(ValueError, match="`optimizers` is empty"):
        OptimizersInTurn([])
    with pytest.raises(ValueError, match="`parts` is empty"):
        ObjectivesInTurn([])
    composite, first = objectives(one, other, 0, []), BatchObjective(one, make_batch(0), squared_error)
    assert torch.equal(composite.value(), first.value())
    assert torch.equal(composite.values(), first.values())
    assert torch.equal(composite(), first.value())
    assert all(p.grad is not None for p in (*one.parameters(), *other.parameters()))
