"""Quadratic forms 1/2 d' H d, each with its product, its inverse and its inverse on a part of the coordinates.

Legend of shapes: B batch axes (any number; they broadcast), N coordinates, R factors, P and Q rows and columns, K columns.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from featherlight.solvers.convex.linear import product, solve_free, solve_kronecker, symmetric


@dataclass(frozen=True, eq=False)
class DiagonalMetric:
    """H = diag(diagonal).

    Args:
        diagonal_N: (B, N), above 0.
    """

    diagonal_N: Tensor
    event_ndim: ClassVar[int] = 1
    """Sizes of a step without the batch."""
    tensor_ndims: ClassVar[tuple[int, ...]] = (1,)
    """Sizes of each tensor without the batch."""

    def __post_init__(self) -> None:
        _check("diagonal_N", self.diagonal_N, 1)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it is made of, in the order of its arguments."""
        return (self.diagonal_N,)

    @property
    def event_shape(self) -> torch.Size:
        """Of one element's step."""
        return self.diagonal_N.shape[-1:]

    @property
    def batch_shape(self) -> torch.Size:
        """Batch axes of the metric itself."""
        return self.diagonal_N.shape[:-1]

    def apply(self, x_N: Tensor) -> Tensor:
        """H x."""
        return self.diagonal_N * x_N

    def solve(self, x_N: Tensor) -> Tensor:
        """H^-1 x."""
        return x_N / self.diagonal_N

    def solve_columns(self, x_NK: Tensor, free_N: Tensor | None = None) -> Tensor:
        """Columns s that are 0 outside of `free_N`, with H s = x inside; None is all coordinates."""
        solved = x_NK / self.diagonal_N[..., None]
        return solved if free_N is None else torch.where(free_N[..., None], solved, 0)

    def is_positive(self) -> Tensor:
        """Of each element, bool: whether H is positive definite."""
        return (self.diagonal_N > 0).all(-1)

    def replaced(self, kept: Tensor) -> "DiagonalMetric":
        """With the identity, without a graph, where `kept` is not."""
        return DiagonalMetric(torch.where(kept[..., None], self.diagonal_N, 1))

    def shifted(self, by: Tensor) -> "DiagonalMetric":
        """H + by I."""
        return DiagonalMetric(self.diagonal_N + by[..., None])


