"""Channels taken out for good, and what is refused."""

import importlib.util

import pytest
import torch
from torch import nn

from featherlight.nn.models import Projection, ResNet
from featherlight.transforms.prune import prune_weights
from featherlight.transforms.prune_channels import prune_channels
from featherlight.transforms.prune_patterns import NOfM
from featherlight.transforms.prune_sparse_kernels import use_sparse_kernels


def small():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))


def test_a_residual_network_gets_narrower_and_still_runs_and_trains():
    pytest.importorskip("torch_pruning")
    model = ResNet(10, widths=(8, 16, 16), blocks=(1, 1, 1), shortcut=Projection())
    model.head.requires_grad_(False)
    images = torch.rand(2, 3, 32, 32)
    found = prune_channels(model, images[:1], 0.5, keep=("head",))
    assert model(images).shape == (2, 10)
    assert found.parameters[1] < 0.5 * found.parameters[0]
    assert found.widths["head"] == (10, 10)
    assert all(after <= before for before, after in found.widths.values())
    assert sum(after for _, after in found.widths.values()) < sum(before for before, _ in found.widths.values())
    assert model.training
    assert not model.head.weight.requires_grad
    assert all(one.grad is None for one in model.parameters())
    model(images).sum().backward()


def test_a_model_that_cannot_be_followed_is_named():
    pytest.importorskip("torch_pruning")
    with pytest.raises(ValueError, match=r"ResNet cannot be pruned by channels \(IndexError"):
        prune_channels(ResNet(10, widths=(8, 16, 16), blocks=(1, 1, 1)), torch.rand(1, 3, 32, 32), 0.5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sparsity": 1.0}, r"`sparsity` must lie in \[0, 1\)"),
        ({"sparsity": 0.5, "keep": ("4",)}, "`keep` names '4', and the layers are 0, 3"),
        ({"sparsity": 0.5, "keep": ("0", "3")}, "no layer to prune: of 2"),
    ],
)
def test_bad_input_gets_a_sentence(arguments, says):
    pytest.importorskip("torch_pruning")
    with pytest.raises(ValueError, match=says):
        prune_channels(small(), torch.rand(1, 1, 8, 8), **arguments)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'featherlight\[channels\]'"):
        prune_channels(small(), torch.rand(1, 1, 8, 8), 0.5)


def test_sparse_kernels_are_refused_where_there_are_none():
    model = nn.Linear(64, 64)
    prune_weights(model, NOfM(2, 4))
    with pytest.raises(ValueError, match=r"on cpu.*compute capability 8.0"):
        use_sparse_kernels(model)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with sparse matrix units")
def test_sparse_kernels_compute_the_same():
    model = nn.Linear(128, 64).half().cuda()
    prune_weights(model, NOfM(2, 4))
    x = torch.randn(32, 128, device="cuda", dtype=torch.float16)
    before = model(x)
    assert use_sparse_kernels(model) == ("weight",)
    torch.testing.assert_close(model(x), before, rtol=1e-2, atol=1e-2)
