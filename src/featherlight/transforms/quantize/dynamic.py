"""Dynamic quantization: products of models without a static graph, such as recurrent networks and Transformers.

Weights are on symmetric grids, one for each row, and whatever they are multiplied with is rounded to the grid of the range that
it has in this call. What is between the products stays in float.

Legend of shapes: B sequences, T positions that ask, S positions that are asked, E features of a head, G rows of four gates, D
features of a layer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from featherlight.functional import fake_quantize
from featherlight.transforms.quantize.quantizers import ActivationGrid, WeightQuantizer

_PROBABILITIES = 1 / 255
Rounding = Callable[[Tensor], Tensor]
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.LSTM, nn.LSTMCell)


@dataclass(frozen=True, kw_only=True)
class DynamicQuantization:
    """Rounds what is multiplied in every pass: in linear layers, convolutions, products of matrices, attention and LSTM layers.

    Ranges are those of the call, so that there is nothing to calibrate and nothing to keep. It is a simulation: the model
    computes with floats on grids. Other recurrent layers stay in float.

    Args:
        weight_bits: 8, or 7 to 2.
        grid: of what weights are multiplied with, and of both sides of products without weights.

    Source: Krishnamoorthi 2018, section 2.4; Wu et al. 2016, section 6, on LSTM layers.
    """

    weight_bits: int = 8
    grid: ActivationGrid = field(default_factory=ActivationGrid)

    def prepare(self, model: nn.Module) -> None:
        """Has the model's forward round what it multiplies.

        Raises:
            ValueError: the model has a forward of its own already, or no layer that multiplies.
        """
        if "forward" in model.__dict__:
            raise ValueError(f"{type(model).__name__} has a forward of its own already. Convert it first.")
        if not any(isinstance(module, (*_LAYERS, nn.MultiheadAttention)) for module in model.modules()):
            raise ValueError(
                f"{type(model).__name__} has no linear layer, convolution or LSTM, so that nothing is rounded."
            )
        if fused := [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]:
            raise ValueError(
                f"the layer `{fused[0]}` is a MultiheadAttention of torch, whose products cannot be seen from outside. Take "
                "`featherlight.nn.models.SelfAttention`, or `scaled_dot_product_attention`."
            )
        model.forward = MethodType(_Forward(self), model)

    def update(self, model: nn.Module, progress: float) -> None:
        """Nothing moves."""

    @torch.no_grad()
    def convert(self, model: nn.Module) -> None:
        """Puts weights on their grids and gives the model its own forward back."""
        del model.__dict__["forward"]
        for module in model.modules():
            if isinstance(module, _LAYERS):
                for name, weight in module.named_parameters(recurse=False):
                    if name.startswith("weight"):
                        weight.copy_(self.weight(weight))

    def weight(self, weight: Tensor) -> Tensor:
        """A weight on its grid."""
        return WeightQuantizer(weight, bits=self.weight_bits, learned=False)(weight)

    def value(self, x: Tensor) -> Tensor:
        """A value on the grid of the range it has."""
        low, high = x.detach().aminmax()
        scale, zero = self.grid.fitted(low.clamp(max=0), high.clamp(min=0))
        return fake_quantize(x, scale, zero, 0, self.grid.levels)


@dataclass(frozen=True)
class _Forward:
    """The forward of a class, inside the mode."""

    rounding: DynamicQuantization

    def __call__(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _RoundedProducts(self.rounding):
            return type(model).forward(model, *args, **kwargs)


class _RoundedProducts(TorchFunctionMode):
    def __init__(self, rounding: DynamicQuantization) -> None:
        super().__init__()
        self._rounding = rounding

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rule = _RULES.get(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {})) if rule is None else rule(self._rounding, func, *args, **(kwargs or {}))


def _layer(rounding: DynamicQuantization, func: Any, x: Tensor, weight: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
    return func(rounding.value(x), rounding.weight(weight), *rest, **kwargs)


def _product(rounding: DynamicQuantization, func: Any, first: Tensor, second: Tensor, **kwargs: Any) -> Tensor:
    return func(rounding.value(first), rounding.value(second), **kwargs)


def _attention(
    rounding: DynamicQuantization,
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        shared = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(shared, -3), value.repeat_interleave(shared, -3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = rounding.value(query) @ rounding.value(key).transpose(-2, -1) * factor
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    unit = scores.new_tensor(_PROBABILITIES)
    weights = fake_quantize(scores.softmax(-1), unit, 0.0, 0, 255)
    return functional.dropout(weights, dropout_p) @ rounding.value(value)


def _lstm(
    rounding: DynamicQuantization, func: Any, x: Tensor, hidden: Any, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    if isinstance(hidden, Tensor):
        raise ValueError("packed sequences have no dynamic quantization here. Hand padded ones to the LSTM.")
    return lstm(x, hidden, *args, weight=rounding.weight, value=rounding.value)


def lstm(
    x: Tensor,
    hidden: Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
    *,
    weight: Rounding,
    value: Rounding,
) -> tuple[Tensor, Tensor, Tensor]:
    """LSTM layers as `torch.lstm`, one position after the other, with what is multiplied rounded.

    Args:
        x: (T, B, features), or (B, T, features) with `batch_first`.
        hidden: states and cells that all layers start from, (layers, B, D) each.
        weights: of all layers and directions, in torch's order.
        has_biases: whether there are two biases beside two weights.
        num_layers: how many.
        dropout: between layers, in training.
        training: whether it is.
        bidirectional: whether each layer also reads backwards.
        batch_first: whether the batch is the first axis.
        weight: rounds a weight.
        value: rounds what it is multiplied with.

    Returns:
        What the last layer returns at each position, and the last states and cells of all.
    """
    x = x.transpose(0, 1) if batch_first else x
    directions, each = 1 + bidirectional, 4 if has_biases else 2
    states, cells = [], []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            own = weights[number * each : (number + 1) * each]
            ordered = x.flip(0) if direction else x
            made, state, cell = _one_way(ordered, hidden[0][number], hidden[1][number], own, weight, value)
            outputs.append(made.flip(0) if direction else made)
            states.append(state)
            cells.append(cell)
        x = torch.cat(outputs, -1)
        if dropout and training and layer < num_layers - 1:
            x = functional.dropout(x, dropout)
    return x.transpose(0, 1) if batch_first else x, torch.stack(states), torch.stack(cells)


def _one_way(
    x: Tensor, state: Tensor, cell: Tensor, weights: Sequence[Tensor], weight: Rounding, value: Rounding
) -> tuple[Tensor, Tensor, Tensor]:
    into, within = weight(weights[0]), weight(weights[1])
    biases = (weights[2], weights[3]) if len(weights) == 4 else (None, None)
    from_inputs = functional.linear(value(x), into, biases[0])
    made = []
    for gates in from_inputs:
        state, cell = _cell_step(gates + functional.linear(value(state), within, biases[1]), cell)
        made.append(state)
    return torch.stack(made), state, cell


def _cell_step(gates_BG: Tensor, cell_BD: Tensor) -> tuple[Tensor, Tensor]:
    enters, forgets, proposed, leaves = gates_BG.chunk(4, -1)
    cell_BD = forgets.sigmoid() * cell_BD + enters.sigmoid() * proposed.tanh()
    return leaves.sigmoid() * cell_BD.tanh(), cell_BD


def _lstm_cell(
    rounding: DynamicQuantization,
    func: Any,
    x: Tensor,
    hidden: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    gates = functional.linear(rounding.value(x), rounding.weight(w_ih), b_ih)
    gates = gates + functional.linear(rounding.value(hidden[0]), rounding.weight(w_hh), b_hh)
    return _cell_step(gates, hidden[1])


_RULES = cast(
    "dict[str, Callable[..., Any]]",
    {
        "linear": _layer,
        "conv1d": _layer,
        "conv2d": _layer,
        "matmul": _product,
        "__matmul__": _product,
        "bmm": _product,
        "scaled_dot_product_attention": _attention,
        "lstm": _lstm,
        "lstm_cell": _lstm_cell,
    },
)
"""By the names of functions."""
