"""Shared weights: exact K-means, summed gradients, zeros that stay, codes chosen by bits, and what is refused."""

import copy

import pytest
import torch
from torch import nn

from featherlight.functional.entropy_model import EntropyModel
from featherlight.transforms import TransformStack
from featherlight.transforms.prune import Prune, prune_weights
from featherlight.transforms.prune_patterns import Global
from featherlight.transforms.prune_schedule import CubicSchedule
from featherlight.transforms.share_weights import SharedValues, ShareWeights
from featherlight.transforms.share_weights_codes import Reassigned, code_levels, levels_of, rate_distortion_codes
from featherlight.transforms.share_weights_kmeans import kmeans_1d, nearest_code
from featherlight.transforms.share_weights_rate import RatePenalty, estimated_bits, expected_bits_per_weight
from featherlight.transforms.share_weights_rounding import share_weights, squared_gradients


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))


class Squares:
    def __init__(self, model):
        self.model = model

    def value(self):
        x = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))
        return (self.model(x) - 1).square().sum(1).mean()

    def __call__(self):
        self.model.zero_grad()
        loss = self.value()
        loss.backward()
        return loss.detach()

    def values(self):
        return self.value()[None]


class One(Squares):
    def __init__(self, model, row):
        super().__init__(model)
        self.row = row

    def value(self):
        x = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))[self.row]
        return (self.model(x) - 1).square().sum()


def test_kmeans_steps_are_those_of_an_obvious_one():
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(200, generator=generator, dtype=torch.float64) ** 3
    importance = torch.rand(200, generator=generator, dtype=torch.float64)
    for weights in (None, importance):
        found = kmeans_1d(values, 6, importance_N=weights)
        centroids = torch.linspace(float(values.min()), float(values.max()), 6, dtype=torch.float64)
        mass = torch.ones_like(values) if weights is None else weights
        for _ in range(200):
            codes = (values[:, None] - centroids).abs().argmin(1)
            for k in range(6):
                if (codes == k).any():
                    centroids[k] = (mass * values)[codes == k].sum() / mass[codes == k].sum()
        torch.testing.assert_close(found, centroids)
        assert torch.equal(nearest_code(values, found), codes)
    few = torch.tensor([2.0, -1.0, 2.0, 2.0])
    assert kmeans_1d(few, 3).tolist() == [-1.0, 2.0, 2.0]


def test_centroids_get_the_sums_of_their_weights_gradients_and_codes_stay():
    model, plain = network(), network()
    transform = ShareWeights(5)
    transform.prepare(model)
    chain = model[0].parametrizations.weight
    with torch.no_grad():
        plain[0].weight.copy_(model[0].weight)
        plain[2].weight.copy_(model[2].weight)
    Squares(model)()
    Squares(plain)()
    expected = torch.stack([plain[0].weight.grad[chain[0].index == k].sum() for k in range(1, 6)])
    torch.testing.assert_close(chain[0].centroids.grad, expected)
    assert chain.original.grad is None
    assert not chain.original.requires_grad
    names = [name for name, one in model.named_parameters() if one.requires_grad]
    assert "0.parametrizations.weight.0.centroids" in names
    transform.convert(model)
    assert len(model[0].weight.unique()) <= 5
    assert model[0].weight.requires_grad
    assert not any(isinstance(one, SharedValues) for one in model.modules())


def train(model, stack, optimizer, steps):
    for step in steps:
        stack.update(model, step / 12)
        Squares(model)()
        optimizer.step()


def made():
    stack = TransformStack(
        [
            Prune(Global(0.5), schedule=CubicSchedule(end=0.5, updates=4)),
            ShareWeights(bits=2, assign=Reassigned(rate=0.01, updates=6, end=0.75), codebook=torch.bfloat16),
        ]
    )
    model = network()
    stack.prepare(model)
    return model, stack, torch.optim.AdamW(model.parameters(), lr=0.02)


def test_pruned_and_shared_on_one_model_and_taken_up_half_way_to_the_same_bits():
    whole, stack, optimizer = made()
    train(whole, stack, optimizer, range(12))
    first, parts, begun = made()
    train(first, parts, begun, range(5))
    model, parts, optimizer = made()
    model.load_state_dict(first.state_dict())
    optimizer.load_state_dict(begun.state_dict())
    train(model, parts, optimizer, range(5, 12))
    stack.convert(whole)
    parts.convert(model)
    for one, other in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
    weights = torch.cat([whole[0].weight.flatten(), whole[2].weight.flatten()])
    assert (weights == 0).float().mean() >= 0.5
    for layer in (whole[0], whole[2]):
        values = layer.weight[layer.weight != 0].unique()
        assert 0 < len(values) <= 4
        assert torch.equal(values, values.bfloat16().float())


def test_converting_in_the_wrong_order_is_refused():
    model, stack, _ = made()
    with pytest.raises(ValueError, match="SharedValues after this transform, which must be converted first"):
        stack.transforms[0].convert(model)


