"""Weights to be judged by: put in and taken out to the same bits, with BatchNorm statistics of their own."""

import pytest
import torch
from torch import nn

from featherlight.objective import BatchObjective
from featherlight.optim import evaluation_weights, muon_with_adamw, reestimate_batch_norm, schedule_free_adamw
from featherlight.optim.first_order import adopt_evaluation_weights, schedule_free
from tests.unit.optim.problems import bits_of, make_batch, squared_error


def normed_model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 2))


def objective(model: nn.Module, step: int) -> BatchObjective:
    return BatchObjective(model, make_batch(step, rows=32), squared_error, dropout_seed=step)


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = normed_model()
    optimizer = schedule_free_adamw(model.parameters(), lr=0.05)
    for step in range(30):
        optimizer.step(objective(model, step))  # pyright: ignore
    return model, optimizer


def test_looking_at_the_average_changes_no_bit_of_training():
    model, optimizer = trained()
    undisturbed, twin = trained()
    before = bits_of(model)
    passes = [objective(model, step).value for step in range(4)]
    with evaluation_weights(optimizer, model=model, passes=passes):
        inside = bits_of(model)
    assert bits_of(model) == before
    assert all(module.training for module in model.modules())
    assert inside["0.weight"] != before["0.weight"]
    assert inside["1.running_mean"] != before["1.running_mean"]
    for step in range(30, 33):
        optimizer.step(objective(model, step))  # pyright: ignore
        twin.step(objective(undisturbed, step))  # pyright: ignore
    assert bits_of(model) == bits_of(undisturbed)
    adopt_evaluation_weights(optimizer)
    assert bits_of(model)["0.weight"] != bits_of(undisturbed)["0.weight"]


def test_without_an_average_nothing_happens():
    model = normed_model()
    before = bits_of(model)
    for optimizer in (None, torch.optim.AdamW(model.parameters())):
        with evaluation_weights(optimizer, model=model, passes=iter(lambda: pytest.fail("a pass was run"), 0)):
            assert bits_of(model) == before


def test_batch_norm_takes_the_mean_statistics_of_the_batches():
    model = normed_model().double()
    batches = [make_batch(step, rows=16, dtype=torch.float64)["x"] for step in range(3)]
    reestimate_batch_norm(model, [lambda x=x: model(x) for x in batches])
    seen = [model[0](x) for x in batches]
    torch.testing.assert_close(model[1].running_mean, torch.stack([x.mean(0) for x in seen]).mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([x.var(0) for x in seen]).mean(0))
    assert model[1].momentum == 0.1
    assert model[2].training
    reestimate_batch_norm(nn.Linear(2, 2), [])
    with pytest.raises(ValueError, match="`passes` is empty"):
        reestimate_batch_norm(model, [])


def test_muon_takes_hidden_matrices_alone():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    muon, adamw = muon_with_adamw(model, 0.01, head=model[2]).optimizers
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(4, 4)]
    assert len(adamw.param_groups[0]["params"]) == 4
    with pytest.raises(ValueError, match="requires a gradient"):
        muon_with_adamw(model.requires_grad_(False), 0.01)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(schedule_free, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"featherlight\[averaging\]"):
        schedule_free_adamw([nn.Parameter(torch.zeros(1))])
