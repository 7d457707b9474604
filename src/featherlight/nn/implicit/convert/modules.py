"""How torch's own layers are converted: one rule a kind."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd

from featherlight.nn.implicit.activations import ELU, RELU, SIGMOID, TANH, Activation, leaky_relu
from featherlight.nn.implicit.convert.signal import Signal, joined
from featherlight.nn.implicit.convert.sparse import sparse
from featherlight.nn.implicit.convert.windows import adaptive_line, averages, convolution, crossed, line, maxima

Rule = Callable[..., Any]
"""From a module and the signals it is called with to the signal it returns."""


def _linear(module: nn.Linear, x: Signal) -> Signal:
    if x.shape[-1] != module.in_features:
        raise ValueError(f"it takes {module.in_features} features and gets shape {tuple(x.shape)}.")
    weight, places = module.weight.detach(), x.shape[:-1].numel()
    place = torch.arange(places, device=weight.device)[:, None, None]
    row = place * module.out_features + torch.arange(module.out_features, device=weight.device)[:, None]
    column = place * module.in_features + torch.arange(module.in_features, device=weight.device)
    index = torch.stack([each.reshape(-1) for each in torch.broadcast_tensors(row, column)])
    size = (places * module.out_features, places * module.in_features)
    matrix = sparse(index, weight.expand(places, -1, -1).reshape(-1), size)
    bias = None if module.bias is None else module.bias.detach().repeat(places)
    return x.affine(matrix, bias, shape=torch.Size((*x.shape[:-1], module.out_features)))


def _convolution(module: _ConvNd, x: Signal) -> Signal:
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    channels, sizes = _channels(module, x, module.in_channels, len(kernel))
    if isinstance(module.padding, str):
        total = [d * (k - 1) if module.padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        padding = [(t // 2, t - t // 2) for t in total]
    else:
        padding = [(int(p), int(p)) for p in module.padding]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    out = [
        (n + sum(p) - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(sizes, padding, dilation, kernel, stride, strict=True)
    ]
    lines = [
        line(n, o, kernel=k, stride=s, dilation=d, padding=p, mode=mode)
        for n, o, k, s, d, p in zip(sizes, out, kernel, stride, dilation, padding, strict=True)
    ]
    windows = crossed(lines, sizes)
    matrix = convolution(module.weight.detach().flatten(2), windows, channels, torch.Size(sizes).numel())
    shape = torch.Size((module.out_channels, *out))
    return x.affine(matrix, _by_channel(module.bias, len(windows)), shape=shape)


def _transposed_convolution(module: _ConvTransposeNd, x: Signal) -> Signal:
    """The transpose of the convolution from its outputs to its inputs."""
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    channels, sizes = _channels(module, x, module.in_channels, len(kernel))
    padding = [int(p) for p in module.padding]
    out = [
        (n - 1) * s - 2 * p + d * (k - 1) + extra + 1
        for n, s, p, d, k, extra in zip(sizes, stride, padding, dilation, kernel, module.output_padding, strict=True)
    ]
    lines = [
        line(o, n, kernel=k, stride=s, dilation=d, padding=(p, p), mode="constant")
        for o, n, k, s, d, p in zip(out, sizes, kernel, stride, dilation, padding, strict=True)
    ]
    positions = torch.Size(out).numel()
    back = convolution(module.weight.detach().flatten(2), crossed(lines, out), module.out_channels, positions)
    assert back.shape == (channels * torch.Size(sizes).numel(), module.out_channels * positions)
    shape = torch.Size((module.out_channels, *out))
    return x.affine(
        sparse(back.indices().flip(0), back.values(), (back.shape[1], back.shape[0])),
        _by_channel(module.bias, positions),
        shape=shape,
    )


def _average(module: Any, x: Signal) -> Signal:
    windows, channels, sizes, out = _windows(module, x)
    ones = torch.ones(1, 1, *sizes, dtype=x.bias.dtype, device=x.bias.device)
    weights = module(ones).reshape(-1) / (windows >= 0).sum(1).to(x.bias)
    size = torch.Size(sizes).numel()
    return x.affine(averages(windows, weights, channels, size), shape=torch.Size((channels, *out)))


def _maximum(module: Any, x: Signal) -> Signal:
    if module.return_indices:
        raise ValueError("it returns indices too, which are no continuous function; set `return_indices=False`.")
    windows, channels, sizes, out = _windows(module, x)
    flat = maxima(x, windows, channels, torch.Size(sizes).numel())
    return Signal(flat.matrix, flat.bias, torch.Size((channels, *out)), flat.recording)


def _windows(module: Any, x: Signal) -> tuple[Tensor, int, list[int], list[int]]:
    """Of a pooling layer: windows, channels, sizes before and after."""
    adaptive = isinstance(module, _ADAPTIVE)
    dims = next(n for n in (1, 2, 3) if type(module).__name__.endswith(f"{n}d"))
    channels, sizes = _channels(module, x, None, dims)
    out = list(module(torch.empty(1, 1, *sizes, device="meta")).shape[2:])
    if adaptive:
        return crossed([adaptive_line(n, o) for n, o in zip(sizes, out, strict=True)], sizes), channels, sizes, out

    def each(value: Any) -> list[int]:
        return list(value) if isinstance(value, tuple | list) else [int(value)] * dims

    dilation = getattr(module, "dilation", 1)
    parts = zip(
        sizes, out, each(module.kernel_size), each(module.stride), each(dilation), each(module.padding), strict=True
    )
    lines = [line(n, o, kernel=k, stride=s, dilation=d, padding=(p, p), mode="constant") for n, o, k, s, d, p in parts]
    return crossed(lines, sizes), channels, sizes, out


def _norm(module: _NormBase, x: Signal) -> Signal:
    mean, variance = module.running_mean, module.running_var
    if module.training or mean is None or variance is None:
        raise ValueError(
            "it divides by statistics of the batch, which is not affine; put the model into eval mode, with running statistics."
        )
    scale = (variance + module.eps).rsqrt()
    scale = scale if module.weight is None else scale * module.weight.detach()
    shift = -mean * scale if module.bias is None else module.bias.detach() - mean * scale
    channels = (len(scale), *[1] * (len(x.shape) - 1))
    return x.scaled(scale.reshape(channels), shift.reshape(channels))


def _dropout(module: _DropoutNd, x: Signal) -> Signal:
    if module.training and module.p > 0:
        raise ValueError("it draws at each call while training; put the model into eval mode.")
    return x


def _clamped(module: nn.Hardtanh, x: Signal) -> Signal:
    """By low + relu(x - low) - relu(x - high)."""
    low, high = float(module.min_val), float(module.max_val)
    above, beyond = (x.scaled(1.0, -end).activated(RELU) for end in (low, high))
    return above.plus(beyond, -1.0).scaled(1.0, low)


def _prelu(module: nn.PReLU, x: Signal) -> Signal:
    """By relu(x) - slope relu(-x)."""
    slope = module.weight.detach()
    slope = slope if len(slope) == 1 else slope.reshape(-1, *[1] * (len(x.shape) - 1))
    return x.activated(RELU).plus(x.scaled(-1.0).activated(RELU).scaled(-slope))


def _leaky(module: nn.LeakyReLU, x: Signal) -> Signal:
    return x.activated(leaky_relu(module.negative_slope))


def _elu(module: nn.ELU, x: Signal) -> Signal:
    if module.alpha != 1:
        raise ValueError(f"only alpha = 1 has slopes that its values determine in [0, 1]; got {module.alpha}.")
    return x.activated(ELU)


def _activated(activation: Activation) -> Rule:
    return lambda module, x: x.activated(activation)


def _rearranged(module: nn.Module, x: Signal) -> Signal:
    return x.rearranged(module)


def _cell(module: nn.RNNCell, x: Signal, h: Signal | None = None) -> Signal:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return _step([getattr(module, name, None) for name in names], module.nonlinearity, x, h)


def _recurrent(module: nn.RNN, x: Signal) -> tuple[Signal, None]:
    if not module.batch_first:
        raise ValueError("samples must be on the first axis; make it with `batch_first=True`.")
    if module.training and module.dropout > 0:
        raise ValueError("it draws at each call while training; put the model into eval mode.")
    if len(x.shape) != 2:
        raise ValueError(f"it takes (time, features) a sample and gets shape {tuple(x.shape)}.")
    for layer in range(module.num_layers):
        ways = [_way(module, f"l{layer}{end}", x) for end in (("", "_reverse") if module.bidirectional else ("",))]
        x = joined(ways, 2) if len(ways) > 1 else ways[0]
    return x, None


def _way(module: nn.RNN, name: str, x: Signal) -> Signal:
    """All states of one layer in one direction, in the order of time."""
    parts = [getattr(module, f"{kind}_{name}", None) for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    times = list(range(x.shape[0]))
    found: dict[int, Signal] = {}
    h = None
    for t in reversed(times) if name.endswith("_reverse") else times:
        h = found[t] = _step(parts, module.nonlinearity, x.rearranged(lambda i, t=t: i[:, t]), h)
    return joined([found[t].rearranged(lambda i: i[:, None]) for t in times], 1)


def _step(parts: list[Tensor | None], nonlinearity: str, x: Signal, h: Signal | None) -> Signal:
    into, back, bias, more = (None if part is None else part.detach() for part in parts)
    assert into is not None
    assert back is not None
    total = x.affine(_whole(into), None if bias is None or more is None else bias + more)
    total = total if h is None else total.plus(h.affine(_whole(back)))
    return total.activated({"tanh": TANH, "relu": RELU}[nonlinearity])


def _whole(matrix: Tensor) -> Tensor:
    rows, columns = matrix.shape
    index = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).T.to(matrix.device)
    return sparse(index, matrix.reshape(-1), (rows, columns))


def _channels(module: nn.Module, x: Signal, channels: int | None, dims: int) -> tuple[int, list[int]]:
    if len(x.shape) != dims + 1 or (channels is not None and x.shape[0] != channels):
        wanted = "channels" if channels is None else f"{channels} channels"
        raise ValueError(f"it takes {wanted} and {dims} axes a sample and gets shape {tuple(x.shape)}.")
    return x.shape[0], list(x.shape[1:])


def _by_channel(bias: Tensor | None, positions: int) -> Tensor | None:
    return None if bias is None else bias.detach().repeat_interleave(positions)


_ADAPTIVE = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)
RULES: Mapping[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.ConvTranspose1d: _transposed_convolution,
    nn.ConvTranspose2d: _transposed_convolution,
    nn.ConvTranspose3d: _transposed_convolution,
    nn.AvgPool1d: _average,
    nn.AvgPool2d: _average,
    nn.AvgPool3d: _average,
    nn.MaxPool1d: _maximum,
    nn.MaxPool2d: _maximum,
    nn.MaxPool3d: _maximum,
    nn.AdaptiveAvgPool1d: _average,
    nn.AdaptiveAvgPool2d: _average,
    nn.AdaptiveAvgPool3d: _average,
    nn.AdaptiveMaxPool1d: _maximum,
    nn.AdaptiveMaxPool2d: _maximum,
    nn.AdaptiveMaxPool3d: _maximum,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    nn.BatchNorm3d: _norm,
    nn.InstanceNorm1d: _norm,
    nn.InstanceNorm2d: _norm,
    nn.InstanceNorm3d: _norm,
    nn.Dropout: _dropout,
    nn.Dropout1d: _dropout,
    nn.Dropout2d: _dropout,
    nn.Dropout3d: _dropout,
    nn.AlphaDropout: _dropout,
    nn.Identity: lambda module, x: x,
    nn.Flatten: _rearranged,
    nn.Unflatten: _rearranged,
    nn.PixelShuffle: _rearranged,
    nn.PixelUnshuffle: _rearranged,
    nn.ChannelShuffle: _rearranged,
    nn.ReLU: _activated(RELU),
    nn.Tanh: _activated(TANH),
    nn.Sigmoid: _activated(SIGMOID),
    nn.LeakyReLU: _leaky,
    nn.ELU: _elu,
    nn.PReLU: _prelu,
    nn.ReLU6: _clamped,
    nn.Hardtanh: _clamped,
    nn.RNNCell: _cell,
    nn.RNN: _recurrent,
}
"""The rule of each layer that has one."""

_STATISTICS = "it divides by statistics of each sample, which is not affine; use BatchNorm, or train without."
_GATES = "its gates multiply states with states; use nn.RNN, or leave it outside."
_STEEP = "it falls or is steeper than 1 somewhere, so nothing could be proven; use ReLU, Tanh, Sigmoid or ELU."
_MIXES = "it multiplies signals with signals; leave it outside."
REASONS: Mapping[type[nn.Module], str] = {
    nn.LayerNorm: _STATISTICS,
    nn.GroupNorm: _STATISTICS,
    nn.LSTM: _GATES,
    nn.GRU: _GATES,
    nn.LSTMCell: _GATES,
    nn.GRUCell: _GATES,
    nn.GELU: _STEEP,
    nn.SiLU: _STEEP,
    nn.Mish: _STEEP,
    nn.SELU: _STEEP,
    nn.Softmax: "it divides states by their sum; leave it outside, behind the converted model.",
    nn.LogSoftmax: "it divides states by their sum; leave it outside, behind the converted model.",
    nn.MultiheadAttention: _MIXES,
    nn.Bilinear: _MIXES,
    nn.Embedding: "it takes whole numbers; convert what comes after it.",
}
"""Why other layers have none, and what to do."""
