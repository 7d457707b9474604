"""The small convolutional network: shapes, statistics, and what it is built again from."""

import json

import pytest
import torch
from torch import nn

from featherlight.nn.models import SmallConvNet


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("norm_groups", [None, 2])
@pytest.mark.parametrize("size", [(1, 1), (9, 7), (28, 28)])
def test_images_of_any_size_are_taken_and_halved_upwards(size, norm_groups, pool) -> None:
    model = SmallConvNet(in_channels=2, num_classes=3, channels=(4, 6), norm_groups=norm_groups, pool=pool).eval()
    x = torch.rand(5, 2, *size)
    assert model(x).shape == (5, 3)
    assert model.features(x).shape == (5, 6, *(-(-side // 4) for side in size))


def test_settings_and_weights_are_the_network() -> None:
    model = SmallConvNet(in_channels=2, num_classes=3, norm_groups=4, pool=False, mean=(0.1, 0.2), std=(0.3, 0.4))
    again = SmallConvNet(**json.loads(json.dumps(model.settings)))
    again.load_state_dict(model.state_dict())
    x = torch.rand(2, 2, 8, 8)
    assert torch.equal(model(x), again(x))


def test_statistics_are_taken_off_before_the_first_convolution() -> None:
    mean, std = (0.1, 0.2), (0.3, 0.4)
    model = SmallConvNet(in_channels=2, num_classes=3, norm_groups=4, mean=mean, std=std)
    plain = SmallConvNet(in_channels=2, num_classes=3, norm_groups=4)
    plain.load_state_dict(model.state_dict())
    x = torch.rand(2, 2, 8, 8)
    normal = torch.stack([(x[:, i] - mean[i]) / std[i] for i in range(2)], 1)
    assert torch.allclose(model(x), plain(normal), atol=1e-6)


@pytest.mark.parametrize("pool", [True, False])
def test_each_block_has_a_convolution(pool: bool) -> None:
    model = SmallConvNet(in_channels=1, num_classes=2, channels=(4, 4, 4), pool=pool)
    assert [sum(isinstance(m, nn.Conv2d) for m in block) for block in model.blocks] == [1, 1, 1]
    assert [m for block in model.blocks for m in block] == list(model.features)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"norm_groups": 3}, r"`norm_groups` must divide each number of channels.* got 3 for \[4, 6\]"),
        ({"norm_groups": 0}, "`norm_groups` must divide"),
        ({"mean": (0.5,), "std": (0.5,)}, "must have a number for each of 2 channels"),
        ({"mean": (0.5, 0.5)}, "must have a number for each of 2 channels"),
        ({"mean": (0.5, 0.5), "std": (0.5, 0.0)}, "`std` above 0"),
    ],
)
def test_settings_that_will_not_do_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SmallConvNet(in_channels=2, num_classes=3, channels=(4, 6), **settings)
