"""Layers that compute as if numbers had few bits: against products of rounded numbers, and gone without a trace."""

import copy

import pytest
import torch
from torch import nn

from featherlight.functional import FORMATS, round_to
from featherlight.precision.step_tensors import step_tensors
from featherlight.recipes.precision.emulation import EmulatedFormats
from featherlight.recipes.precision.kernels import Float8Kernels

E4M3, E5M2 = FORMATS["scaled_e4m3"], FORMATS["scaled_e5m2"]


def test_products_are_of_rounded_numbers_in_all_three_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(6, width, generator=generator) for width in (5, 3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Linear(5, 3)
    model = nn.Sequential(layer)
    weight, bias = layer.weight, layer.bias
    emulated = EmulatedFormats(weights=E4M3, activations=E4M3, gradients=E5M2)
    emulated.prepare(model)
    x.requires_grad_()
    out = model(x)
    out.backward(gradient)
    x_BI, w_OI, g_BO = (round_to(one.detach(), f) for one, f in ((x, E4M3), (weight, E4M3), (gradient, E5M2)))
    torch.testing.assert_close(out.detach(), x_BI @ w_OI.T + bias.detach())
    torch.testing.assert_close(x.grad, g_BO @ w_OI)
    torch.testing.assert_close(weight.grad, g_BO.T @ x_BI)
    torch.testing.assert_close(bias.grad, gradient.sum(0))
    emulated.convert(model)
    assert layer.weight is weight
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks


def test_convolutions_of_any_kind_are_rounded_along_their_channels() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.Conv1d(8, 8, 1, bias=False))
    plain = copy.deepcopy(model)
    emulated = EmulatedFormats(activations=FORMATS["mxfp4"], gradients=FORMATS["nvfp4"])
    emulated.prepare(model[:1])
    x = torch.randn(2, 4, 5, 5)
    expected = plain[0](round_to(x, FORMATS["mxfp4"], axis=1))
    found = model[0](x)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert model[0].bias.grad is not None
    torch.testing.assert_close(model[0].bias.grad, torch.full((8,), 18.0))


def test_the_tensors_of_a_step_are_those_of_the_layers() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    x = torch.randn(5, 3)
    found = step_tensors(model, lambda: model(x).sum().backward()).by_kind
    assert {kind: list(of) for kind, of in found.items()} == {kind: ["0", "2"] for kind in found}
    assert torch.equal(found["activations"]["0"], x.flatten())
    assert torch.equal(found["gradients"]["2"], torch.ones(5))
    assert torch.equal(found["weight gradients"]["2"], model[2].weight.grad.flatten())
    assert not model[0]._forward_hooks


def test_what_cannot_be_emulated_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no Linear and no convolution layer"):
        EmulatedFormats(weights=E4M3).prepare(nn.ReLU())
    monkeypatch.setattr("featherlight.recipes.precision.kernels.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"package torchao, which is not installed.*the format fp8"):
        Float8Kernels()
