"""Pruning: which weights go, that they stay gone, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from featherlight.transforms.prune import Prune, PruningMask, prune_weights
from featherlight.transforms.prune_patterns import Global, LayerAdaptive, NOfM, PerLayer, SparsityPattern
from featherlight.transforms.prune_schedule import AT_ONCE, CubicSchedule


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def loss(model):
    x = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    return model(x).square().sum()


@pytest.mark.parametrize("pattern", [Global(0.5), LayerAdaptive(0.5), PerLayer({"3.*": 0.5, "*": 0.25}), NOfM(2, 4)])
def test_every_pattern_prunes_what_it_says_and_the_smallest_first(pattern):
    assert isinstance(pattern, SparsityPattern)
    weights = {"0.weight": torch.randn(4, 2, 4, 2), "3.weight": torch.randn(8, 16), "5.weight": torch.randn(3, 8)}
    full = pattern.keep(weights, 1.0)
    half = pattern.keep(weights, 0.5)
    for name, keep in full.items():
        assert (half[name] | ~keep).all(), "what is kept in the end was kept before"
        assert keep.shape == weights[name].shape
    kept, total = sum(int(one.sum()) for one in full.values()), sum(one.numel() for one in full.values())
    if isinstance(pattern, PerLayer):
        assert [float(one.float().mean()) for one in full.values()] == [0.75, 0.5, 0.75]
    else:
        assert kept == total / 2
    if isinstance(pattern, NOfM):
        assert all((keep.reshape(-1, 4).sum(1) == 2).all() for keep in full.values())
    else:
        for name, keep in full.items():
            assert weights[name][keep].abs().min() >= weights[name][~keep].abs().max()
    assert all(one.all() for one in pattern.keep(weights, 0.0).values())


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=20), st.floats(0, 0.99))
def test_equal_magnitudes_are_kept_from_the_first_index_on(values, sparsity):
    weight = torch.tensor(values, dtype=torch.float32)
    keep = Global(sparsity).keep({"w": weight}, 1.0)["w"]
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    expected = set(order[: len(values) - round(sparsity * len(values))])
    assert {i for i, kept in enumerate(keep.tolist()) if kept} == expected


def test_layer_adaptive_scores_are_those_of_the_paper():
    weights = {"a": torch.tensor([3.0, 1.0, 2.0]), "b": torch.tensor([0.1, 0.2])}
    # a: 1/14, 4/13, 1 for 1, 2, 3; b: 1/5, 1 for 0.1, 0.2: the order of going is 1, 0.1, 2, then the largest of each.
    for gone, expected in enumerate(
        [[[1, 1, 1], [1, 1]], [[1, 0, 1], [1, 1]], [[1, 0, 1], [0, 1]], [[1, 0, 0], [0, 1]]]
    ):
        keep = LayerAdaptive(gone / 5).keep(weights, 1.0)
        assert [keep["a"].int().tolist(), keep["b"].int().tolist()] == expected


def test_a_schedule_is_cubic_and_ends():
    schedule = CubicSchedule(begin=0.2, end=0.6, updates=4)
    assert [schedule.update_at(p) for p in (0, 0.2, 0.31, 0.59, 0.6, 0.99)] == [0, 0, 1, 3, 4, 4]
    assert [schedule.share(u) for u in range(5)] == pytest.approx([0, 1 - 0.75**3, 1 - 0.5**3, 1 - 0.25**3, 1])
    assert AT_ONCE.share(AT_ONCE.update_at(0.0)) == 1
    assert [CubicSchedule(begin=0.5, end=0.5, updates=4).update_at(p) for p in (0, 0.4, 0.5)] == [0, 0, 4]


@pytest.mark.parametrize("regrow", [False, True])
def test_no_state_of_an_optimizer_revives_what_is_pruned(regrow):
    model = network()
    transform = Prune(Global(0.6), schedule=CubicSchedule(end=0.5, updates=3), regrow=regrow)
    transform.prepare(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    masks = []
    for step in range(12):
        transform.update(model, step / 12)
        optimizer.zero_grad()
        loss(model).backward()
        mask = model[3].parametrizations.weight[0]
        original = model[3].parametrizations.weight.original
        masks.append(mask.keep.clone())
        hidden = original.grad[~mask.keep]
        is_open = regrow and step < 6
        assert not hidden.numel() or bool(hidden.any()) == is_open, step
        optimizer.step()
        assert (model[3].weight[~mask.keep] == 0).all()
    assert all(torch.equal(one, masks[6]) for one in masks[6:])
    before = [layer.weight.clone() for layer in (model[0], model[3], model[5])]
    transform.convert(model)
    assert type(model[3]) is nn.Linear
    assert not any(isinstance(one, PruningMask) for one in model.modules())
    assert all(torch.equal(a, b.weight) for a, b in zip(before, (model[0], model[3], model[5]), strict=True))
    zeros = sum(int((one == 0).sum()) for one in before)
    assert zeros == round(0.6 * sum(one.numel() for one in before))


def test_pruning_at_once_is_the_end_of_the_schedule():
    model, other = network(), network()
    shares = prune_weights(model, LayerAdaptive(0.5))
    transform = Prune(LayerAdaptive(0.5), schedule=AT_ONCE)
    transform.prepare(other)
    transform.update(other, 0.0)
    transform.convert(other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert set(shares) == {"0.weight", "3.weight", "5.weight"}


def tied():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    model[1].weight = model[0].weight
    return model


def broken():
    model = network()
    model[3].weight.data[0, 0] = float("nan")
    return model


def prepared():
    model = network()
    Prune(Global(0.5)).prepare(model)
    return model


@pytest.mark.parametrize(
    ("model", "transform", "says"),
    [
        (network, lambda: Prune(Global(1.0)), r"`sparsity` must lie in \[0, 1\).*got 1.0"),
        (network, lambda: Prune(PerLayer({"3.weight": -0.1})), r"`sparsity` must lie in \[0, 1\).*got -0.1"),
        (network, lambda: Prune(PerLayer({"3.wieght": 0.5})), r"'3.wieght'.*fits none.*near it are 3.weight"),
        (network, lambda: Prune(Global(0.5), layers=("5.weigth",)), r"'5.weigth' fits none.*near it are.*5.weight"),
        (network, lambda: Prune(NOfM(2, 5)), "groups of 5 do not divide the 18 inputs.*`0.weight`"),
        (network, lambda: Prune(NOfM(4, 4)), "1 <= n < m; got n=4"),
        (tied, lambda: Prune(Global(0.5)), "is tied: one tensor is 0.weight and 1.weight"),
        (broken, lambda: Prune(Global(0.5)), "`3.weight` holds NaN"),
        (prepared, lambda: Prune(Global(0.5)), "under a transform of this kind already"),
        (nn.ReLU, lambda: Prune(Global(0.5)), "ReLU has no linear, convolutional or embedding layer"),
        (network, lambda: Prune(Global(0.5), schedule=CubicSchedule(begin=0.5, end=0.2)), "0 <= begin <= end <= 1"),
    ],
)
def test_bad_input_gets_a_sentence(model, transform, says):
    with pytest.raises(ValueError, match=says):
        transform().prepare(model())
