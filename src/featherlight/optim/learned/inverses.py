"""Inverse metrics of one tensor: what a gradient is multiplied with, and the metric that the kernels are handed.

Legend: N entries of a tensor, R rows and C columns of it as a matrix.
A program `min m'd + d'Md/2` without a constraint has the solution `d = -P m` with `P = inv(M)`, so a rule keeps P and M is
formed only where a constraint or a penalty needs it.
"""

from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor


class Inverse(Protocol):
    """The inverse metric of one tensor, symmetric and positive definite."""

    def times(self, vector: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """`P @ vector`, of the vector's shape."""
        ...


class DiagonalInverse(NamedTuple):
    """A factor for each entry, or one for all.

    Attributes:
        diagonal: positive; broadcasts to the tensor's shape.
    """

    diagonal: Tensor

    def times(self, vector: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """`P @ vector`, of the vector's shape."""
        return self.diagonal * vector


class KroneckerInverse(NamedTuple):
    """`X -> left X right` for a tensor seen as a matrix (its first axis by all others).

    Attributes:
        left_RR: symmetric and positive definite; None is the identity.
        right_CC: likewise.
    """

    left_RR: Tensor | None
    right_CC: Tensor | None

    def times(self, vector: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """`left @ vector @ right`, of the vector's shape."""
        matrix = vector.reshape(vector.shape[0], -1)
        matrix = matrix if self.left_RR is None else self.left_RR @ matrix
        matrix = matrix if self.right_CC is None else matrix @ self.right_CC
        return matrix.reshape(vector.shape)


class FullInverse(NamedTuple):
    """A dense matrix for the tensor's entries in order.

    Attributes:
        matrix_NN: symmetric and positive definite.
    """

    matrix_NN: Tensor

    def times(self, vector: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """`P @ vector`, of the vector's shape."""
        return torch.mv(self.matrix_NN, vector.reshape(-1)).reshape(vector.shape)
