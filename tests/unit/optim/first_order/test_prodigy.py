"""Prodigy against its authors' package, laws of its groups, the memory of its state, and what it refuses."""

from typing import Any

import prodigyopt
import pytest
import torch
from torch import nn

from featherlight.objective import BatchObjective, NonFiniteLossError
from featherlight.optim import DistanceEstimate, Prodigy
from tests.unit.optim.problems import make_batch, make_model, make_objective, squared_error

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], DistanceEstimate]] = {
    "default": ({}, {}, DistanceEstimate()),
    "decay and correction": (
        {"weight_decay": 0.1, "use_bias_correction": True, "d0": 1e-4},
        {"weight_decay": 0.1, "bias_correction": True},
        DistanceEstimate(start=1e-4),
    ),
    "guarded, scaled, slow": (
        {"safeguard_warmup": True, "d_coef": 2.0, "growth_rate": 1.3, "d0": 1e-3, "beta3": 0.9, "lr": 0.5},
        {"lr": 0.5},
        DistanceEstimate(start=1e-3, coefficient=2.0, growth=1.3, decay=0.9, unscaled=True),
    ),
    "sampled": ({"slice_p": 5, "weight_decay": 0.01}, {"weight_decay": 0.01}, DistanceEstimate(stride=5)),
    "without momentum": ({"betas": (1e-14, 0.99)}, {"betas": (0.0, 0.99)}, DistanceEstimate()),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_trajectory_is_that_of_the_authors_package(variant: str) -> None:
    theirs, own, estimate = VARIANTS[variant]
    peer_model, model = make_model(dtype=torch.float64), make_model(dtype=torch.float64)
    hidden = [{"params": m[0].parameters()} for m in (peer_model, model)]
    head = [{"params": m[3].parameters(), "lr": theirs.get("lr", 1.0)} for m in (peer_model, model)]
    peer = prodigyopt.Prodigy([hidden[0], head[0]], **theirs)
    optimizer = Prodigy([hidden[1], head[1]], **own, estimate=estimate)
    for step in range(150):
        expected = peer.step(make_objective(peer_model, step % 5))
        loss = optimizer.step(make_objective(model, step % 5))
        assert float(loss) == pytest.approx(float(expected), rel=1e-7)
        if step == 70:
            again = Prodigy([{"params": m.parameters()} for m in (model[0], model[3])], **own, estimate=estimate)
            again.load_state_dict(optimizer.state_dict())
            optimizer = again
    assert optimizer.param_groups[0]["d"] == pytest.approx(peer.param_groups[0]["d"], rel=1e-7)
    assert optimizer.param_groups[0]["d"] > 10 * estimate.start
    for own_weight, peer_weight in zip(model.parameters(), peer_model.parameters(), strict=True):
        torch.testing.assert_close(own_weight, peer_weight, rtol=1e-6, atol=1e-8)


class Scaled(nn.Module):
    """The loss in units of a factor: its parameter is the original one over `factor`."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.weight = nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4) / factor)
        self.bias = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.factor * self.weight).mT + self.bias


def test_the_rate_of_a_group_is_the_unit_of_its_parameters() -> None:
    losses = []
    for factor, lr in ((1.0, 0.2), (0.2, 1.0)):
        model = Scaled(factor)
        groups = [{"params": [model.weight], "lr": lr}, {"params": [model.bias]}]
        optimizer = Prodigy(groups, eps=1e-30, estimate=DistanceEstimate(start=1e-4))
        found = []
        for step in range(60):
            batch = make_batch(step % 4, dtype=torch.float64)
            batch = {"x": batch["x"], "y": batch["y"][:, [0, 1, 0]]}
            found.append(float(optimizer.step(BatchObjective(model, batch, squared_error))))
        losses.append(found)
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-7, atol=0)
    assert losses[0][-1] < 0.5 * losses[0][0]


def test_a_sampled_state_takes_a_little_more_than_twice_the_weights() -> None:
    model = nn.Linear(300, 200)
    sizes = {}
    for stride in (1, 11):
        optimizer = Prodigy(model.parameters(), estimate=DistanceEstimate(stride=stride))
        model(torch.randn(4, 300, generator=torch.Generator().manual_seed(0))).square().mean().backward()
        optimizer.step()
        states = [t for state in optimizer.state.values() for t in state.values()]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in states}
        sizes[stride] = sum(storages.values()) / sum(p.numel() * 4 for p in model.parameters())
    assert sizes[1] == pytest.approx(4.0)
    assert sizes[11] <= 2.2


def test_frozen_groups_do_not_decay_and_new_groups_take_the_distance_over() -> None:
    model = make_model()
    first, second = list(model[0].parameters()), list(model[3].parameters())
    optimizer = Prodigy([{"params": first, "lr": 0.0, "weight_decay": 1.0}, {"params": second[:1]}])
    before = [p.detach().clone() for p in first]
    for step in range(20):
        optimizer.step(make_objective(model, step))
    assert all(torch.equal(p, b) for p, b in zip(first, before, strict=True))
    optimizer.add_param_group({"params": second[1:]})
    assert optimizer.param_groups[2]["d"] == optimizer.param_groups[0]["d"] > 1e-6


def test_what_it_cannot_do_gets_a_sentence() -> None:
    weight = nn.Parameter(torch.ones(2))
    for options, match in (
        ({"lr": -1.0}, "`lr` must be a finite number of at least 0; got -1.0"),
        ({"eps": 0.0}, "`eps` must be"),
        ({"betas": (0.9, 1.0)}, r"`betas` must be two numbers in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=match):
            Prodigy([weight], **options)
    for settings, match in (
        ({"start": 0.0}, "`start` must be"),
        ({"growth": 1.0}, "`growth` must be above 1"),
        ({"decay": 1.0}, "`decay` must lie"),
        ({"stride": 0}, "`stride` must be at least 1"),
    ):
        with pytest.raises(ValueError, match=match):
            DistanceEstimate(**settings)
    with pytest.raises(ValueError, match="float16; Prodigy needs"):
        Prodigy([nn.Parameter(torch.ones(2, dtype=torch.float16))])
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="is sparse"):
        Prodigy(table.parameters()).step()
    weight.grad = torch.tensor([1.0, float("nan")])
    with pytest.raises(NonFiniteLossError, match="sums at step 0 are not finite"):
        Prodigy([weight]).step()
    assert torch.equal(weight, torch.ones(2))
