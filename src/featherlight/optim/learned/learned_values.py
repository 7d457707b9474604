"""Numbers of a rule that are learned, kept so that no value of theirs is out of range."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def log_of_positive(values: float | Sequence[float] | Tensor, name: str) -> nn.Parameter:
    """The logarithms of positive numbers as a parameter, float64 where they come as Python numbers.

    Raises:
        ValueError: one is not positive and finite.
    """
    tensor = values.detach().clone() if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
    if not bool(((tensor > 0) & tensor.isfinite()).all()):
        raise ValueError(
            f"`{name}` must be finite and positive, or the metric would be indefinite and its program without a solution; "
            f"got {_shown(tensor)}. Give positive numbers."
        )
    return nn.Parameter(tensor.log())


def logit_of_share(value: float, name: str) -> nn.Parameter:
    """The logit of a number in [0, 1) as a parameter; 0 is kept as it is for good.

    Raises:
        ValueError: it is out of range.
    """
    if not 0 <= value < 1:
        raise ValueError(f"`{name}` must be in [0, 1) (1 would never forget the first step); got {value}.")
    return nn.Parameter(torch.tensor(math.log(value / (1 - value)) if value else -math.inf, dtype=torch.float64))


def like(value: Tensor, other: Tensor) -> Tensor:
    """`value` with the dtype and device of `other`, differentiably."""
    return value.to(dtype=other.dtype, device=other.device)


def _shown(tensor: Tensor) -> str:
    wrong = tensor[~((tensor > 0) & tensor.isfinite())]
    return f"{float(wrong.reshape(-1)[0])}" + (f" and {wrong.numel() - 1} more such" if wrong.numel() > 1 else "")
