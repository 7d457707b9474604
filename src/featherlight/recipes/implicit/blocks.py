"""What sequential training is made of: features that are frozen, a block that is trained on them, and what came of it.

The features of a row are its inputs (a constant one among them) and the states of all blocks so far, the first block's first.
Each block takes all of them as inputs, and so does the read-out; A is strictly upper block triangular once the blocks are
put in the opposite order.

Legend of shapes: N rows, K features of the inputs, F features, H states of a block, Y outputs, S states.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor


class BlockStatus(IntEnum):
    """What a block did to the regularised training loss."""

    FELL = 0
    """It fell."""
    UNCHANGED = 1
    """Nothing found lowers it: the block's states are 0."""
    ROSE = 2
    """It rose by more than rounding, which says that the problem is too badly scaled for its solves."""


@dataclass(frozen=True, kw_only=True)
class BlockOutcome:
    """A block that was trained.

    Attributes:
        size: H.
        before: the regularised training loss without the block, a row's mean.
        after: with it, and the best read-out.
        steps: of the search for the block.
        converged: whether the search met its tolerance; always False of a fixed number of steps.
        status: what the block did.
    """

    size: int
    before: float
    after: float
    steps: int
    converged: bool
    status: BlockStatus


class Blocks(Protocol):
    """A loss, with the features so far; what differs between squared error and cross-entropy."""

    @property
    def hidden(self) -> Sequence[Tensor]:
        """(H, F) of each block."""
        ...

    @property
    def read_out(self) -> Tensor:
        """(F, Y)."""
        ...

    @property
    def loss(self) -> float:
        """The regularised training loss, a row's mean."""
        ...

    def grow(self, size: int, generator: torch.Generator) -> BlockOutcome:
        """Trains one block more, with the earlier ones frozen, and then the whole read-out."""
        ...

    def restore(self, hidden: Sequence[Tensor], read_out: Tensor) -> None:
        """Brings the features to those of blocks that were trained before."""
        ...


def outcome(*, size: int, before: float, after: float, steps: int, converged: bool, rounding: float) -> BlockOutcome:
    """The outcome with its status; `rounding` is what the losses may be off by."""
    status = BlockStatus.FELL if after < before - rounding else BlockStatus.UNCHANGED
    status = BlockStatus.ROSE if after > before + rounding else status
    return BlockOutcome(size=size, before=before, after=after, steps=steps, converged=converged, status=status)


def matrices(hidden: Sequence[Tensor], read_out: Tensor, lift_KI: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A, B, C, D of trained blocks, the states of the last block first.

    Args:
        hidden: (H, F) of each block, from the first.
        read_out: (F, Y).
        lift_KI: from inputs to their features.
    """
    num_lifted, sizes = len(lift_KI), [len(weights) for weights in hidden]
    a = read_out.new_zeros(sum(sizes), sum(sizes))
    place = _places(sizes)
    for k, weights in enumerate(hidden):
        for j in range(k):
            start = num_lifted + sum(sizes[:j])
            a[place[k], place[j]] = weights[:, start : start + sizes[j]]
    b = torch.cat([weights[:, :num_lifted] @ lift_KI for weights in reversed(hidden)])
    of_states = read_out[num_lifted:].split(sizes)
    return a, b, torch.cat(of_states[::-1]).mT.contiguous(), read_out[:num_lifted].mT @ lift_KI


def _places(sizes: Sequence[int]) -> list[slice]:
    total, ends = sum(sizes), torch.tensor(sizes).cumsum(0).tolist()
    return [slice(total - end, total - end + size) for end, size in zip(ends, sizes, strict=True)]
