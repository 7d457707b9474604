"""The Transformer of 2017: an encoder reads one sequence, a decoder writes another.

Legend of shapes: B pairs, S positions of the source, T of the target, D features, V tokens there are.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from featherlight.nn.models.attention import (
    BlockShape,
    CrossAttention,
    KeyValueCache,
    SelfAttention,
    TransformerBlock,
    add_branch,
)
from featherlight.nn.models.positions import Positions, Sinusoidal

BASE = BlockShape(width=512, num_heads=8, hidden=2048, norm_first=False, dropout=0.1, activation=nn.ReLU)
"""The blocks of the base model: with 6 and 6 of them and 37,000 tied tokens it has 63,082,496 parameters. The paper has 65
million for "about 37000 tokens"."""


@dataclass(frozen=True, kw_only=True)
class DecoderState:
    """What a decoder keeps between tokens.

    Attributes:
        caches: keys and values of the target so far, for each block.
        asked: keys and values of the source, for each block.
        real_BS: False for padding of the source; None where there is none.
    """

    caches: list[KeyValueCache]
    asked: list[Tensor]
    real_BS: Tensor | None


class EncoderDecoder(nn.Module):
    """Two stacks of blocks; those of the decoder ask the source too.

    Args:
        num_tokens: V, of source and target alike.
        max_length: the most positions of either.
        shape: of the blocks.
        num_blocks: of each stack.
        positions: how tokens know where they stand.
        tied: whether source, target and the last layer share one table; else each has its own.

    Attributes:
        max_length: as given.
        source: what each token of the source is told as.
        target: the same for the target.
        places: the layer of `positions`.
        dropout: of tokens with their positions.
        encoder: its blocks.
        decoder: its blocks.
        encoder_norm: of what the encoder returns, where its blocks normalize first.
        decoder_norm: of what the decoder returns, likewise.
        head: D to V.

    Raises:
        ValueError: a number below 1, or a norm that lets the target see later tokens.

    Source: Vaswani et al. 2017, sections 3.1 to 3.5.
    """

    def __init__(
        self,
        num_tokens: int,
        *,
        max_length: int,
        shape: BlockShape = BASE,
        num_blocks: int = 6,
        positions: Positions = Sinusoidal(),  # noqa: B008
        tied: bool = True,
    ) -> None:
        super().__init__()
        if min(num_tokens, max_length, num_blocks) < 1:
            raise ValueError(
                f"`num_tokens`, `max_length` and `num_blocks` must be at least 1; got {num_tokens}, {max_length} and "
                f"{num_blocks}."
            )
        self.max_length = max_length
        self._scale = math.sqrt(shape.width)
        self.source = nn.Embedding(num_tokens, shape.width)
        self.target = nn.Embedding(num_tokens, shape.width)
        self.places = positions.added(max_length, shape.width)
        self.dropout = nn.Dropout(shape.dropout)
        parts = {"positions": positions, "max_length": max_length}
        self.encoder = nn.ModuleList(TransformerBlock(shape, causal=False, **parts) for _ in range(num_blocks))
        self.decoder = nn.ModuleList(DecoderBlock(shape, **parts) for _ in range(num_blocks))
        first = shape.norm_first
        self.encoder_norm = shape.norm.features(shape.width) if first else nn.Identity()
        self.decoder_norm = shape.norm.features(shape.width, causal=True) if first else nn.Identity()
        self.head = nn.Linear(shape.width, num_tokens, bias=False)
        if tied:
            self.target.weight = self.source.weight = self.head.weight
        for table in {id(one.weight): one for one in (self.source, self.target, self.head)}.values():
            nn.init.normal_(table.weight, std=1 / self._scale)
        for one in (*self.encoder, *self.decoder):
            _start(one)

    def forward(
        self,
        source_BS: Int[Tensor, "B S"],
        target_BT: Int[Tensor, "B T"],
        *,
        real_BS: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """The logits of the token after each of the target.

        Args:
            source_BS: what is read.
            target_BT: what is written, after a token that begins it. Padding at its end needs no mask.
            real_BS: False for padding of the source.
        """
        memory_BSD = self.encode(source_BS, real_BS=real_BS)
        asked = [cast(DecoderBlock, block).cross_attention.keys_and_values(memory_BSD) for block in self.decoder]
        return self._decode(target_BT, asked, real_BS, None)

    def encode(
        self, source_BS: Int[Tensor, "B S"], *, real_BS: Bool[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B S D"]:
        """What the source is told to the decoder as."""
        x_BSD = self._embedded(self.source, source_BS, 0)
        for block in self.encoder:
            x_BSD = block(x_BSD, real_BS=real_BS)
        return self.encoder_norm(x_BSD)

    def start(self, source_BS: Int[Tensor, "B S"], *, real_BS: Bool[Tensor, "B S"] | None = None) -> DecoderState:
        """Reads the source; the state before the first token of the target."""
        memory_BSD = self.encode(source_BS, real_BS=real_BS)
        blocks = [cast(DecoderBlock, block) for block in self.decoder]
        return DecoderState(
            caches=[block.cache(len(source_BS), self.max_length) for block in blocks],
            asked=[block.cross_attention.keys_and_values(memory_BSD) for block in blocks],
            real_BS=real_BS,
        )

    def advance(self, target_BT: Int[Tensor, "B T"], state: DecoderState) -> Float[Tensor, "B T V"]:
        """The logits after some more tokens of the target, whose keys and values are added to the state."""
        return self._decode(target_BT, state.asked, state.real_BS, state.caches)

    @torch.no_grad()
    def greedy(
        self,
        source_BS: Int[Tensor, "B S"],
        *,
        begin: int,
        end: int,
        max_length: int | None = None,
        real_BS: Bool[Tensor, "B S"] | None = None,
    ) -> Int[Tensor, "B T"]:
        """The likeliest token after each, until all targets have ended.

        Args:
            source_BS: what is read.
            begin: the token that begins a target; it is not returned.
            end: the token that ends it; a target that has ended is filled up with it.
            max_length: the most tokens that are written; None is that of the model.
            real_BS: False for padding of the source.
        """
        state = self.start(source_BS, real_BS=real_BS)
        new_B1 = torch.full((len(source_BS), 1), begin, device=source_BS.device)
        written, ended_B1 = [], torch.zeros_like(new_B1, dtype=torch.bool)
        for _ in range(self.max_length if max_length is None else max_length):
            new_B1 = self.advance(new_B1, state).argmax(-1).masked_fill(ended_B1, end)
            written.append(new_B1)
            ended_B1 = ended_B1 | (new_B1 == end)
            if bool(ended_B1.all()):
                break
        return torch.cat(written, 1) if written else new_B1[:, :0]

    def _decode(
        self, target_BT: Tensor, asked: list[Tensor], real_BS: Tensor | None, caches: list[KeyValueCache] | None
    ) -> Tensor:
        x_BTD = self._embedded(self.target, target_BT, 0 if caches is None else caches[0].length)
        for number, block in enumerate(self.decoder):
            cache = None if caches is None else caches[number]
            x_BTD = block(x_BTD, asked[number], real_BS=real_BS, cache=cache)
        return self.head(self.decoder_norm(x_BTD))

    def _embedded(self, table: nn.Embedding, tokens_BT: Tensor, start: int) -> Tensor:
        if tokens_BT.ndim != 2 or start + tokens_BT.shape[1] > self.max_length:
            raise ValueError(
                f"the network takes sequences of at most {self.max_length} tokens, (B, T); got the shape "
                f"{tuple(tokens_BT.shape)} after {start} tokens. Cut them, or build it with a larger `max_length`."
            )
        return self.dropout(self.places(table(tokens_BT) * self._scale, start))


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the source, and a feed-forward layer.

    Args:
        shape: of the block.
        positions: turn queries and keys of self-attention.
        max_length: the most positions.

    Attributes:
        attention_norm: of it.
        attention: of the target.
        cross_norm: of it.
        cross_attention: to the source.
        forward_norm: of it.
        feed_forward: of each position.
        dropout: of what all three add.
        shape: as given.
    """

    def __init__(self, shape: BlockShape, *, positions: Positions, max_length: int) -> None:
        super().__init__()
        self.shape = shape
        self.attention_norm = shape.norm.features(shape.width, causal=True)
        self.attention = SelfAttention(shape, positions, max_length)
        self.cross_norm = shape.norm.features(shape.width, causal=True)
        self.cross_attention = CrossAttention(shape)
        self.forward_norm = shape.norm.features(shape.width, causal=True)
        self.feed_forward = shape.feed_forward()
        self.dropout = nn.Dropout(shape.dropout)

    def cache(self, batch: int, max_length: int) -> KeyValueCache:
        """An empty one."""
        return KeyValueCache(batch, max_length, self.shape, self.attention.mix.weight)

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        asked: Float[Tensor, "2 B H S E"],
        *,
        real_BS: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Same shape in and out.

        Args:
            x_BTD: the target; with a cache, the tokens after those it holds.
            asked: keys and values of the source.
            real_BS: False for padding of the source.
            cache: keys and values of the target so far; is added to.
        """

        def attend(x_BTD: Tensor) -> Tensor:
            return self.attention(x_BTD, causal=True, cache=cache)

        def ask(x_BTD: Tensor) -> Tensor:
            return self.cross_attention(x_BTD, asked, real_BS=real_BS)

        first = self.shape.norm_first
        x_BTD = add_branch(x_BTD, attend, self.attention_norm, self.dropout, norm_first=first)
        x_BTD = add_branch(x_BTD, ask, self.cross_norm, self.dropout, norm_first=first)
        return add_branch(x_BTD, self.feed_forward, self.forward_norm, self.dropout, norm_first=first)


def _start(block: nn.Module) -> None:
    """Matrices as Glorot and Bengio 2010 have them, biases at 0."""
    for module in block.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