def test_codes_by_rate_and_distortion_cost_no_more_than_the_nearest():
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(40, 30, generator=generator) ** 3
    centroids = kmeans_1d(weight.flatten(), 8)
    importance = torch.rand(40, 30, generator=generator)

    def cost(index, bit_cost):
        table = torch.cat([torch.zeros(1), centroids])
        levels = levels_of(index, centroids)
        bits = EntropyModel.fit(levels).bits(levels).sum()
        return float((importance * (weight - table[index]).square()).sum() + bit_cost * bits), float(bits)

    nearest = rate_distortion_codes(weight, centroids, importance=importance, bit_cost=0.0)
    for bit_cost in (0.01, 0.1):
        chosen = rate_distortion_codes(weight, centroids, importance=importance, bit_cost=bit_cost)
        assert cost(chosen, bit_cost)[0] < cost(nearest, bit_cost)[0]
        assert cost(chosen, bit_cost)[1] < cost(nearest, bit_cost)[1]
    assert code_levels(torch.tensor([0.5, -1.0, 2.0, -0.1])).tolist() == [0, 1, -2, 2, -1]


def test_a_price_on_bits_draws_weights_to_cheaper_codes():
    bits = []
    for strength in (0.0, 30.0):
        model = network()
        prune_weights(model, Global(0.5))
        transform = ShareWeights(6, assign=Reassigned(rate=0.0, updates=30, end=1.0))
        transform.prepare(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(30):
            transform.update(model, step / 30)
            RatePenalty(Squares(model), model, strength, every=2, step=step)()
            optimizer.step()
        bits.append(sum(estimated_bits(model).values()))
        assert (model[0].weight == 0).sum() + (model[2].weight == 0).sum() >= 54
    assert bits[1] < 0.97 * bits[0]
    assert 0 < expected_bits_per_weight(model).item() < bits[0] / 36
    with pytest.raises(ValueError, match="nothing in the model shares"):
        expected_bits_per_weight(network())
    with pytest.raises(ValueError, match="`strength`"):
        RatePenalty(Squares(model), model, -1.0)


def test_at_once_what_matters_is_kept_better_and_a_price_on_bits_saves_some():
    model = network()
    model[0].weight.data[0] = 0
    found = squared_gradients(model, [One(model, row) for row in range(7)])
    gradients = [torch.autograd.grad(One(model, row).value(), model[2].weight)[0] for row in range(7)]
    torch.testing.assert_close(found["2.weight"], torch.stack(gradients).square().mean(0))
    assert set(found) == {"0.weight", "2.weight"}
    assert all(one.grad is None for one in model.parameters())
    importance = {
        name: torch.rand(one.shape, generator=torch.Generator().manual_seed(2)) ** 4 for name, one in found.items()
    }
    errors, sizes = {}, {}
    for name, settings in {"plain": {}, "importance": {"importance": importance}, "rate": {"rate": 0.3}}.items():
        shared = copy.deepcopy(model)
        share_weights(shared, 3, **settings)
        assert (shared[0].weight[0] == 0).all()
        layers = (shared[0].weight, shared[2].weight)
        assert all(len(weight[weight != 0].unique()) <= 3 for weight in layers)
        pairs = zip(importance.values(), layers, (model[0].weight, model[2].weight), strict=True)
        errors[name] = sum((one * (a - b).square()).sum().item() for one, a, b in pairs)
        counts = [weight.detach().unique(return_counts=True)[1] for weight in layers]
        sizes[name] = sum(float(-(one * (one / one.sum()).log2()).sum()) for one in counts)
    assert errors["importance"] < errors["plain"]
    assert sizes["rate"] < sizes["plain"]
    with pytest.raises(ValueError, match=r"the importance of `2.weight`.*in the shape"):
        share_weights(network(), 3, importance={"2.weight": -torch.ones(3, 12)})
    with pytest.raises(ValueError, match="`objectives` is empty"):
        squared_gradients(network(), [])


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        (lambda: ShareWeights(), "give `num_codes` or `bits`"),
        (lambda: ShareWeights(0), "at least 1 code"),
        (lambda: ShareWeights(bits=0), "at least 1 code and `bits` are at least 1"),
        (lambda: ShareWeights(40), "`2.weight` has 36 weights, fewer than the 40 codes"),
        (lambda: ShareWeights({"9.*": 4}), "fits one of the patterns"),
        (lambda: Reassigned(rate=-1), "`rate`"),
        (lambda: Reassigned(end=0.0), "`updates` must be at least 1 and `end`"),
    ],
)
def test_bad_input_gets_a_sentence(transform, says):
    with pytest.raises(ValueError, match=says):
        transform().prepare(network())


def test_a_model_is_prepared_once():
    model = network()
    ShareWeights(4).prepare(model)
    with pytest.raises(ValueError, match="under a transform of this kind already"):
        ShareWeights(4).prepare(model)
    with pytest.raises(ValueError, match="1 and the 3 weights"):
        kmeans_1d(torch.zeros(3), 4)
