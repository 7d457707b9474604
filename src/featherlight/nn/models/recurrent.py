"""Recurrent networks over sequences: a classifier, a model of text, and a forecaster, with plain or LSTM layers.

Legend of shapes: B sequences, T positions, F features of a position, D features of a layer, V tokens, K outputs.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from featherlight.nn.models.norms import NoNorm, Norm


class Cell(Protocol):
    """Makes one recurrent layer."""

    def layer(self, before: int, width: int) -> nn.RNNBase:
        """From (B, T, before) to (B, T, width), the batch first."""
        ...


@dataclass(frozen=True)
class PlainCell:
    """`tanh(W x + U h + b)`. Source: Elman 1990. U starts orthogonal (Le, Jaitly and Hinton 2015 on why that matters)."""

    def layer(self, before: int, width: int) -> nn.RNNBase:
        """`torch.nn.RNN`."""
        made = nn.RNN(before, width, batch_first=True)
        nn.init.orthogonal_(cast(Tensor, made.weight_hh_l0))
        return made


@dataclass(frozen=True, kw_only=True)
class LstmCell:
    """Long short-term memory.

    Args:
        forget_bias: of the forget gate as it starts; 1 keeps memories at first.

    Source: Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000; the bias: Jozefowicz et al. 2015.
    """

    forget_bias: float = 1.0

    def layer(self, before: int, width: int) -> nn.RNNBase:
        """`torch.nn.LSTM`."""
        made = nn.LSTM(before, width, batch_first=True)
        with torch.no_grad():
            cast(Tensor, made.bias_ih_l0)[width : 2 * width] = self.forget_bias
            cast(Tensor, made.bias_hh_l0)[width : 2 * width] = 0.0
        return made


@dataclass(frozen=True, kw_only=True)
class RecurrentShape:
    """What the recurrent layers of a network have in common.

    Args:
        width: D.
        num_layers: how many.
        cell: what they are.
        norm: after each.
        dropout: share of features that is dropped after each.

    Raises:
        ValueError: a number below 1.
    """

    width: int
    num_layers: int = 1
    cell: Cell = field(default_factory=LstmCell)
    norm: Norm = field(default_factory=NoNorm)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if min(self.width, self.num_layers) < 1:
            raise ValueError(f"`width` and `num_layers` must be at least 1; got {self.width} and {self.num_layers}.")


class RecurrentLayers(nn.Module):
    """Recurrent layers one on the other, each with its norm and dropout.

    Args:
        before: F.
        shape: of the layers.
        causal: whether a norm may not be over positions that come later.

    Attributes:
        layers: torch's own.
        norms: after each.
        dropout: after each norm.
    """

    def __init__(self, before: int, shape: RecurrentShape, *, causal: bool) -> None:
        super().__init__()
        widths = [before, *[shape.width] * (shape.num_layers - 1)]
        self.layers = nn.ModuleList(shape.cell.layer(one, shape.width) for one in widths)
        self.norms = nn.ModuleList(shape.norm.features(shape.width, causal=causal) for _ in widths)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x_BTF: Float[Tensor, "B T F"], state: list[Any] | None = None) -> tuple[Tensor, list[Any]]:
        """What the last layer returns at each position, (B, T, D), and the state of all; None starts at 0."""
        after = []
        for number, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x_BTF, last = layer(x_BTF, None if state is None else state[number])
            x_BTF = self.dropout(norm(x_BTF))
            after.append(last)
        return x_BTF, after


class RecurrentClassifier(nn.Module):
    """Reads a sequence to its end, and then says its class.

    Args:
        num_outputs: K.
        num_features: F.
        shape: of the layers.

    Attributes:
        layers: the recurrent ones.
        head: the linear layer.
    """

    def __init__(self, num_outputs: int, *, num_features: int, shape: RecurrentShape) -> None:
        super().__init__()
        self.layers = RecurrentLayers(num_features, shape, causal=False)
        self.head = nn.Linear(shape.width, num_outputs)

    def forward(self, x_BTF: Float[Tensor, "B T F"], lengths_B: Int[Tensor, "B"] | None = None) -> Float[Tensor, "B K"]:
        """The logits.

        Args:
            x_BTF: the sequences.
            lengths_B: how many positions of each are real, the rest being padding at its end; None is all.

        Raises:
            ValueError: no positions, or a length that is none of them.
        """
        if x_BTF.ndim != 3 or not x_BTF.shape[1]:
            raise ValueError(f"sequences must be (B, T, F) with at least one position; got {tuple(x_BTF.shape)}.")
        hidden_BTD, _ = self.layers(x_BTF)
        if lengths_B is None:
            return self.head(hidden_BTD[:, -1])
        if bool(((lengths_B < 1) | (lengths_B > x_BTF.shape[1])).any()):
            raise ValueError(
                f"`lengths` must lie between 1 and the {x_BTF.shape[1]} positions there are; got {int(lengths_B.min())} to "
                f"{int(lengths_B.max())}."
            )
        return self.head(hidden_BTD[torch.arange(len(x_BTF), device=x_BTF.device), lengths_B - 1])


class RecurrentLanguageModel(nn.Module):
    """How likely each next token is, by a state that has seen all before it.

    Args:
        num_tokens: V.
        shape: of the layers.
        tied: whether the last layer is the table of the tokens, as Press and Wolf 2017 have it.

    Attributes:
        context: None, as the state has no end.
        tokens: what each token is told as.
        dropout: of it.
        layers: the recurrent ones.
        head: D to V.

    Raises:
        ValueError: a number below 1, or a norm that lets tokens see later ones.
    """

    def __init__(self, num_tokens: int, *, shape: RecurrentShape, tied: bool = False) -> None:
        super().__init__()
        if num_tokens < 1:
            raise ValueError(f"`num_tokens` must be at least 1; got {num_tokens}.")
        self.context = None
        self.tokens = nn.Embedding(num_tokens, shape.width)
        self.dropout = nn.Dropout(shape.dropout)
        self.layers = RecurrentLayers(shape.width, shape, causal=True)
        self.head = nn.Linear(shape.width, num_tokens, bias=not tied)
        if tied:
            self.head.weight = self.tokens.weight
            nn.init.normal_(self.tokens.weight, std=shape.width**-0.5)

    def forward(self, tokens_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """The logits of the token after each."""
        return self.advance(tokens_BT, None)[0]

    def start(self, batch: int) -> None:
        """The state before the first token."""

    def advance(
        self, tokens_BT: Int[Tensor, "B T"], state: list[Any] | None
    ) -> tuple[Float[Tensor, "B T V"], list[Any]]:
        """The logits after some more tokens, and the state after them."""
        hidden_BTD, after = self.layers(self.dropout(self.tokens(tokens_BT)), state)
        return self.head(hidden_BTD), after


class RecurrentForecaster(nn.Module):
    """A number of outputs at each position from what was seen until then.

    Args:
        num_outputs: K.
        num_features: F.
        shape: of the layers.

    Attributes:
        layers: the recurrent ones.
        head: the linear layer.
        direct: a linear map of the position itself that is added, so that the layers learn what is not linear.
    """

    def __init__(self, num_outputs: int, *, num_features: int, shape: RecurrentShape) -> None:
        super().__init__()
        self.layers = RecurrentLayers(num_features, shape, causal=True)
        self.head = nn.Linear(shape.width, num_outputs)
        self.direct = nn.Linear(num_features, num_outputs, bias=False)

    def forward(self, x_BTF: Float[Tensor, "B T F"]) -> Float[Tensor, "B T K"]:
        """The outputs."""
        return self.advance(x_BTF, None)[0]

    def advance(self, x_BTF: Float[Tensor, "B T F"], state: list[Any] | None) -> tuple[Tensor, list[Any]]:
        """The outputs of some more positions, and the state after them."""
        hidden_BTD, after = self.layers(x_BTF, state)
        return self.head(hidden_BTD) + self.direct(x_BTF), after
