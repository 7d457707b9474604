"""Small models of every layer kind, each with a batch and a loss per example."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from transformers.pytorch_utils import Conv1D

from featherlight.objective import BatchObjective

D = 4
"""Width of all activations."""


def readout(out_BX: Tensor) -> Tensor:
    """A smooth, uneven loss for each example."""
    flat = out_BX.flatten(1)
    weights = torch.cos(torch.arange(flat.shape[1], dtype=flat.dtype, device=flat.device))
    return (torch.tanh(flat) * weights).sum(1) + 0.1 * flat.pow(2).mean(1) + 2


def batch_first_loss(model: nn.Module, batch: Any) -> Tensor:
    return readout(model(batch["x"]))


def second_axis_loss(model: nn.Module, batch: Any) -> Tensor:
    """For models that hold the examples along the second axis of what they take and return."""
    return readout(model(batch["x"].transpose(0, 1)).transpose(0, 1))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, the shape of its inputs and a loss; weights and inputs are drawn when it is built."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (D,)
    vocabulary: int | None = None
    loss: Callable[[nn.Module, Any], Tensor] = batch_first_loss

    def build(
        self, seed: int, *, rows: int = 5, dtype: torch.dtype = torch.float64, micro_batch: int | None = None
    ) -> tuple[nn.Module, BatchObjective]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.make().eval().to(dtype)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
            if self.vocabulary is None:
                x = torch.randn(rows, *self.shape, dtype=dtype)
            else:
                x = torch.randint(self.vocabulary, (rows, *self.shape))
        return model, BatchObjective(model, {"x": x}, self.loss, micro_batch=micro_batch)


class Apply(nn.Module):
    """Any function of modules and parameters by name, as a module."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class TiedLM(nn.Module):
    """An embedding whose table is the head's weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, D, padding_idx=0)
        self.mix = nn.Linear(D, D)
        self.head = nn.Linear(D, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.mix(self.table(ids))))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def _norm_with_statistics(norm: nn.Module) -> nn.Module:
    for name, buffer in norm.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + (0.5 if "var" in name else 0.0))
    return norm


def _with_frozen_weight(layer: nn.Linear) -> nn.Module:
    layer.weight.requires_grad_(False)
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(6, 3))


def _self_attention() -> nn.Module:
    attention = nn.MultiheadAttention(D, 2, batch_first=True)
    return Apply(lambda m, x: m.attention(x, x, x)[0], attention=attention)


CASES: dict[str, Case] = {
    "linear": Case(make=lambda: nn.Linear(D, 3)),
    "linear without bias": Case(make=lambda: nn.Linear(D, 3, bias=False)),
    "linear on sequences": Case(make=lambda: nn.Sequential(nn.Linear(D, 6), nn.GELU(), nn.Linear(6, 3)), shape=(3, D)),
    "linear, rows beyond one block": Case(make=lambda: nn.Sequential(nn.Linear(D, 131), nn.Linear(131, 2))),
    "linear by keywords": Case(
        make=lambda: Apply(lambda m, x: F.linear(bias=m.b, weight=m.w, input=x), w=parameter(3, D), b=parameter(3))
    ),
    "linear of a vector weight": Case(make=lambda: Apply(lambda m, x: F.linear(x, m.w)[:, None], w=parameter(D))),
    "conv1d": Case(make=lambda: nn.Conv1d(D, 6, 3, padding=1, groups=2), shape=(D, 7)),
    "conv1d same padding": Case(make=lambda: nn.Conv1d(D, 3, 3, padding="same", dilation=2), shape=(D, 7)),
    "conv2d": Case(make=lambda: nn.Conv2d(2, 3, 3), shape=(2, 5, 6)),
    "conv2d depthwise, strided": Case(
        make=lambda: nn.Conv2d(2, 4, 3, stride=(2, 1), padding=1, groups=2, bias=False), shape=(2, 5, 6)
    ),
    "conv2d circular, dilated": Case(
        make=lambda: nn.Conv2d(2, 3, 2, padding=1, padding_mode="circular", dilation=(1, 2)), shape=(2, 5, 6)
    ),
    "conv2d reflect": Case(make=lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), shape=(2, 5, 6)),
    "conv3d": Case(make=lambda: nn.Conv3d(2, 2, 2), shape=(2, 3, 3, 3)),
    "conv2d channels last": Case(
        make=lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 2)).to(memory_format=torch.channels_last),
        shape=(2, 5, 6),
    ),
    "conv2d over frames folded into rows": Case(
        make=lambda: Apply(
            lambda m, x: m.norm(m.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2]),
            conv=nn.Conv2d(2, 4, 3, groups=2),
            norm=nn.GroupNorm(2, 4),
        ),
        shape=(3, 2, 4, 4),
    ),
    "transposed convolution": Case(make=lambda: nn.ConvTranspose1d(D, 3, 2), shape=(D, 5)),
    "embedding": Case(make=lambda: nn.Embedding(200, D, padding_idx=3), shape=(6,), vocabulary=200),
    "embedding of one token": Case(make=lambda: nn.Embedding(5, D), shape=(), vocabulary=5),
    "embedding bag": Case(make=lambda: nn.EmbeddingBag(9, D), shape=(4,), vocabulary=9),
    "embedding table without a module": Case(
        make=lambda: Apply(lambda m, x: F.embedding(x, m.table), table=parameter(9, D)), shape=(4,), vocabulary=9
    ),
    "tied embedding and head": Case(make=TiedLM, shape=(6,), vocabulary=7),
    "layer norm": Case(make=lambda: nn.LayerNorm(D), shape=(3, D)),
    "layer norm of two dimensions": Case(make=lambda: nn.LayerNorm((3, D)), shape=(3, D)),
    "layer norm without bias": Case(make=lambda: nn.LayerNorm(D, bias=False)),
    "rms norm": Case(make=lambda: nn.RMSNorm(D), shape=(3, D)),
    "group norm": Case(make=lambda: nn.GroupNorm(2, D), shape=(D, 3, 2)),
    "batch norm in eval mode": Case(
        make=lambda: nn.Sequential(nn.Linear(D, D), _norm_with_statistics(nn.BatchNorm1d(D)), nn.Linear(D, 2))
    ),
    "batch norm 2d in eval mode": Case(make=lambda: _norm_with_statistics(nn.BatchNorm2d(2)), shape=(2, 3, 3)),
    "Conv1D of transformers": Case(make=lambda: Conv1D(3, D), shape=(3, D)),
    "addmm with factors": Case(
        make=lambda: Apply(lambda m, x: torch.addmm(m.b, x, m.w, beta=0.5, alpha=2), b=parameter(3), w=parameter(D, 3))
    ),
    "scale and shift": Case(
        make=lambda: Apply(
            lambda m, x: (m.a * x - m.b) / (m.c + x.square()) + m.s * x,
            a=parameter(D),
            b=parameter(D),
            c=nn.Parameter(torch.full((D,), 3.0)),
            s=parameter(),
        ),
        shape=(3, D),
    ),
    "shift with alpha, in place, reversed": Case(
        make=lambda: Apply(
            lambda m, x: (1 - m.a) * torch.add(x, m.b, alpha=0.5).add_(m.c),
            a=parameter(D),
            b=parameter(D),
            c=parameter(D),
        )
    ),
    "positions as a parameter": Case(make=lambda: Apply(lambda m, x: x + m.p, p=parameter(1, 3, D)), shape=(3, D)),
    "product from the right": Case(make=lambda: Apply(lambda m, x: x @ m.w, w=parameter(D, 3)), shape=(3, D)),
    "product from the left": Case(make=lambda: Apply(lambda m, x: m.w @ x, w=parameter(2, 3)), shape=(3, D)),
    "product with a vector": Case(make=lambda: Apply(lambda m, x: torch.matmul(x, m.w), w=parameter(D)), shape=(3, D)),
    "product with a stack": Case(make=lambda: Apply(lambda m, x: x @ m.w, w=parameter(2, D, 3)), shape=(2, 3, D)),
    "einsum": Case(
        make=lambda: Apply(lambda m, x: torch.einsum("btd,de->bte", x, m.w), w=parameter(D, 2)), shape=(3, D)
    ),
    "learned queries straight into layers": Case(
        make=lambda: Apply(
            lambda m, x: x.flatten(1).mean(1)[:, None, None] * m.norm(m.linear(m.queries)),
            queries=parameter(3, D),
            linear=nn.Linear(D, D),
            norm=nn.LayerNorm(D),
        )
    ),
    "norm of a parameter": Case(
        make=lambda: Apply(
            lambda m, x: F.layer_norm(m.q, (D,), m.w, m.b) + x, q=parameter(D), w=parameter(D), b=parameter(D)
        )
    ),
    "custom function": Case(make=lambda: Apply(lambda m, x: _Product.apply(x, m.w), w=parameter(D, 3))),
    "aten operator": Case(make=lambda: Apply(lambda m, x: torch.ops.aten.linear(x, m.w), w=parameter(3, D))),
    "weight norm": Case(make=lambda: parametrizations.weight_norm(nn.Linear(D, 3))),
    "views of a parameter": Case(
        make=lambda: Apply(lambda m, x: x @ m.w.T + m.w[1] + m.w.data.sum(0).to(x.dtype) * len(m.w), w=parameter(D, D))
    ),
    "LSTM": Case(make=lambda: Apply(lambda m, x: m.lstm(x)[0], lstm=nn.LSTM(D, 3, batch_first=True)), shape=(3, D)),
    "attention": Case(make=_self_attention, shape=(3, D)),
    "transformer layer": Case(
        make=lambda: nn.TransformerEncoderLayer(D, 2, dim_feedforward=6, batch_first=True), shape=(3, D)
    ),
    "bilinear": Case(make=lambda: Apply(lambda m, x: m.layer(x, x.flip(-1)), layer=nn.Bilinear(D, D, 3))),
    "sequence first": Case(
        make=lambda: nn.Sequential(nn.Linear(D, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)),
        shape=(3, D),
        loss=second_axis_loss,
    ),
    "sequence first, as many steps as rows": Case(
        make=lambda: nn.Sequential(nn.Linear(D, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)),
        shape=(5, D),
        loss=second_axis_loss,
    ),
    "sequence first embedding": Case(
        make=lambda: nn.Sequential(nn.Embedding(9, D), nn.Linear(D, 3)), shape=(3,), vocabulary=9, loss=second_axis_loss
    ),
    "one layer at two ranks": Case(
        make=lambda: Apply(lambda m, x: m.layer(x).sum(1) + m.layer(x[:, 0]), layer=nn.Linear(D, 3)), shape=(3, D)
    ),
    "one layer, with and without rows": Case(
        make=lambda: Apply(
            lambda m, x: m.layer(x) + m.layer(torch.ones(2, 1, D, dtype=x.dtype)).sum(0), layer=nn.Linear(D, 3)
        )
    ),
    "frozen weight, trained bias": Case(make=lambda: _with_frozen_weight(nn.Linear(D, 6))),
    "small image classifier": Case(
        make=lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, bias=False),
            _norm_with_statistics(nn.BatchNorm2d(4)),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, groups=4),
            nn.Flatten(),
            nn.Linear(4 * 4 * 4, 3),
        ),
        shape=(2, 6, 6),
    ),
}