@dataclass(frozen=True, eq=False)
class LowRankMetric:
    """H = diag(diagonal) + factors factors'.

    Args:
        diagonal_N: (B, N), above 0.
        factors_NR: (B, N, R), with few columns R.

    Cost: O(N R^2 + R^3) a solve.
    """

    diagonal_N: Tensor
    factors_NR: Tensor
    event_ndim: ClassVar[int] = 1
    """Sizes of a step without the batch."""
    tensor_ndims: ClassVar[tuple[int, ...]] = (1, 2)
    """Sizes of each tensor without the batch."""

    def __post_init__(self) -> None:
        _check("diagonal_N", self.diagonal_N, 1)
        _check("factors_NR", self.factors_NR, 2)
        if self.factors_NR.shape[-2] != self.diagonal_N.shape[-1]:
            raise ValueError(
                f"`factors_NR` must have a row for each of the {self.diagonal_N.shape[-1]} numbers of the diagonal; got shape "
                f"{tuple(self.factors_NR.shape)}."
            )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it is made of, in the order of its arguments."""
        return self.diagonal_N, self.factors_NR

    @property
    def event_shape(self) -> torch.Size:
        """Of one element's step."""
        return self.diagonal_N.shape[-1:]

    @property
    def batch_shape(self) -> torch.Size:
        """Batch axes of the metric itself."""
        return torch.broadcast_shapes(self.diagonal_N.shape[:-1], self.factors_NR.shape[:-2])

    def apply(self, x_N: Tensor) -> Tensor:
        """H x."""
        inner_R = (self.factors_NR * x_N[..., None]).sum(-2)
        return self.diagonal_N * x_N + (self.factors_NR * inner_R[..., None, :]).sum(-1)

    def solve(self, x_N: Tensor) -> Tensor:
        """H^-1 x."""
        return self.solve_columns(x_N[..., None])[..., 0]

    def solve_columns(self, x_NK: Tensor, free_N: Tensor | None = None) -> Tensor:
        """Columns s that are 0 outside of `free_N`, with H s = x inside; by the formula of Woodbury."""
        inverse_N = self.diagonal_N.reciprocal()
        inverse_N = inverse_N if free_N is None else torch.where(free_N, inverse_N, 0)
        scaled_NR = inverse_N[..., None] * self.factors_NR
        aligned = (0, 0, 0, -scaled_NR.shape[-2] % 8)
        inner_RR = pad(self.factors_NR, aligned).mT @ pad(scaled_NR, aligned)
        inner_RR = symmetric(inner_RR) + torch.eye(inner_RR.shape[-1], dtype=inner_RR.dtype, device=inner_RR.device)
        plain_NK = inverse_N[..., None] * x_NK
        inner_RK = solve_free(inner_RR, product(self.factors_NR.mT, plain_NK), None)
        return plain_NK - product(scaled_NR, inner_RK)

    def is_positive(self) -> Tensor:
        """Of each element, bool: whether the diagonal is above 0, which makes H positive definite."""
        return (self.diagonal_N > 0).all(-1).expand(self.batch_shape)

    def replaced(self, kept: Tensor) -> "LowRankMetric":
        """With the identity, without a graph, where `kept` is not."""
        diagonal_N = torch.where(kept[..., None], self.diagonal_N, 1)
        return LowRankMetric(diagonal_N, torch.where(kept[..., None, None], self.factors_NR, 0))

    def shifted(self, by: Tensor) -> "LowRankMetric":
        """H + by I."""
        return LowRankMetric(self.diagonal_N + by[..., None], self.factors_NR)


@dataclass(frozen=True, eq=False)
class FullMetric:
    """H = the symmetric part of a matrix, which alone the quadratic form depends on.

    Args:
        matrix_NN: (B, N, N), positive definite.

    Cost: O(N^3) a solve.
    """

    matrix_NN: Tensor
    event_ndim: ClassVar[int] = 1
    """Sizes of a step without the batch."""
    tensor_ndims: ClassVar[tuple[int, ...]] = (2,)
    """Sizes of each tensor without the batch."""

    def __post_init__(self) -> None:
        _check("matrix_NN", self.matrix_NN, 2)
        _check_square("matrix_NN", self.matrix_NN)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it is made of, in the order of its arguments."""
        return (self.matrix_NN,)

    @property
    def event_shape(self) -> torch.Size:
        """Of one element's step."""
        return self.matrix_NN.shape[-1:]

    @property
    def batch_shape(self) -> torch.Size:
        """Batch axes of the metric itself."""
        return self.matrix_NN.shape[:-2]

    def apply(self, x_N: Tensor) -> Tensor:
        """H x."""
        return (symmetric(self.matrix_NN) * x_N[..., None, :]).sum(-1)

    def solve(self, x_N: Tensor) -> Tensor:
        """H^-1 x."""
        return self.solve_columns(x_N[..., None])[..., 0]

    def solve_columns(self, x_NK: Tensor, free_N: Tensor | None = None) -> Tensor:
        """Columns s that are 0 outside of `free_N`, with H s = x inside; its derivatives of any order solve with H too."""
        return solve_free(symmetric(self.matrix_NN), x_NK, free_N)

    def is_positive(self) -> Tensor:
        """Of each element, bool: whether H has a Cholesky factor."""
        return torch.linalg.cholesky_ex(symmetric(self.matrix_NN.detach())).info == 0

    def replaced(self, kept: Tensor) -> "FullMetric":
        """With the identity, without a graph, where `kept` is not."""
        return FullMetric(_or_identity(kept, self.matrix_NN))

    def shifted(self, by: Tensor) -> "FullMetric":
        """H + by I."""
        eye_NN = torch.eye(self.matrix_NN.shape[-1], dtype=by.dtype, device=by.device)
        return FullMetric(self.matrix_NN + by[..., None, None] * eye_NN)


