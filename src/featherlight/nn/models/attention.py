"""Attention, and blocks of it with feed-forward layers: what every Transformer here is built from.

Legend of shapes: B sequences, T positions that ask, S positions that are asked, D features, H heads, E features of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from featherlight.nn.models.norms import LayerNorm, Norm
from featherlight.nn.models.positions import LearnedPositions, Positions


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """What all blocks of a Transformer have in common.

    Args:
        width: D.
        num_heads: H, a divisor of `width`.
        hidden: features inside a feed-forward layer; None is 4 D.
        norm: of the blocks.
        norm_first: whether what enters attention or a feed-forward layer is normalized, and not their sum with it.
        dropout: share of attention, and of the features that are added, that is dropped in training.
        bias: whether the linear layers of attention have biases.
        activation: makes the units of feed-forward layers.

    Raises:
        ValueError: a number below 1, or heads that do not divide the width.
    """

    width: int
    num_heads: int
    hidden: int | None = None
    norm: Norm = field(default_factory=LayerNorm)
    norm_first: bool = True
    dropout: float = 0.0
    bias: bool = True
    activation: Callable[[], nn.Module] = nn.GELU

    def __post_init__(self) -> None:
        if min(self.width, self.num_heads, 1 if self.hidden is None else self.hidden) < 1:
            raise ValueError(
                f"`width`, `num_heads` and `hidden` must be at least 1; got {self.width}, {self.num_heads} and {self.hidden}."
            )
        if self.width % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide `width`; got {self.num_heads} heads for a width of {self.width}."
            )

    @property
    def head_width(self) -> int:
        """E."""
        return self.width // self.num_heads

    def feed_forward(self) -> nn.Sequential:
        """Two linear layers with the units between them."""
        hidden = 4 * self.width if self.hidden is None else self.hidden
        return nn.Sequential(nn.Linear(self.width, hidden), self.activation(), nn.Linear(hidden, self.width))


class KeyValueCache:
    """Keys and values of the tokens that a block has seen, so that each passes through it once.

    Args:
        batch: B.
        max_length: the most tokens it holds.
        shape: of the block.
        like: has the dtype and device.

    Attributes:
        length: how many tokens it holds.
        max_length: as given.

    Cost: 2 B T D numbers a block.
    """

    def __init__(self, batch: int, max_length: int, shape: BlockShape, like: Tensor) -> None:
        self._held = like.new_empty(2, batch, shape.num_heads, max_length, shape.head_width)
        self.max_length = max_length
        self.length = 0

    def append(self, key_BHTE: Tensor, value_BHTE: Tensor) -> tuple[Tensor, Tensor]:
        """Adds tokens and returns all keys and values there are; raises ValueError where there is no room.

        They are written in place, and so take no gradients.
        """
        end = self.length + key_BHTE.shape[2]
        if end > self.max_length:
            raise ValueError(
                f"the cache has room for {self.max_length} tokens, and {end} were given. Ask for fewer, or "
                "start with room for more."
            )
        self._held[0, :, :, self.length : end], self._held[1, :, :, self.length : end] = key_BHTE, value_BHTE
        self.length = end
        return self._held[0, :, :, :end], self._held[1, :, :, :end]


class SelfAttention(nn.Module):
    """Every position asks the others, or those before it.

    Args:
        shape: of the block.
        positions: turn queries and keys.
        max_length: the most positions.

    Attributes:
        query_key_value: all three at once, D to 3 D.
        mix: of what the heads return.
        turn: the layer of `positions`.

    Source: Vaswani et al. 2017, section 3.2.
    """

    def __init__(self, shape: BlockShape, positions: Positions, max_length: int) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(shape.width, 3 * shape.width, bias=shape.bias)
        self.mix = nn.Linear(shape.width, shape.width, bias=shape.bias)
        self.turn = positions.turned(max_length, shape.head_width)
        self._heads = shape.num_heads
        self._dropout = shape.dropout

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        *,
        causal: bool = False,
        real_BS: Bool[Tensor, "B S"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """What each position learns from those it asks.

        Args:
            x_BTD: the positions; with a cache, those after the ones it holds.
            causal: whether a position asks none after it.
            real_BS: False for padding, which is not asked; of all positions, those in the cache first.
            cache: keys and values of positions before; is added to.
        """
        start = 0 if cache is None else cache.length
        query, key, value = self.query_key_value(x_BTD).unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = self.turn(query, start), self.turn(key, start)
        if cache is not None:
            key, value = cache.append(key, value)
        dropout = self._dropout if self.training else 0.0
        return self.mix(_attend(query, key, value, causal=causal, real_BS=real_BS, dropout=dropout))


class CrossAttention(nn.Module):
    """Every position asks those of another sequence.

    Args:
        shape: of the block.

    Attributes:
        query: D to D.
        key_value: of the other sequence, D to 2 D.
        mix: of what the heads return.

    Source: Vaswani et al. 2017, section 3.2.3.
    """

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.query = nn.Linear(shape.width, shape.width, bias=shape.bias)
        self.key_value = nn.Linear(shape.width, 2 * shape.width, bias=shape.bias)
        self.mix = nn.Linear(shape.width, shape.width, bias=shape.bias)
        self._heads = shape.num_heads
        self._dropout = shape.dropout

    def keys_and_values(self, memory_BSD: Float[Tensor, "B S D"]) -> Float[Tensor, "2 B H S E"]:
        """Of the other sequence; they stay as they are while this one grows."""
        return self.key_value(memory_BSD).unflatten(-1, (2, self._heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(
        self, x_BTD: Float[Tensor, "B T D"], asked: Float[Tensor, "2 B H S E"], *, real_BS: Tensor | None = None
    ) -> Float[Tensor, "B T D"]:
        """What each position learns from the other sequence.

        Args:
            x_BTD: the positions.
            asked: from `keys_and_values`.
            real_BS: False for padding of the other sequence, which is not asked.
        """
        query = self.query(x_BTD).unflatten(-1, (self._heads, -1)).transpose(1, 2)
        dropout = self._dropout if self.training else 0.0
        return self.mix(_attend(query, asked[0], asked[1], causal=False, real_BS=real_BS, dropout=dropout))


class TransformerBlock(nn.Module):
    """Self-attention and a feed-forward layer.

    Args:
        shape: of the block.
        positions: turn queries and keys.
        max_length: the most positions.
        causal: whether a position asks none after it.

    Attributes:
        attention_norm: of it.
        attention: of positions among themselves.
        forward_norm: of it.
        feed_forward: of each position.
        dropout: of what both add.
        shape: as given.
    """

    def __init__(
        self,
        shape: BlockShape,
        *,
        positions: Positions = LearnedPositions(),  # noqa: B008
        max_length: int,
        causal: bool,
    ) -> None:
        super().__init__()
        self.shape = shape
        self._causal = causal
        self.attention_norm = shape.norm.features(shape.width, causal=causal)
        self.attention = SelfAttention(shape, positions, max_length)
        self.forward_norm = shape.norm.features(shape.width, causal=causal)
        self.feed_forward = shape.feed_forward()
        self.dropout = nn.Dropout(shape.dropout)

    def cache(self, batch: int, max_length: int) -> KeyValueCache:
        """An empty one."""
        return KeyValueCache(batch, max_length, self.shape, self.attention.mix.weight)

    def forward(
        self, x_BTD: Float[Tensor, "B T D"], *, real_BS: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Float[Tensor, "B T D"]:
        """Same shape in and out; arguments as for `SelfAttention`."""

        def attend(x_BTD: Tensor) -> Tensor:
            return self.attention(x_BTD, causal=self._causal, real_BS=real_BS, cache=cache)

        first = self.shape.norm_first
        x_BTD = add_branch(x_BTD, attend, self.attention_norm, self.dropout, norm_first=first)
        return add_branch(x_BTD, self.feed_forward, self.forward_norm, self.dropout, norm_first=first)


def add_branch(
    x: Tensor, branch: Callable[[Tensor], Tensor], norm: nn.Module, dropout: nn.Module, *, norm_first: bool
) -> Tensor:
    """`x + dropout(branch(norm(x)))`, or `norm(x + dropout(branch(x)))`."""
    return x + dropout(branch(norm(x))) if norm_first else norm(x + dropout(branch(x)))


def _attend(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool, real_BS: Tensor | None, dropout: float
) -> Float[Tensor, "B T D"]:
    """The last T of S positions ask; heads are put side by side again."""
    asking, asked = query.shape[2], key.shape[2]
    mask: Tensor | None = None if real_BS is None else real_BS[:, None, None, :]
    hidden = causal and asking > 1
    if hidden and (mask is not None or asking < asked):
        earlier_TS = torch.ones(asking, asked, dtype=torch.bool, device=query.device).tril(asked - asking)
        mask, hidden = earlier_TS if mask is None else earlier_TS & mask, False
    mixed_BHTE = scaled_dot_product_attention(query, key, value, mask, dropout, hidden)
    return mixed_BHTE.transpose(1, 2).flatten(2)
