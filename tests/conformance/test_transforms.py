"""One contract for all transforms: a trace-free end, a refusal of a second start, and a half-way save that is enough."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from featherlight import transforms
from featherlight.transforms import (
    CubicSchedule,
    Global,
    LayerAdaptive,
    ModelTransform,
    NOfM,
    PerLayer,
    Prune,
    Reassigned,
    ShareWeights,
    TransformStack,
)
from featherlight.transforms.quantize import FakeQuantization

STEPS = 12
SCHEDULE = CubicSchedule(end=0.6, updates=4)
X = torch.randn(9, 8, generator=torch.Generator().manual_seed(1))

TABLE = {
    "prune, global": lambda: Prune(Global(0.6), schedule=SCHEDULE),
    "prune, by layers": lambda: Prune(
        LayerAdaptive(0.6), schedule=SCHEDULE, layers=("*.weight", "0.bias"), regrow=False
    ),
    "prune, per layer": lambda: Prune(PerLayer({"0.*": 0.5}), schedule=SCHEDULE),
    "prune, 2 of 4": lambda: Prune(NOfM(2, 4), schedule=SCHEDULE),
    "share, fixed codes": lambda: ShareWeights({"*.bias": 2, "*": 5}, layers=("*.weight", "*.bias")),
    "share, codes by rate": lambda: ShareWeights(
        bits=2, assign=Reassigned(rate=0.05, updates=5), codebook=torch.float16
    ),
    "fake quantization": lambda: FakeQuantization(example=X[:2]),
    "stack": lambda: TransformStack([TABLE["prune, 2 of 4"](), TABLE["share, codes by rate"]()]),
}
"""Every transform that is public, in each of its ways."""


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))


def prepared(name):
    model, transform = network(), TABLE[name]()
    transform.prepare(model)
    return model, transform, torch.optim.AdamW(model.parameters(), lr=0.01)


def train(model, transform, optimizer, steps):
    for step in steps:
        transform.update(model, step / STEPS)
        optimizer.zero_grad()
        (model(X) - 1).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", TABLE)
def test_it_leaves_no_trace_and_what_it_computed_last(name):
    model, transform, optimizer = prepared(name)
    assert isinstance(transform, ModelTransform)
    train(model, transform, optimizer, range(STEPS))
    model.eval()
    layers = [model[0].weight.detach().clone(), model[2].weight.detach().clone()]
    transform.convert(model)
    plain = network()
    assert list(model.state_dict()) == list(plain.state_dict()), "names and their order, which optimizers go by"
    assert [(n, p.requires_grad) for n, p in model.named_parameters()] == [
        (n, True) for n, _ in plain.named_parameters()
    ]
    assert [type(one) for one in model.modules()] == [type(one) for one in plain.modules()]
    assert not any(parametrize.is_parametrized(one) for one in model.modules())
    if name != "fake quantization":  # whose weights are on their grids only then
        assert torch.equal(model[0].weight, layers[0])
        assert torch.equal(model[2].weight, layers[1])
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(X), model(X))


@pytest.mark.parametrize("name", TABLE)
def test_a_save_half_way_is_enough_for_the_same_bits(name):
    whole, transform, optimizer = prepared(name)
    train(whole, transform, optimizer, range(STEPS))
    first, half, begun = prepared(name)
    train(first, half, begun, range(5))
    model, again, taken_up = prepared(name)
    model.load_state_dict(first.state_dict())
    taken_up.load_state_dict(begun.state_dict())
    train(model, again, taken_up, range(5, STEPS))
    transform.convert(whole)
    again.convert(model)
    for one, other in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", TABLE)
def test_a_second_start_is_refused_with_a_sentence(name):
    model, _, _ = prepared(name)
    with pytest.raises(ValueError, match=r"[Cc]onvert|once") as refused:
        TABLE[name]().prepare(model)
    assert str(refused.value).endswith(".")


def test_every_public_transform_is_in_the_table():
    rows = {type(make()) for make in TABLE.values()}
    public = [getattr(transforms, name) for name in transforms.__all__]
    named = {one for one in public if isinstance(one, type) and {"prepare", "update", "convert"} <= set(vars(one))}
    assert named - {ModelTransform} <= rows
