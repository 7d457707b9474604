"""A small causal Transformer over the codes of a vector quantizer: how likely they are, and new ones.

Legend of shapes: B sequences, T positions, S slots of a position (stages, or codes that are mixed), L = T * S tokens,
D features, H heads, V codes of a slot.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from featherlight.nn.models.attention import BlockShape, TransformerBlock


class CodePrior(nn.Module):
    """A distribution over tables of codes, one token after the other: position by position, and slot by slot in each.

    Args:
        slots: V of each slot of a position: how many codes there are to choose from.
        num_positions: T.
        width: D.
        num_blocks: attention and feed-forward layers.
        num_heads: H, a divisor of `width`.
        dropout: share of features that is dropped in training.

    Attributes:
        settings: the arguments by name, JSON; `CodePrior(**settings)` is the same network with fresh weights.
        slots: as given.
        num_positions: as given.
        first_of_slot: (S,), where the codes of each slot begin in `codes`.
        start: what stands before the first token, (D,).
        codes: what each code of each slot is told as.
        places: what is added at each of L places, (L, D).
        blocks: attention and feed-forward layers.
        norm: of what they return.
        heads: from it to the logits of each slot.

    Raises:
        ValueError: numbers below 1, or heads that do not divide the width.

    Source: Radford et al. 2019 (GPT-2) for the blocks; Esser, Rombach and Ommer 2021, section 3.2, for its use over codes.
    Cost: O(L^2 D) time for each sequence and block.
    """

    first_of_slot: Tensor

    def __init__(
        self,
        *,
        slots: Sequence[int],
        num_positions: int,
        width: int = 128,
        num_blocks: int = 3,
        num_heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not slots or min(*slots, num_positions, width, num_blocks, num_heads) < 1:
            raise ValueError(
                "`slots`, `num_positions`, `width`, `num_blocks` and `num_heads` must be at least 1; got "
                f"{list(slots)}, {num_positions}, {width}, {num_blocks} and {num_heads}."
            )
        if width % num_heads:
            raise ValueError(f"`num_heads` must divide `width`; got {num_heads} heads for a width of {width}.")
        self.settings: dict[str, Any] = {
            "slots": list(slots),
            "num_positions": num_positions,
            "width": width,
            "num_blocks": num_blocks,
            "num_heads": num_heads,
            "dropout": dropout,
        }
        self.slots = tuple(slots)
        self.num_positions = num_positions
        self.register_buffer("first_of_slot", torch.tensor([0, *accumulate(slots)][:-1]), persistent=False)
        self.start = nn.Parameter(0.02 * torch.randn(width))
        self.codes = nn.Embedding(sum(slots), width)
        self.places = nn.Parameter(0.02 * torch.randn(num_positions * len(slots), width))
        nn.init.normal_(self.codes.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        shape = BlockShape(width=width, num_heads=num_heads, dropout=dropout, bias=False)
        length = num_positions * len(slots)
        self.blocks = nn.ModuleList(TransformerBlock(shape, max_length=length, causal=True) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in slots)

    def forward(self, tokens_BTS: Int[Tensor, "B T S"]) -> list[Float[Tensor, "B T V"]]:
        """The logits of each slot, each from the tokens before it alone."""
        batch, positions, slots = self._checked(tokens_BTS)
        inputs_BLD = self.codes(tokens_BTS + self.first_of_slot).flatten(1, 2)
        inputs_BLD = torch.cat([self.start.expand(batch, 1, -1), inputs_BLD[:, :-1]], 1)
        x_BLD = self.dropout(inputs_BLD + self.places[: positions * slots])
        for block in self.blocks:
            x_BLD = block(x_BLD)
        x_BTSD = self.norm(x_BLD).unflatten(1, (positions, slots))
        return [head(x_BTSD[:, :, slot]) for slot, head in enumerate(self.heads)]

    def losses(self, tokens_BTS: Int[Tensor, "B T S"]) -> Float[Tensor, "B"]:
        """Negative log-likelihood of each sequence, in nats a position."""
        losses = torch.zeros(len(tokens_BTS), device=tokens_BTS.device)
        for slot, logits_BTV in enumerate(self(tokens_BTS)):
            one_BT = cross_entropy(logits_BTV.movedim(-1, 1).float(), tokens_BTS[:, :, slot], reduction="none")
            losses = losses + one_BT.mean(1)
        return losses

    @torch.no_grad()
    def sample(
        self, count: int, *, generator: torch.Generator, temperature: float = 1.0
    ) -> Int[Tensor, "count num_positions S"]:
        """New tables of codes.

        Args:
            count: how many.
            generator: of the draws, on the CPU.
            temperature: divides the logits; below 1 the likely codes become likelier.

        Raises:
            ValueError: a temperature that is not positive.

        Cost: keys and values are kept, so a token costs one pass of itself.
        """
        if not temperature > 0:
            raise ValueError(
                f"`temperature` must be positive; got {temperature}. Take a small one for the likeliest codes."
            )
        device, length = self.places.device, len(self.places)
        tokens_BL = torch.zeros(count, length, dtype=torch.int64, device=device)
        caches = [cast(TransformerBlock, block).cache(count, length) for block in self.blocks]
        x_BD = self.start.expand(count, -1)
        for number in range(length):
            slot = number % len(self.slots)
            x_B1D = (x_BD + self.places[number])[:, None]
            for block, cache in zip(self.blocks, caches, strict=True):
                x_B1D = block(x_B1D, cache=cache)
            logits_BV = self.heads[slot](self.norm(x_B1D[:, 0])).float() / temperature
            drawn = torch.multinomial(logits_BV.softmax(-1).cpu(), 1, generator=generator)[:, 0].to(device)
            tokens_BL[:, number] = drawn
            x_BD = self.codes(drawn + self.first_of_slot[slot])
        return tokens_BL.unflatten(1, (self.num_positions, len(self.slots)))

    def _checked(self, tokens_BTS: Tensor) -> tuple[int, int, int]:
        if tokens_BTS.ndim != 3 or tokens_BTS.shape[2] != len(self.slots) or tokens_BTS.shape[1] > self.num_positions:
            raise ValueError(
                f"`tokens` must have the shape (sequences, at most {self.num_positions} positions, {len(self.slots)} slots); "
                f"got {tuple(tokens_BTS.shape)}."
            )
        batch, positions, slots = tokens_BTS.shape
        return batch, positions, slots
