"""Implicit models with sparse matrices: x = phi(A x + B u + b), y = C x + D u + e.

Legend of shapes: S numbers of a state, I inputs, Y outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from featherlight.nn.implicit.activations import Activation
from featherlight.nn.implicit.convert.sparse import sparse


class StateBlock(NamedTuple):
    """States next to each other with one activation.

    Attributes:
        size: how many, at least 1.
        activation: phi of these states.
    """

    size: int
    activation: Activation


@dataclass(frozen=True, kw_only=True)
class ImplicitSystem:
    """An implicit model in sparse form, with its biases as vectors of their own.

    Args:
        a: (S, S), sparse COO or dense; kept as coalesced COO, like the other matrices.
        b: (S, I).
        c: (Y, S).
        d: (Y, I).
        state_bias: (S,).
        output_bias: (Y,).
        blocks: of states, from the first; their sizes sum to S.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    state_bias: Tensor
    output_bias: Tensor
    blocks: Sequence[StateBlock]

    def __post_init__(self) -> None:
        for name in ("a", "b", "c", "d"):
            matrix = getattr(self, name)
            object.__setattr__(self, name, matrix.coalesce() if matrix.layout == torch.sparse_coo else _entries(matrix))
        object.__setattr__(self, "blocks", tuple(self.blocks))
        states, inputs, outputs = self.a.shape[0], self.b.shape[-1], self.c.shape[0]
        wanted = ((states, states), (states, inputs), (outputs, states), (outputs, inputs), (states,), (outputs,))
        parts = (self.a, self.b, self.c, self.d, self.state_bias, self.output_bias)
        if tuple(tuple(part.shape) for part in parts) != wanted:
            raise ValueError(
                "a system has A (S, S), B (S, I), C (Y, S), D (Y, I) and biases (S,) and (Y,); got "
                f"{', '.join(str(tuple(part.shape)) for part in parts)}."
            )
        if len({part.dtype for part in parts}) > 1:
            raise ValueError(f"all parts of a system must have one dtype; got {[part.dtype for part in parts]}.")
        if sum(block.size for block in self.blocks) != states or any(block.size < 1 for block in self.blocks):
            raise ValueError(
                f"`blocks` must have sizes of at least 1 that sum to the {states} states; got "
                f"{[block.size for block in self.blocks]}."
            )

    @property
    def activation(self) -> Activation:
        """phi of all states, which acts on the last axis."""
        kinds = {block.activation for block in self.blocks}
        if len(kinds) == 1:
            return kinds.pop()
        return Activation(
            function=partial(_by_block, blocks=self.blocks, slope=False),
            slope=partial(_by_block, blocks=self.blocks, slope=True),
        )

    def dense(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A, B, C and D as dense matrices, for `ImplicitLayer.from_matrices` and certificates.

        The biases are one more column of B and D, so the inputs need a 1 at their end.

        Cost: S^2 numbers.
        """
        b = torch.cat((self.b.to_dense(), self.state_bias[:, None]), 1)
        d = torch.cat((self.d.to_dense(), self.output_bias[:, None]), 1)
        return self.a.to_dense(), b, self.c.to_dense(), d

    def reordered(self, order: Tensor, blocks: Sequence[StateBlock]) -> "ImplicitSystem":
        """The same model with its states in another order.

        Args:
            order: (S,), which state comes at each place.
            blocks: of the new order.
        """
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        return ImplicitSystem(
            a=_moved(self.a, place, place),
            b=_moved(self.b, place, None),
            c=_moved(self.c, None, place),
            d=self.d,
            state_bias=self.state_bias[order],
            output_bias=self.output_bias,
            blocks=blocks,
        )


def _by_block(x: Tensor, *, blocks: Sequence[StateBlock], slope: bool) -> Tensor:
    parts = x.split([block.size for block in blocks], -1)
    functions = [block.activation.slope if slope else block.activation for block in blocks]
    return torch.cat([f(part) for f, part in zip(functions, parts, strict=True)], -1)


def _moved(matrix: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    row, column = matrix.indices()
    row = row if rows is None else rows[row]
    column = column if columns is None else columns[column]
    return sparse(torch.stack((row, column)), matrix.values(), (matrix.shape[0], matrix.shape[1]))


def _entries(matrix: Tensor) -> Tensor:
    index = matrix.detach().nonzero().T
    return sparse(index, matrix.detach()[index[0], index[1]], (matrix.shape[0], matrix.shape[-1]))
