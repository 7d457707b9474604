"""Which few codes to mix: pairs by an exact line search over the whole codebook, further codes one by one.

Everything is a fixed sequence of products and elementwise operations, so it compiles and exports.

Legend of shapes: N rows, n rows of a chunk, F features, K codes, k codes that a row may mix.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from featherlight.solvers.simplex_qp.support import Mixtures, Program, add, at_prior, move, refine

_CPU_CHUNK = 2**19  # prices that are held at a time, for each thread and buffer: they stay near its cache
_DEVICE_CHUNK = 2**26
_MOVES_A_CODE = 2
_BLOCK = 32


class Search(NamedTuple):
    """What is looked for.

    Attributes:
        num_mixed: k, from 2 on.
        num_starts: nearest codes that pairs are tried with; the best pair is kept.
        units: of the grid that the shares of pairs will be rounded to; None if they are not.
    """

    num_mixed: int
    num_starts: int
    units: int | None = None


class _Point(NamedTuple):
    """Where a line search starts.

    Attributes:
        values_nF: of the mixture p that a row has so far.
        squares_n: sum of the squares of its shares.
        at_prior_n: share of the prior code.
        used_nk: the codes in it; some of them may be named twice.
    """

    values_nF: Float[Tensor, "n F"]
    squares_n: Float[Tensor, "n"]
    at_prior_n: Float[Tensor, "n"]
    used_nk: Int[Tensor, "n k"]


class _Line(NamedTuple):
    """The best line from a point to a code.

    Attributes:
        code_n: where it goes.
        step_n: how far, 0 to 1.
        gain_n: by how much the objective falls, with a step on the grid if there is one.
    """

    code_n: Int[Tensor, "n"]
    step_n: Float[Tensor, "n"]
    gain_n: Float[Tensor, "n"]


def search_mixtures(
    z_NF: Float[Tensor, "N F"], codebook_KF: Float[Tensor, "K F"], strength: Float[Tensor, ""], search: Search
) -> tuple[Int[Tensor, "N"], Int[Tensor, "N k"], Float[Tensor, "N k"]]:
    """Mixtures of at most k codes with a low objective ||z - C' p||^2 + strength ||p - e_nearest||^2, without gradient.

    Args:
        z_NF: float32 or float64.
        codebook_KF: same dtype.
        strength: above 0, same dtype.
        search: what is looked for.

    Returns:
        The nearest code of each row; codes in order of falling share, -1 where fewer are used; and the shares, which are
        the best ones for these codes (not rounded to a grid).

    Cost: 1 + 2 (num_starts + k - 2) products of rows and codes, and some passes over them, in pieces that fit a cache.
    A pair is the best one with any of `num_starts` nearest codes. Fully corrective Frank-Wolfe takes the code of the
    steepest slope instead; the line search takes the one of the lowest end.
    """
    with torch.no_grad():
        mean_F = codebook_KF.mean(0)
        codes_KF = codebook_KF - mean_F
        program = Program(codes_KF, strength, codes_KF.square().sum(1).mean() + strength)
        squares_K = codes_KF.square().sum(1)
        z_NF = z_NF - mean_F
        if torch.compiler.is_compiling():
            return _search_rows(program, squares_K, z_NF, search)
        budget = _CPU_CHUNK * torch.get_num_threads() if z_NF.device.type == "cpu" else _DEVICE_CHUNK
        parts = [_search_rows(program, squares_K, z, search) for z in z_NF.split(max(budget // len(codes_KF), 16))]
        prior_N, indices_Nk, weights_Nk = (torch.cat(part) for part in zip(*parts, strict=True))
        return prior_N, indices_Nk, weights_Nk


def _search_rows(program: Program, squares_K: Tensor, z_nF: Tensor, search: Search) -> tuple[Tensor, Tensor, Tensor]:
    nearness_nK = torch.addmm(squares_K, z_nF, program.codebook_KF.T, beta=-0.5)
    prior_n, pairs_n2, steps_n = _best_pairs(program, squares_K, z_nF, nearness_nK, search)
    if search.num_mixed == 2:
        steps_n = _best_share(program, z_nF, prior_n, pairs_n2)
        return prior_n, *_largest_first(pairs_n2, torch.stack((1 - steps_n, steps_n), 1))
    slots = search.num_mixed
    state = at_prior(program, z_nF, pairs_n2[:, 0], slots)
    other_n1 = (pairs_n2[:, :1] != prior_n[:, None]).to(z_nF.dtype)
    state = state._replace(free_nk=state.free_nk - program.strength * other_n1 * state.by_sum_nk)
    state = _joined(program, state, z_nF, pairs_n2[:, 1], prior_n, steps_n > 0, moves=1)
    for size in range(2, slots):
        line = _best_line(program, squares_K, z_nF, prior_n, _point_of(program, state, prior_n), None)
        last = size == slots - 1
        moves = size if last else _MOVES_A_CODE
        state = _joined(program, state, z_nF, line.code_n, prior_n, line.gain_n > 0, moves=moves)
    state = refine(program, state, z_nF, prior_n)
    return prior_n, *_largest_first(state.indices_nk, state.weights_nk)


def _best_pairs(
    program: Program, squares_K: Tensor, z_nF: Tensor, nearness_nK: Tensor, search: Search
) -> tuple[Int[Tensor, "n"], Int[Tensor, "n 2"], Float[Tensor, "n"]]:
    """The nearest code, the best pair with one of the nearest codes, and the share of its second code."""
    num_starts = min(search.num_starts, len(squares_K))
    starts_ns = torch.topk(nearness_nK, num_starts, dim=1).indices
    prior_n = starts_ns[:, 0]
    best_n = first_n = second_n = step_n = None
    for first in starts_ns.unbind(1):
        values_nF = program.codebook_KF[first]
        at_prior_n = (first == prior_n).to(z_nF.dtype)
        point = _Point(values_nF, torch.ones_like(at_prior_n), at_prior_n, first[:, None])
        line = _best_line(program, squares_K, z_nF, prior_n, point, search.units)
        objective_n = (z_nF - values_nF).square().sum(1) + 2 * program.strength * (1 - at_prior_n) - line.gain_n
        if best_n is None or first_n is None or second_n is None or step_n is None:
            best_n, first_n, second_n, step_n = objective_n, first, line.code_n, line.step_n
            continue
        better_n = objective_n < best_n
        best_n = torch.minimum(objective_n, best_n)
        first_n = torch.where(better_n, first, first_n)
        second_n = torch.where(better_n, line.code_n, second_n)
        step_n = torch.where(better_n, line.step_n, step_n)
    assert first_n is not None
    assert second_n is not None
    assert step_n is not None
    return prior_n, torch.stack((first_n, second_n), 1), step_n


def _best_share(program: Program, z_nF: Tensor, prior_n: Tensor, pairs_n2: Tensor) -> Float[Tensor, "n"]:
    """The share of the second code of each pair, without rounding and without cancellation."""
    first_nF, second_nF = program.codebook_KF[pairs_n2].unbind(1)
    way_nF = second_nF - first_nF
    at_prior_n2 = (pairs_n2 == prior_n[:, None]).to(z_nF.dtype)
    slope_n = (way_nF * (z_nF - first_nF)).sum(1) + program.strength * (1 + at_prior_n2[:, 1] - at_prior_n2[:, 0])
    return (slope_n / (way_nF.square().sum(1) + 2 * program.strength)).clamp(0, 1)


def _best_line(
    program: Program, squares_K: Tensor, z_nF: Tensor, prior_n: Tensor, point: _Point, units: int | None
) -> _Line:
    """Of all lines from a mixture to a code that it does not use, the one along which the objective falls furthest.

    With step t to code j the objective falls by 2 t slope_j - t^2 curvature_j.
    """
    codes_KF, strength = program.codebook_KF, program.strength
    residual_nF = z_nF - point.values_nF
    level_n = strength * (point.squares_n - point.at_prior_n) - (residual_nF * point.values_nF).sum(1)
    slope_nK = torch.addmm(level_n[:, None], residual_nF, codes_KF.T)
    slope_nK.scatter_add_(1, prior_n[:, None], strength.expand(z_nF.shape[0], 1))
    bend_n = point.values_nF.square().sum(1) + strength * (1 + point.squares_n)
    curvature_nK = torch.addmm(squares_K, point.values_nF, codes_KF.T, alpha=-2).add_(bend_n[:, None])
    step_nK = (slope_nK / curvature_nK).clamp_(0, 1)
    if units is not None:
        step_nK.mul_(units).round_().div_(units)
    gain_nK = torch.addcmul(slope_nK, curvature_nK, step_nK, value=-0.5).mul_(step_nK)
    gain_nK.scatter_(1, point.used_nk, -1.0)
    code_n = _argmax(gain_nK)
    step_n = step_nK.gather(1, code_n[:, None])[:, 0]
    gain_n = 2 * gain_nK.gather(1, code_n[:, None])[:, 0]
    return _Line(code_n, step_n, gain_n)


def _point_of(program: Program, state: Mixtures, prior_n: Tensor) -> _Point:
    indices_nk, weights_nk = state.indices_nk, state.weights_nk
    values_nF = torch.bmm(weights_nk[:, None], program.codebook_KF[indices_nk.clamp(min=0)])[:, 0]
    at_prior_n = torch.where(indices_nk == prior_n[:, None], weights_nk, 0).sum(1)
    used_nk = torch.where(indices_nk >= 0, indices_nk, indices_nk.amax(1, keepdim=True))
    return _Point(values_nF, weights_nk.square().sum(1), at_prior_n, used_nk)


def _joined(
    program: Program,
    state: Mixtures,
    z_nF: Tensor,
    code_n: Tensor,
    prior_n: Tensor,
    wanted_n: Bool[Tensor, "n"],
    *,
    moves: int,
) -> Mixtures:
    """With one code more where it is wanted, and the shares that are best then."""
    state, _, _ = add(program, state, z_nF, code_n, prior_n, wanted_n)
    for _ in range(moves):
        state = move(state).mixtures
    return state


def _largest_first(indices_nk: Tensor, weights_nk: Tensor) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Codes in order of falling share, -1 at those without one."""
    weights_nk, order_nk = torch.topk(weights_nk, weights_nk.shape[1], dim=1)
    return torch.where(weights_nk > 0, indices_nk.gather(1, order_nk), -1), weights_nk


def _argmax(gains_nK: Tensor) -> Int[Tensor, "n"]:
    """The first greatest entry of each row; blocks first, since a maximum is vectorised on a CPU and its place is not."""
    num_codes = gains_nK.shape[1]
    if gains_nK.device.type != "cpu" or num_codes % _BLOCK or torch.compiler.is_compiling():
        return gains_nK.argmax(1)
    blocks = gains_nK.view(-1, num_codes // _BLOCK, _BLOCK)
    block_n11 = blocks.amax(2).argmax(1)[:, None, None]
    inside_n = blocks.gather(1, block_n11.expand(-1, 1, _BLOCK))[:, 0].argmax(1)
    return block_n11[:, 0, 0] * _BLOCK + inside_n
