"""The compiled kernels on torch tensors: when they can be used, and rows shared out among torch's threads.

Legend of shapes: N rows, F features, K codes, k slots of a row.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from featherlight.solvers.simplex_qp.pricing import Centred
from featherlight.solvers.simplex_qp.problem import SimplexProblem

_ROWS_A_THREAD = 64


@lru_cache
def kernels_installed() -> bool:
    """Whether numba is at hand, which the extra `kernels` brings."""
    return find_spec("numba") is not None


def use_kernels(x: Tensor) -> bool:
    """Whether rows like these go through the compiled kernels, which no graph can be traced through."""
    return not torch.compiler.is_compiling() and x.device.type == "cpu" and kernels_installed()


def solve_compiled(
    problem: SimplexProblem, centred: Centred, *, width: int, num_steps: int, moves: int, certify: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Prior, indices, weights, status, KKT residual and gap of all rows; arguments as `kernel_numba.Rules` says."""
    from featherlight.solvers.simplex_qp import kernel_numba as kernel

    z_NF = centred.z_NF.contiguous()
    num_rows, dim = z_NF.shape
    dtype = z_NF.dtype
    code_KF = centred.codebook_KF.contiguous()
    length_K = code_KF.square().sum(1)
    strength = float(problem.strength)
    book = kernel.Codebook(
        code_KF.numpy(),
        code_KF.T.contiguous().numpy(),
        torch.where(centred.usable_K, 0.5 * length_K, torch.inf).numpy(),
        torch.where(centred.usable_K, 0.0, torch.inf).to(dtype).numpy(),
        strength,
        float(centred.scale) + strength,
        float(length_K.max().sqrt()),
        4 * torch.finfo(dtype).eps,
    )
    prior_N = torch.full((num_rows,), -1) if problem.prior_N is None else problem.prior_N.clone()
    found = (
        prior_N,
        torch.empty(num_rows, width, dtype=torch.int64),
        torch.empty(num_rows, width, dtype=dtype),
        torch.empty(num_rows, dtype=torch.int64),
        torch.empty(num_rows, dtype=dtype),
        torch.empty(num_rows, dtype=dtype),
    )
    out = kernel.Output(*(x.numpy() for x in found))
    rules = kernel.Rules(num_steps, moves, certify)
    usable_N = centred.usable_N.numpy()

    def some(first: int, last: int) -> None:
        room = kernel.make_room(width, dim, len(code_KF), out.weight_Nk.dtype)
        kernel.solve_rows(first, last, z_NF.numpy(), usable_N, book, room, rules, out)

    share_out(num_rows, _ROWS_A_THREAD, some)
    return found


def adjoint_compiled(
    z_NF: Tensor,
    codebook_KF: Tensor,
    strength: Tensor,
    prior_N: Tensor,
    indices_Nk: Tensor,
    weights_Nk: Tensor,
    grad_values_NF: Tensor,
    grad_weights_Nk: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `backward.adjoint`, without a graph. The sums over rows are in one order whatever the number of threads."""
    from featherlight.solvers.simplex_qp import kernel_adjoint as kernel

    tensors = (z_NF, codebook_KF, prior_N, indices_Nk, weights_Nk, grad_values_NF, grad_weights_Nk)
    saved = kernel.Saved(*(x.detach().contiguous().numpy() for x in tensors))
    num_rows, dim = z_NF.shape
    width = indices_Nk.shape[1]
    of_z_NF = torch.empty_like(z_NF, memory_format=torch.contiguous_format)
    of_strength_N = np.empty(num_rows)
    out = kernel.Output(
        of_z_NF.numpy(),
        np.empty((num_rows, width)),
        of_strength_N,
        np.empty((num_rows, dim)),
        np.empty((num_rows, dim)),
    )
    penalty = float(strength)
    share_out(
        num_rows,
        _ROWS_A_THREAD,
        lambda a, b: kernel.adjoint_rows(a, b, penalty, saved, kernel.make_room(width, dim), out),
    )
    of_code_KF = np.zeros(saved.code_KF.shape)
    share_out(dim, 8, lambda a, b: kernel.adjoint_codes(a, b, saved, out, of_code_KF))
    return (
        of_z_NF,
        torch.from_numpy(of_code_KF).to(z_NF.dtype),
        torch.tensor(of_strength_N.sum(), dtype=strength.dtype),
    )


def share_out(count: int, least: int, work: Callable[[int, int], None]) -> None:
    """Calls `work(first, last)` on parts of range(count) in as many threads as torch uses, of at least `least` each."""
    parts = max(1, min(torch.get_num_threads(), count // least))
    edges = [count * i // parts for i in range(parts + 1)]
    if parts == 1:
        work(0, count)
        return
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(work, edges[:-1], edges[1:]))
