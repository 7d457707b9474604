"""Linear equations of a metric, differentiated by solving them again: no graph of a factorization is kept.

Legend of shapes: B batch axes, N coordinates, K columns, P and Q rows and columns of a matrix.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import pad

_ALIGNED = 8


def symmetric(matrix_NN: Tensor) -> Tensor:
    """(A + A') / 2."""
    return 0.5 * (matrix_NN + matrix_NN.mT)


def solve_free(matrix_NN: Tensor, x_NK: Tensor, free_N: Tensor | None) -> Tensor:
    """Columns s that are 0 outside of `free_N`, with matrix s = x inside.

    Args:
        matrix_NN: (B, N, N), symmetric positive definite.
        x_NK: (B, N, K).
        free_N: (B, N), bool; None is all.

    Cost: one Cholesky factorization, kept for the first backward; each further derivative takes one more.
    """
    if free_N is None:
        free_N = torch.ones(matrix_NN.shape[-1], dtype=torch.bool, device=matrix_NN.device)
    return _SolveFree.apply(matrix_NN, x_NK, free_N)[0]


def solve_kronecker(left_PP: Tensor, right_QQ: Tensor, shift: Tensor, x_PQ: Tensor) -> Tensor:
    """X of left X right + shift X = x, for symmetric positive definite matrices, by their eigenvectors."""
    return _SolveKronecker.apply(left_PP, right_QQ, shift, x_PQ)


def product(a_MN: Tensor, b_NK: Tensor) -> Tensor:
    """a b for few rows or columns, in an order of sums that does not depend on the place in the batch."""
    return (a_MN[..., :, :, None] * b_NK[..., None, :, :]).sum(-2)


def sum_to(x: Tensor, shape: torch.Size) -> Tensor:
    """The sum over axes that broadcasting added or widened."""
    return x if x.shape == shape else x.sum_to_size(shape)


class _SolveFree(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor, x: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        matrix, free_too = _padded(matrix, 2), _padded(free, 1)
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        both = free_too[..., :, None] & free_too[..., None, :]
        factor = torch.linalg.cholesky_ex(torch.where(both, matrix, eye)).L
        return _by_factor(factor, x, free), factor

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        matrix, x, free = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.shape = x.shape
        ctx.save_for_backward(matrix, free, *output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        matrix, free, solved, factor = ctx.saved_tensors
        again = torch.is_grad_enabled()
        w = _SolveFree.apply(matrix, gradient, free)[0] if again else _by_factor(factor, gradient, free)
        of_matrix = None
        if ctx.needs_input_grad[0]:
            of_matrix = -sum_to((w[..., :, None, :] * solved[..., None, :, :]).sum(-1), matrix.shape)
        return of_matrix, sum_to(w, ctx.shape), None


def _by_factor(factor: Tensor, x: Tensor, free: Tensor) -> Tensor:
    side = torch.where(free[..., None], x, 0)
    side = pad(side, (0, 0, 0, factor.shape[-1] - side.shape[-2]))
    batch = torch.broadcast_shapes(factor.shape[:-2], side.shape[:-2])
    side, factor = side.expand(*batch, *side.shape[-2:]), factor.expand(*batch, *factor.shape[-2:])
    return torch.cholesky_solve(side, factor)[..., : x.shape[-2], :]


def _padded(x: Tensor, ndim: int) -> Tensor:
    """With zeros up to a multiple of 8 coordinates: LAPACK's bits depend on where a matrix begins within 64 bytes."""
    return pad(x, (0, -x.shape[-1] % _ALIGNED) * ndim)


class _SolveKronecker(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(left: Tensor, right: Tensor, shift: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        (a, u), (b, v) = torch.linalg.eigh(left), torch.linalg.eigh(right)
        scale = a[..., :, None] * b[..., None, :] + shift[..., None, None]
        return u @ ((u.mT @ x @ v) / scale) @ v.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.shape = inputs[3].shape
        ctx.save_for_backward(*inputs[:3], output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        left, right, shift, solved = ctx.saved_tensors
        w = _SolveKronecker.apply(left, right, shift, gradient)
        of_left = -sum_to(w @ right @ solved.mT, left.shape)
        of_right = -sum_to(solved.mT @ left @ w, right.shape)
        of_shift = -sum_to((w * solved).sum((-2, -1)), shift.shape)
        return of_left, of_right, of_shift, sum_to(w, ctx.shape)
