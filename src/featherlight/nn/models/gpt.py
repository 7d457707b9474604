"""A causal Transformer over tokens: how likely each next one is.

Legend of shapes: B sequences, T positions, D features, V tokens there are.
"""

import math
from typing import cast

from jaxtyping import Float, Int
from torch import Tensor, nn

from featherlight.nn.models.attention import BlockShape, KeyValueCache, TransformerBlock
from featherlight.nn.models.positions import LearnedPositions, Positions

GPT2_SMALL = BlockShape(width=768, num_heads=12, dropout=0.1)
"""The blocks of GPT-2 small: with 12 of them, 50,257 tokens and a context of 1,024 it has 124,439,808 parameters."""


class Gpt(nn.Module):
    """Tokens with their positions, causal blocks, a norm, and logits by the table of the tokens.

    Args:
        num_tokens: V.
        context: the most positions.
        shape: of the blocks.
        num_blocks: how many.
        positions: how tokens know where they stand.
        tied: whether the last layer is the table of the tokens; else it is one of its own.

    Attributes:
        context: as given.
        tokens: what each token is told as.
        places: the layer of `positions`.
        dropout: of tokens with their positions.
        blocks: attention and feed-forward layers.
        norm: of what they return.
        head: D to V.

    Raises:
        ValueError: a number below 1, or a norm that lets tokens see later ones.

    Source: Radford et al. 2019 (GPT-2). What is added to the stream starts smaller by the root of the number of additions.
    Cost: O(T^2 D) time for each sequence and block; by `advance` O(T D) for each token.
    """

    def __init__(
        self,
        num_tokens: int,
        *,
        context: int,
        shape: BlockShape,
        num_blocks: int,
        positions: Positions = LearnedPositions(),  # noqa: B008
        tied: bool = True,
    ) -> None:
        super().__init__()
        if min(num_tokens, context, num_blocks) < 1:
            raise ValueError(
                f"`num_tokens`, `context` and `num_blocks` must be at least 1; got {num_tokens}, {context} and {num_blocks}."
            )
        self.context = context
        self.tokens = nn.Embedding(num_tokens, shape.width)
        self.places = positions.added(context, shape.width)
        self.dropout = nn.Dropout(shape.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(shape, positions=positions, max_length=context, causal=True) for _ in range(num_blocks)
        )
        self.norm = shape.norm.features(shape.width, causal=True) if shape.norm_first else nn.Identity()
        self.head = nn.Linear(shape.width, num_tokens, bias=False)
        if tied:
            self.head.weight = self.tokens.weight
        self._start(num_blocks)

    def forward(self, tokens_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """The logits of the token after each."""
        return self._pass(tokens_BT, None)

    def start(self, batch: int) -> list[KeyValueCache]:
        """The state before the first token of B sequences."""
        return [cast(TransformerBlock, block).cache(batch, self.context) for block in self.blocks]

    def advance(
        self, tokens_BT: Int[Tensor, "B T"], state: list[KeyValueCache]
    ) -> tuple[Float[Tensor, "B T V"], list[KeyValueCache]]:
        """The logits after some more tokens, and the state after them, which is the one given, added to."""
        return self._pass(tokens_BT, state), state

    def _pass(self, tokens_BT: Tensor, caches: list[KeyValueCache] | None) -> Tensor:
        start = 0 if caches is None else caches[0].length
        if tokens_BT.ndim != 2 or start + tokens_BT.shape[1] > self.context:
            raise ValueError(
                f"the network takes sequences of at most {self.context} tokens, (B, T); got the shape {tuple(tokens_BT.shape)} "
                f"after {start} tokens. Cut them, or build it with a longer `context`."
            )
        x_BTD = self.dropout(self.places(self.tokens(tokens_BT), start))
        for number, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, cache=None if caches is None else caches[number])
        return self.head(self.norm(x_BTD))

    def _start(self, num_blocks: int) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            block = cast(TransformerBlock, block)
            for last in (block.attention.mix, cast(nn.Linear, block.feed_forward[-1])):
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * num_blocks))
