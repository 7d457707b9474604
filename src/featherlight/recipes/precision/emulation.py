"""A model whose linear and convolution layers compute as if numbers had few bits, while its weights stay in float32."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from featherlight.functional import NumberFormat, round_to
from featherlight.precision.step_tensors import LAYERS


class EmulatedFormats:
    """A ModelTransform that rounds weights, inputs and gradients of outputs of Linear and convolution layers.

    Products are of rounded numbers and summed in float32. The weights that are trained stay as they are; what `convert`
    leaves is the plain model with them. Blocks run along the channels or features of inputs and outputs, and of a weight
    along its inputs, for the backward products as well, where hardware would round a second time along the other axis.

    Args:
        weights: of the layers; None leaves them in float32.
        activations: what goes into the layers.
        gradients: what comes back to their outputs.
    """

    def __init__(
        self,
        *,
        weights: NumberFormat | None = None,
        activations: NumberFormat | None = None,
        gradients: NumberFormat | None = None,
    ) -> None:
        self.weights = weights
        self.activations = activations
        self.gradients = gradients
        self._handles: list[RemovableHandle] = []

    def prepare(self, model: nn.Module) -> None:
        """Puts parametrizations and hooks on the layers.

        Raises:
            ValueError: the model has no such layer.
        """
        layers = [module for module in model.modules() if isinstance(module, LAYERS)]
        if not layers:
            raise ValueError("the model has no Linear and no convolution layer, so there is nothing to emulate.")
        for layer in layers:
            axis = -1 if isinstance(layer, nn.Linear) else 1
            if self.weights is not None:
                parametrize.register_parametrization(layer, "weight", _Rounded(self.weights))
            if self.activations is not None:
                self._handles.append(layer.register_forward_pre_hook(_input_hook(self.activations, axis)))
            if self.gradients is not None:
                self._handles.append(layer.register_forward_hook(_output_hook(self.gradients, axis)))

    def update(self, model: nn.Module, progress: float) -> None:
        """Nothing moves along."""

    def convert(self, model: nn.Module) -> None:
        """Takes parametrizations and hooks off; the weights are the float32 ones."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for layer in model.modules():
            if isinstance(layer, LAYERS) and parametrize.is_parametrized(layer, "weight"):
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


class _Rounded(nn.Module):
    def __init__(self, format: NumberFormat) -> None:
        super().__init__()
        self.format = format

    def forward(self, weight: Tensor) -> Tensor:
        return round_to(weight, self.format, axis=1)


def _input_hook(format: NumberFormat, axis: int) -> Any:
    return lambda layer, inputs: (round_to(inputs[0], format, axis=axis), *inputs[1:])


def _output_hook(format: NumberFormat, axis: int) -> Any:
    return lambda layer, inputs, output: _RoundedGradient.apply(output, layer.bias, format, axis)


class _RoundedGradient(torch.autograd.Function):
    """The identity, whose gradient is rounded for the products; that of the bias, a sum, is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, format: NumberFormat, axis: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.has_bias, ctx.format, ctx.axis = bias is not None, format, axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rounded = round_to(gradient, ctx.format, axis=ctx.axis)
        if not ctx.has_bias:
            return rounded, None, None, None
        others = [axis for axis in range(gradient.ndim) if axis != ctx.axis % gradient.ndim]
        rest = gradient - rounded  # what the layer itself adds to its bias is of the rounded gradient
        return rounded, rest.sum(others) if others else rest, None, None
