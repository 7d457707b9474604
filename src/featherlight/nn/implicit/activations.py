"""Activations of implicit models: entry by entry, never falling, never steeper than 1."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Activation:
    """A function of single entries with slopes in [0, 1], on which every statement about well-posedness rests.

    Args:
        function: of a tensor of any shape.
        slope: the derivative, in [0, 1], **as a function of the value**; differentiable itself, for double backward.
    """

    function: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """The function of `x`."""
        return self.function(x)


def _step(value: Tensor) -> Tensor:
    return (value > 0).to(value.dtype)


def _leaky_step(value: Tensor, *, negative_slope: float) -> Tensor:
    return torch.where(value > 0, 1.0, negative_slope).to(value.dtype)


def _tanh_slope(value: Tensor) -> Tensor:
    return 1 - value * value


def _sigmoid_slope(value: Tensor) -> Tensor:
    return value * (1 - value)


def _elu_slope(value: Tensor) -> Tensor:
    return value.clamp(max=0) + 1


def leaky_relu(negative_slope: float = 0.01) -> Activation:
    """The leaky ReLU.

    Raises:
        ValueError: a slope outside [0, 1].
    """
    if not 0 <= negative_slope <= 1:
        raise ValueError(
            f"`negative_slope` must be in [0, 1], or the activation is steeper than 1 or falls; got {negative_slope}."
        )
    return Activation(
        function=partial(torch.nn.functional.leaky_relu, negative_slope=negative_slope),
        slope=partial(_leaky_step, negative_slope=negative_slope),
    )


RELU = Activation(function=torch.relu, slope=_step)
"""max(x, 0), with slope 0 at 0."""
TANH = Activation(function=torch.tanh, slope=_tanh_slope)
"""The hyperbolic tangent."""
SIGMOID = Activation(function=torch.sigmoid, slope=_sigmoid_slope)
"""1 / (1 + exp(-x)), with slopes of at most 1/4."""
ELU = Activation(function=torch.nn.functional.elu, slope=_elu_slope)
"""x above 0 and exp(x) - 1 below."""
IDENTITY = Activation(function=torch.clone, slope=torch.ones_like)
"""x itself: a linear system."""
