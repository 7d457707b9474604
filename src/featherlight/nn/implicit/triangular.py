"""Strictly upper block triangular models: states by substitution, a feed-forward net in another order.

Block k of the states depends on later blocks only, so x = phi(A x + b) is found exactly in one pass from the last block to
the first, with ordinary backpropagation.

Legend of shapes: N samples, S numbers of a state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from featherlight.nn.implicit.activations import Activation


@dataclass(frozen=True, kw_only=True)
class StrictlyTriangular:
    """A is nought on and below its diagonal blocks; well posed whatever its size, without solver or projection.

    The free parameters are the blocks' rows right of the diagonal, so there are none that do nothing; the last has none.

    Args:
        block_sizes: rows of each block, from the first, whose states depend on all others, to the last.

    Source: El Ghaoui et al. 2021, section 3.1; Gautam, Anderson, Sojoudi, El Ghaoui 2022.
    """

    block_sizes: Sequence[int]

    def __post_init__(self) -> None:
        if not self.block_sizes or any(size < 1 for size in self.block_sizes):
            raise ValueError(
                f"`block_sizes` must be one size of at least 1 a block; got {list(self.block_sizes)}. Leave empty blocks out."
            )
        object.__setattr__(self, "block_sizes", tuple(self.block_sizes))

    def initial(self, state_dim: int) -> dict[str, Tensor]:
        """As linear layers from all later blocks."""
        self._check(state_dim)
        return {
            _name(k): torch.empty(stop - start, state_dim - stop).uniform_(-1, 1) * max(1, state_dim - stop) ** -0.5
            for k, (start, stop) in enumerate(self._rows())
        }

    def parameters_of(self, a: Tensor) -> dict[str, Tensor]:
        """The blocks of `a`; raises ValueError where something else is not 0."""
        self._check(len(a))
        rest = a.clone()
        for start, stop in self._rows():
            rest[start:stop, stop:] = 0
        if bool(rest.any()):
            row, column = torch.nonzero(rest)[0].tolist()
            raise ValueError(
                f"A is not strictly upper block triangular for blocks of {list(self.block_sizes)}: entry ({row}, {column}) is "
                f"{float(rest[row, column]):.4g}, and all on and below the diagonal blocks must be 0. Reorder the states, choose "
                "other blocks, or use RowProjection()."
            )
        return {_name(k): a[start:stop, stop:].clone() for k, (start, stop) in enumerate(self._rows())}

    def matrix(self, free: Mapping[str, Tensor]) -> Tensor:
        """A, (S, S), with its zeros."""
        rows = enumerate(self._rows())
        return torch.cat([torch.nn.functional.pad(free[_name(k)], (stop, 0)) for k, (_, stop) in rows])

    def states(self, free: Mapping[str, Tensor], activation: Activation, b: Tensor) -> Tensor:
        """x of x = phi(A x + b), exactly.

        Args:
            free: the blocks.
            activation: phi.
            b: (N, S).

        Cost: half of one product of (N, S) with (S, S), and N S numbers copied for each two blocks.
        """
        parts = b.split(self.block_sizes, dim=-1)
        later = b[:, :0]
        for k in range(len(parts) - 1, -1, -1):
            block = activation(torch.addmm(parts[k], later, free[_name(k)].mT))
            later = torch.cat((block, later), -1)
        return later

    def _rows(self) -> list[tuple[int, int]]:
        ends = list(accumulate(self.block_sizes))
        return list(zip([0, *ends], ends, strict=False))

    def _check(self, state_dim: int) -> None:
        if sum(self.block_sizes) != state_dim:
            raise ValueError(
                f"`block_sizes` {list(self.block_sizes)} sum to {sum(self.block_sizes)}, but there are {state_dim} states."
            )


def _name(block: int) -> str:
    return f"block_{block}"
