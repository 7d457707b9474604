"""Units that do nothing: the function stays, the tensors get smaller, constants move on into biases."""

import pytest
import torch
from torch import nn

from featherlight.nn.models import CaffeLeNet
from featherlight.transforms.dead_units import remove_dead_units, zero_dead_units


def network(padding=0, bias=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 5, 3),
            nn.BatchNorm2d(5),
            nn.Tanh(),
            nn.Conv2d(5, 6, 3, padding=padding),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(6 * (2 + padding) ** 2, 8),
            nn.ReLU(),
            nn.Linear(8, 3, bias=bias),
        ).double()
        torch.manual_seed(1)
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
    return model.eval()


def kill(model):
    """Units without weights in, and units without weights out, of each layer."""
    with torch.no_grad():
        for layer in (model[0], model[3], model[7]):
            layer.weight[1] = 0
        model[7].bias[1] = 1
        model[3].weight[:, 3] = 0
        width = model[7].weight.shape[1] // 6
        model[7].weight[:, 4 * width : 5 * width] = 0
        model[9].weight[:, 6] = 0


@pytest.mark.parametrize("padding", [0, 1])
def test_the_function_stays_and_tensors_get_smaller(padding):
    images = torch.randn(7, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = network(padding)
    kill(model)
    before = model(images).detach()
    zeroed = network(padding, bias=True)
    zeroed[9].bias.data.zero_()
    kill(zeroed)
    found = zero_dead_units(zeroed, images[:1])
    torch.testing.assert_close(zeroed(images), before, rtol=1e-12, atol=1e-12)
    assert remove_dead_units(model, images[:1]).units == found.units
    torch.testing.assert_close(model(images), before, rtol=1e-12, atol=1e-12)
    # With a margin the constant channel 1 of the first layer cannot become a bias: at the border it is not constant.
    assert found.units == {"0": (1, 3) if padding == 0 else (3,), "3": (1, 4), "7": (1, 6)}
    assert found.count == sum(map(len, found.units.values()))
    channels = 5 - len(found.units["0"])
    assert model[0].weight.shape[0] == model[1].num_features == len(model[1].running_var) == channels
    assert model[3].weight.shape == (4, channels, 3, 3)
    assert (model[7].in_features, model[7].out_features, model[9].in_features) == (4 * (2 + padding) ** 2, 6, 6)
    assert (zeroed[9].bias != 0).any()
    torch.testing.assert_close(model[9].bias, zeroed[9].bias)
    bare = network(padding)
    kill(bare)
    assert zero_dead_units(bare, images[:1]).units["7"] == (6,), "where there is no bias, none is made"


def test_what_dies_with_another_dies_too_and_one_unit_stays():
    model = CaffeLeNet().eval()
    with torch.no_grad():
        model.head.weight.zero_()
    images = torch.rand(2, 1, 28, 28)
    found = remove_dead_units(model, images)
    assert {name: len(units) for name, units in found.units.items()} == {
        "features.0": 20,
        "features.3": 50,
        "features.7": 500,
    }
    torch.testing.assert_close(model(images), model.head.bias.expand(2, 10))
    assert sum(one.numel() for one in model.parameters()) < 100


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        y = self.first(x).relu()
        return self.second(y) + y


def test_units_that_go_elsewhere_too_stay():
    model = Residual()
    with torch.no_grad():
        model.second.weight.zero_()
    assert remove_dead_units(model, torch.rand(2, 3)).units == {}
    with pytest.raises(ValueError, match="Residual cannot be traced with inputs of the shapes"):
        remove_dead_units(model, torch.rand(2, 4))


def test_a_model_in_training_mode_with_operations_in_place_keeps_its_function_and_statistics():
    model = network()
    model[4], model[8] = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
    kill(model)
    with torch.no_grad():
        model[3].bias.fill_(-1), model[7].bias.fill_(-1)
        model[3].weight[2] = 0
    images = torch.randn(7, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before = model(images).detach()
    statistics = model[1].running_mean.clone()
    found = zero_dead_units(model.train(), images[:1])
    assert model.training
    assert found.units["0"] == (1, 3)
    assert torch.equal(model[1].running_mean, statistics)
    torch.testing.assert_close(model.eval()(images), before, rtol=1e-12, atol=1e-12)
    free = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
    with torch.no_grad():
        free[0].weight[1] = 0
    assert zero_dead_units(free, torch.rand(2, 3)).units == {}