@dataclass(frozen=True, eq=False)
class KroneckerMetric:
    """Of matrices X: H X = left X right, with the symmetric parts of both.

    Args:
        left_PP: (B, P, P), positive definite.
        right_QQ: (B, Q, Q), positive definite.

    Cost: O(P^3 + Q^3) a solve.
    """

    left_PP: Tensor
    right_QQ: Tensor
    event_ndim: ClassVar[int] = 2
    """Sizes of a step without the batch."""
    tensor_ndims: ClassVar[tuple[int, ...]] = (2, 2)
    """Sizes of each tensor without the batch."""

    def __post_init__(self) -> None:
        for name, value in (("left_PP", self.left_PP), ("right_QQ", self.right_QQ)):
            _check(name, value, 2)
            _check_square(name, value)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it is made of, in the order of its arguments."""
        return self.left_PP, self.right_QQ

    @property
    def event_shape(self) -> torch.Size:
        """Of one element's step."""
        return torch.Size((self.left_PP.shape[-1], self.right_QQ.shape[-1]))

    @property
    def batch_shape(self) -> torch.Size:
        """Batch axes of the metric itself."""
        return torch.broadcast_shapes(self.left_PP.shape[:-2], self.right_QQ.shape[:-2])

    def apply(self, x_PQ: Tensor) -> Tensor:
        """H x."""
        return symmetric(self.left_PP) @ x_PQ @ symmetric(self.right_QQ)

    def solve(self, x_PQ: Tensor) -> Tensor:
        """H^-1 x."""
        half_PQ = solve_free(symmetric(self.left_PP), x_PQ, None)
        return solve_free(symmetric(self.right_QQ), half_PQ.mT, None).mT

    def solve_shifted(self, x_PQ: Tensor, shift: Tensor) -> Tensor:
        """(H + shift I)^-1 x."""
        return solve_kronecker(symmetric(self.left_PP), symmetric(self.right_QQ), shift, x_PQ)

    def is_positive(self) -> Tensor:
        """Of each element, bool: whether both factors are positive definite."""
        left = torch.linalg.cholesky_ex(symmetric(self.left_PP.detach())).info == 0
        return left & (torch.linalg.cholesky_ex(symmetric(self.right_QQ.detach())).info == 0)

    def replaced(self, kept: Tensor) -> "KroneckerMetric":
        """With the identity, without a graph, where `kept` is not."""
        return KroneckerMetric(_or_identity(kept, self.left_PP), _or_identity(kept, self.right_QQ))

    def as_full(self) -> FullMetric:
        """The same on the flattened matrices: P Q coordinates, for constraints that need a matrix. Memory: (P Q)^2."""
        joined = self.left_PP[..., :, None, :, None] * self.right_QQ[..., None, :, None, :]
        size = self.event_shape.numel()
        return FullMetric(joined.reshape(*joined.shape[:-4], size, size))


Metric = DiagonalMetric | LowRankMetric | FullMetric | KroneckerMetric
"""A quadratic form."""
VectorMetric = DiagonalMetric | LowRankMetric | FullMetric
"""A quadratic form of vectors."""


def _or_identity(kept: Tensor, matrix_NN: Tensor) -> Tensor:
    eye_NN = torch.eye(matrix_NN.shape[-1], dtype=matrix_NN.dtype, device=matrix_NN.device)
    return torch.where(kept[..., None, None], matrix_NN, eye_NN)


def _check(name: str, value: Tensor, ndim: int) -> None:
    if not value.is_floating_point():
        raise ValueError(f"`{name}` must hold floating-point numbers; got {value.dtype}. Convert with `.float()`.")
    if value.ndim < ndim:
        raise ValueError(f"`{name}` needs at least {ndim} axes, as its name says; got shape {tuple(value.shape)}.")


def _check_square(name: str, value: Tensor) -> None:
    if value.shape[-1] != value.shape[-2]:
        raise ValueError(f"`{name}` must be square matrices; got shape {tuple(value.shape)}.")
