"""Checks that operations of an integer program share."""

import torch
from torch import Tensor


def check_layer(name: str, weight: Tensor, scales: Tensor, bias: Tensor, num_axes: int) -> None:
    """Raises ValueError unless weights, scales and bias of a layer fit each other."""
    dtypes = (weight.dtype, scales.dtype, bias.dtype)
    if dtypes != (torch.int8, torch.float32, torch.int32):
        raise ValueError(
            f"layer `{name}` needs weights of int8, their scales as float32 and a bias of int32; got "
            f"{', '.join(str(one).removeprefix('torch.') for one in dtypes)}."
        )
    if weight.ndim != num_axes or scales.shape != weight.shape[:1] or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"layer `{name}` needs a weight of {num_axes} axes, with a scale and a bias for each channel out; got the shapes "
            f"{tuple(weight.shape)}, {tuple(scales.shape)} and {tuple(bias.shape)}."
        )
    fits = torch.isfinite(scales) & (scales > 0)
    if not fits.all():
        at = int((~fits).nonzero()[0])
        raise ValueError(
            f"layer `{name}` has a weight scale of {float(scales[at]):g} in channel {at}; scales must be positive and finite. "
            "Give a channel of zeros any scale, such as 1."
        )


def check_positive(name: str, **numbers: tuple[int, ...]) -> None:
    """Raises ValueError unless all numbers are at least 1."""
    for what, values in numbers.items():
        if min(values) < 1:
            raise ValueError(f"`{what}` of `{name}` must be at least 1; got {values}.")


def check_pool(name: str, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> None:
    """Raises ValueError unless a pooling has windows, and each of them meets a place that is not padding."""
    check_positive(name, kernel=kernel, stride=stride)
    if any(not 0 <= pad <= size // 2 for pad, size in zip(padding, kernel, strict=True)):
        raise ValueError(
            f"`padding` of the pooling `{name}` must be from 0 to half the kernel; got {padding} and {kernel}."
        )
