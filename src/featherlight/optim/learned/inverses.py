"""Inverse metrics of one tensor: what a gradient is multiplied with, and the metric that the kernels are handed.

Legend: N entries of a tensor, R rows and C columns of it as a matrix.
A program `min m'd + d'Md/2` without a constraint has the solution `d = -P m` with `P = inv(M)`, so a rule keeps P and M is
formed only where a constraint or a penalty needs it.
"""

from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from featherlight.solvers.convex import DiagonalMetric, EntropyMirror, FullMetric, KroneckerMetric


class Inverse(Protocol):
    """The inverse metric of one tensor, symmetric and positive definite."""

    def times(self, vector: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """`P @ vector`, of the vector's shape."""
        ...

    def metric(self, shape: torch.Size) -> DiagonalMetric | KroneckerMetric | FullMetric:
        """Its inverse, for a tensor of this shape."""
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

    def metric(self, shape: torch.Size) -> DiagonalMetric:
        """Its inverse, for the entries in order."""
        return DiagonalMetric(self.diagonal.reciprocal().expand(shape).reshape(-1))


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
        matrix = vector.reshape(_sides(vector.shape))
        matrix = matrix if self.left_RR is None else self.left_RR @ matrix
        matrix = matrix if self.right_CC is None else matrix @ self.right_CC
        return matrix.reshape(vector.shape)

    def metric(self, shape: torch.Size) -> KroneckerMetric:
        """Its inverse, for the tensor as a matrix."""
        sides = _sides(shape)
        given = next(one for one in self if one is not None)
        return KroneckerMetric(
            *(_inverted(one, n, given) for one, n in zip((self.left_RR, self.right_CC), sides, strict=True))
        )


class FullInverse(NamedTuple):
    """A dense matrix for the tensor's entries in order.

    Attributes:
        matrix_NN: symmetric and positive definite.
    """

    matrix_NN: Tensor

    def times(self, vector: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """`P @ vector`, of the vector's shape."""
        return torch.mv(self.matrix_NN, vector.reshape(-1)).reshape(vector.shape)

    def metric(self, shape: torch.Size) -> FullMetric:
        """Its inverse, for the entries in order."""
        return FullMetric(torch.linalg.inv(self.matrix_NN))


class MirrorInverse(NamedTuple):
    """Not a quadratic metric but the relative entropy to the point, over a step size: exponentiated gradient.

    Attributes:
        size: positive, ().
    """

    size: Tensor

    def times(self, vector: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The vector over the size; what a step is depends on the point."""
        return self.size * vector

    def mirror(self) -> EntropyMirror:
        """For the kernel."""
        return EntropyMirror(self.size.reciprocal())


def _inverted(factor: Tensor | None, size: int, other: Tensor) -> Tensor:
    return torch.eye(size, dtype=other.dtype, device=other.device) if factor is None else torch.linalg.inv(factor)


def _sides(shape: torch.Size) -> tuple[int, int]:
    return (shape[0], shape[1:].numel()) if shape else (1, 1)
