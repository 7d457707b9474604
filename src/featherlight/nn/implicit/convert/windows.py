"""Convolutions and pooling as sparse matrices of one sample.

Legend of shapes: P positions of an output, K positions of a window, O and I channels, G channels of a group, n numbers of an
input's channel.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from featherlight.nn.implicit.activations import RELU
from featherlight.nn.implicit.convert.signal import Signal
from featherlight.nn.implicit.convert.sparse import selection, sparse


def line(
    size: int, out: int, *, kernel: int, stride: int, dilation: int, padding: tuple[int, int], mode: str
) -> Tensor:
    """Which of `size` places each window of one axis covers, (out, kernel); -1 where it covers zeros."""
    places = torch.arange(1.0, size + 1, dtype=torch.float64)[None, None]
    padded = places if padding == (0, 0) else torch.nn.functional.pad(places, padding, mode=mode)
    index = torch.arange(out)[:, None] * stride + torch.arange(kernel) * dilation
    room = max(0, int(index.max()) + 1 - padded.shape[-1]) if index.numel() else 0
    return torch.nn.functional.pad(padded, (0, room))[0, 0][index].long() - 1


def adaptive_line(size: int, out: int) -> Tensor:
    """The same for windows that share `size` places evenly among `out` of them, as torch's adaptive pooling does."""
    k = torch.arange(out)
    begin, end = k * size // out, ((k + 1) * size + out - 1) // out
    index = begin[:, None] + torch.arange(int((end - begin).max()))
    return torch.where(index < end[:, None], index, -1)


def crossed(lines: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Windows over all axes, (P, K), as places in the flattened axes; -1 where they cover zeros."""
    whole = lines[0]
    for one, size in zip(lines[1:], sizes[1:], strict=True):
        left, right = whole[:, None, :, None], one[None, :, None, :]
        index = torch.where((left >= 0) & (right >= 0), left * size + right, -1)
        whole = index.reshape(len(whole) * len(one), -1)
    return whole


def convolution(weight_OGK: Tensor, windows_PK: Tensor, channels: int, size: int) -> Tensor:
    """(O P, I n), sparse; of channels in groups of G.

    Cost: O P G K entries.
    """
    num_out, per_group, _ = weight_OGK.shape
    positions = len(windows_PK)
    device = weight_OGK.device
    windows = windows_PK.to(device)[None, :, None, :]
    groups = channels // per_group
    first = (torch.arange(num_out, device=device) // (num_out // groups) * per_group)[:, None, None, None]
    channel = first + torch.arange(per_group, device=device)[:, None]
    row = torch.arange(num_out * positions, device=device).reshape(num_out, positions, 1, 1)
    column = torch.where(windows >= 0, channel * size + windows, -1)
    return _filled(row, column, weight_OGK[:, None], (num_out * positions, channels * size))


def averages(windows_PK: Tensor, weights_P: Tensor, channels: int, size: int) -> Tensor:
    """(I P, I n), sparse: sums of each channel's windows times a weight a window."""
    device = weights_P.device
    positions = len(windows_PK)
    windows = windows_PK.to(device)[None]
    channel = torch.arange(channels, device=device)[:, None, None]
    row = torch.arange(channels * positions, device=device).reshape(channels, positions, 1)
    column = torch.where(windows >= 0, channel * size + windows, -1)
    return _filled(row, column, weights_P[:, None], (channels * positions, channels * size))


def maxima(signal: Signal, windows_PK: Tensor, channels: int, size: int) -> Signal:
    """The largest number of each channel's windows, by max(l, r) = l + relu(r - l) in rounds of pairs.

    The states that makes are one fewer a window than it has places.
    """
    device = signal.bias.device
    windows = windows_PK.to(device)[None] + torch.arange(channels, device=device)[:, None, None] * size
    held = (windows_PK >= 0).to(device).expand(channels, -1, -1)
    counts = held.sum(-1).reshape(-1)
    signal = signal.affine(selection(windows[held], len(signal.bias), dtype=signal.bias.dtype))
    while int(counts.max()) > 1:
        signal, counts = _round(signal, counts)
    return signal


def _round(signal: Signal, counts: Tensor) -> tuple[Signal, Tensor]:
    """The larger of each pair of neighbours in every window; an odd one goes on as it is."""
    dtype, device, old = signal.bias.dtype, signal.bias.device, len(signal.bias)
    begin = counts.cumsum(0) - counts
    after = (counts + 1) // 2
    window = torch.arange(len(counts), device=device).repeat_interleave(after)
    rank = torch.arange(len(window), device=device) - (after.cumsum(0) - after)[window]
    left = begin[window] + 2 * rank
    paired = 2 * rank + 1 < counts[window]
    lesser, right = (signal.affine(selection(left[paired] + k, old, dtype=dtype)) for k in (0, 1))
    above = right.plus(lesser, -1.0).activated(RELU)
    place = torch.where(paired, paired.cumsum(0) - 1, -1)
    spread = above.affine(selection(place, len(above.bias), dtype=dtype))
    return signal.affine(selection(left, old, dtype=dtype)).plus(spread), after


def _filled(row: Tensor, column: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Sparse, of tensors that broadcast; columns below 0 are left out."""
    row, column, values = torch.broadcast_tensors(row, column, values)
    kept = column >= 0
    return sparse(torch.stack((row[kept], column[kept])), values[kept], shape)
