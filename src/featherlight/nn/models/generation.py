"""New tokens from any model of sequences, one at a time, each token passing through it once.

Legend of shapes: B sequences, T positions, V tokens there are.
"""

from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor


class SequenceModel(Protocol):
    """A model that is told tokens in turn: `Gpt`, `RecurrentLanguageModel`."""

    @property
    def context(self) -> int | None:
        """The most tokens that it can be told; None is no limit."""
        ...

    def start(self, batch: int) -> Any:
        """The state before the first token of B sequences."""
        ...

    def advance(self, tokens_BT: Int[Tensor, "B T"], state: Any) -> tuple[Float[Tensor, "B T V"], Any]:
        """The logits of the token after each of some more tokens, and the state after them."""
        ...


@torch.no_grad()
def generate(
    model: SequenceModel,
    prompt_BT: Int[Tensor, "B T"],
    count: int,
    *,
    generator: torch.Generator,
    temperature: float = 1.0,
    top: int | None = None,
) -> Int[Tensor, "B count"]:
    """Draws tokens after a prompt.

    Args:
        model: in evaluation mode.
        prompt_BT: at least one token each.
        count: how many are drawn. Where the model's context is full, it is told the last half of it anew.
        generator: of the draws, on the CPU.
        temperature: divides the logits; below 1 the likely tokens become likelier, and 0 takes the likeliest.
        top: only so many of the likeliest tokens are drawn from; None is all.

    Raises:
        ValueError: an empty prompt, or a number out of its range.

    Cost: a pass of one token for each.
    """
    if prompt_BT.ndim != 2 or not prompt_BT.shape[1]:
        raise ValueError(f"`prompt` must be (B, T) with at least one token; got the shape {tuple(prompt_BT.shape)}.")
    if count < 0 or temperature < 0 or (top is not None and top < 1):
        raise ValueError(
            "`count` and `temperature` must be at least 0 and `top` at least 1 (or None for all tokens); got "
            f"{count}, {temperature} and {top}."
        )
    tokens_BT, state, new_BT = prompt_BT, model.start(len(prompt_BT)), prompt_BT
    told = 0
    for _ in range(count):
        if model.context is not None and told + new_BT.shape[1] > model.context:
            new_BT = tokens_BT[:, -max(1, model.context // 2) :]
            state, told = model.start(len(prompt_BT)), 0
        logits_BTV, state = model.advance(new_BT, state)
        told += new_BT.shape[1]
        new_BT = draw(logits_BTV[:, -1], generator=generator, temperature=temperature, top=top)[:, None]
        tokens_BT = torch.cat([tokens_BT, new_BT], 1)
    return tokens_BT[:, prompt_BT.shape[1] :]


def draw(
    logits_BV: Float[Tensor, "B V"], *, generator: torch.Generator, temperature: float = 1.0, top: int | None = None
) -> Int[Tensor, "B"]:
    """A token for each row; arguments as for `generate`."""
    if not temperature:
        return logits_BV.argmax(-1)
    scaled = logits_BV.float().cpu() / temperature
    if top is not None and top < scaled.shape[1]:
        scaled = scaled.masked_fill(scaled < scaled.topk(top).values[:, -1:], float("-inf"))
    return torch.multinomial(scaled.softmax(-1), 1, generator=generator)[:, 0].to(logits_BV.device)
