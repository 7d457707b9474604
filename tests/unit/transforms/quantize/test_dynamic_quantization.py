"""Dynamic quantization of recurrent and attending models: right where nothing is rounded, near where it is."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from featherlight.nn.models import BlockShape, LearnedPositions, RecurrentClassifier, RecurrentShape, SelfAttention
from featherlight.transforms.quantize import DynamicQuantization
from featherlight.transforms.quantize.dynamic import lstm


def same(x):
    return x


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_layers_of_lstm_without_rounding_are_torchs(bias, batch_first):
    layers = seeded(lambda: nn.LSTM(3, 4, 2, bias=bias, bidirectional=True, batch_first=batch_first).double())
    x = torch.randn(5, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    count = 5 if batch_first else 6
    start = [torch.randn(4, count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in (2, 3)]
    expected, (states, cells) = layers(x, tuple(start))
    shape = (bias, 2, 0.0, True, True, batch_first)
    found = lstm(x, start, layers._flat_weights, *shape, weight=same, value=same)
    for one, other in zip(found, (expected, states, cells), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def attending():
    shape = BlockShape(width=12, num_heads=3)
    return SelfAttention(shape, LearnedPositions(), 9)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_near_and_nearer_with_more_bits(causal):
    model, x = seeded(attending), torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(4))
    plain = model(x, causal=causal)
    errors = []
    for bits in (4, 8):
        transform = DynamicQuantization(weight_bits=bits)
        transform.prepare(model)
        rounded = model(x, causal=causal)
        rounded.square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())
        errors.append(float((rounded - plain).detach().abs().max()))
        del model.__dict__["forward"]
    assert 0 < errors[1] < 0.02
    assert errors[1] < errors[0]


def test_a_recurrent_classifier_is_rounded_and_comes_back_plain():
    model = seeded(lambda: RecurrentClassifier(3, num_features=2, shape=RecurrentShape(width=8))).eval()
    x = torch.randn(4, 7, 2, generator=torch.Generator().manual_seed(5))
    plain, keys = model(x).detach(), list(model.state_dict())
    transform = DynamicQuantization()
    transform.prepare(model)
    with pytest.raises(ValueError, match="has a forward of its own already"):
        transform.prepare(model)
    rounded = model(x).detach()
    assert 0 < float((rounded - plain).abs().max()) < 0.05
    transform.convert(model)
    assert list(model.state_dict()) == keys
    assert float((model(x) - plain).detach().abs().max()) < 0.05
    for layer in (module for module in model.modules() if isinstance(module, nn.LSTM)):
        units = layer.weight_hh_l0.detach() * 127 / layer.weight_hh_l0.detach().abs().amax(1, keepdim=True)
        torch.testing.assert_close(units, units.round(), rtol=0, atol=1e-3)


def test_cells_convolutions_and_products_are_rounded_and_others_refused():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.conv = nn.LSTMCell(3, 4), nn.Conv1d(4, 2, 1)

        def forward(self, x):
            state, _ = self.cell(x)
            return self.conv(state[:, :, None]).squeeze(2) @ torch.eye(2) + functional.relu(x[:, :2])

    model, x = seeded(Mixed), torch.randn(5, 3, generator=torch.Generator().manual_seed(6))
    plain = model(x).detach()
    DynamicQuantization().prepare(model)
    assert 0 < float((model(x) - plain).detach().abs().max()) < 0.05
    with pytest.raises(ValueError, match="no linear layer, convolution or LSTM"):
        DynamicQuantization().prepare(nn.ReLU())
    with pytest.raises(ValueError, match="the layer `0` is a MultiheadAttention"):
        DynamicQuantization().prepare(nn.Sequential(nn.MultiheadAttention(4, 2)))
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(4, 2, 3), [4, 3])
    layers = nn.LSTM(3, 4)
    DynamicQuantization().prepare(layers)
    with pytest.raises(ValueError, match="packed sequences have no dynamic quantization"):
        layers(packed)
