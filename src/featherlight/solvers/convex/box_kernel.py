"""Box-constrained quadratics element by element, compiled for the CPU; imported only where numba is.

All is worked in float64. Elements are apart from each other, so that no thread count and no other element changes a bit.

Legend of shapes: B elements, M matrices (one an element, or one for all), N coordinates, of which the first k are free.
"""

from typing import NamedTuple

import numpy as np

from featherlight.solvers.simplex_qp.kernel_numba import compiled

SOLVED, DEGENERATE, INFEASIBLE, INDEFINITE, NOT_FINITE, NOT_CONVERGED = 0, 1, 2, 3, 4, 5
LOWER, FREE, UPPER = 0, 1, 2
_TINY = 2.2250738585072014e-308
_LARGEST = 1.7976931348623157e308
_TOLERANCE, _MARGIN = 2e-14, 2e-13
_PATIENCE = 3


class Programs(NamedTuple):
    """m, H, and the bounds of the step."""

    m_BN: np.ndarray
    h_MNN: np.ndarray
    low_BN: np.ndarray
    high_BN: np.ndarray


class Output(NamedTuple):
    """Steps, states, the upper triangular factor of the free coordinates in their order, statuses and residuals."""

    d_BN: np.ndarray
    state_BN: np.ndarray
    factor_BNN: np.ndarray
    status_B: np.ndarray
    residual_B: np.ndarray


class Adjoint(NamedTuple):
    """Gradients of the steps, and where those of m, H and the bounds go; `of_h_MNN` is left alone where M is not B."""

    gradient_BN: np.ndarray
    of_m_BN: np.ndarray
    of_h_MNN: np.ndarray
    of_low_BN: np.ndarray
    of_high_BN: np.ndarray


class Room(NamedTuple):
    """What one thread works in: the symmetric matrix, a list of coordinates, their numbers, and a full vector."""

    h_NN: np.ndarray
    index_N: np.ndarray
    part_N: np.ndarray
    pull_N: np.ndarray


def make_room(n: int) -> Room:
    """For elements of n coordinates."""
    return Room(np.empty((n, n)), np.empty(n, dtype=np.int64), np.empty(n), np.empty(n))


@compiled
def _factor(a_NN, n):
    """A = U' U in the upper triangle, in place, four rows at a time; whether A is positive definite."""
    for k in range(0, n, 4):
        last = min(k + 4, n)
        for p in range(k, last):
            row = a_NN[p]
            for q in range(k, p):
                above, c = a_NN[q], a_NN[q, p]
                for j in range(p, n):
                    row[j] -= c * above[j]
            if not row[p] > 0:
                return False
            scale = 1 / np.sqrt(row[p])
            for j in range(p, n):
                row[j] *= scale
        if last == n:
            break
        r0, r1, r2, r3 = a_NN[k], a_NN[k + 1], a_NN[k + 2], a_NN[k + 3]
        for i in range(last, n):
            row, c0, c1, c2, c3 = a_NN[i], r0[i], r1[i], r2[i], r3[i]
            for j in range(i, n):
                row[j] -= c0 * r0[j] + c1 * r1[j] + c2 * r2[j] + c3 * r3[j]
    return True


@compiled
def _solve(factor_NN, n, x_N):
    """x <- A^-1 x by the factor."""
    for i in range(n):
        row = factor_NN[i]
        x = x_N[i] / row[i]
        x_N[i] = x
        for j in range(i + 1, n):
            x_N[j] -= x * row[j]
    for i in range(n - 1, -1, -1):
        row, total = factor_NN[i], x_N[i]
        for j in range(i + 1, n):
            total -= row[j] * x_N[j]
        x_N[i] = total / row[i]


@compiled
def _symmetrise(h_NN, out_NN):
    """The symmetric part, and whether all numbers are finite."""
    n, finite = h_NN.shape[0], True
    for i in range(n):
        for j in range(i + 1):
            value = 0.5 * (h_NN[i, j] + h_NN[j, i])
            out_NN[i, j] = value
            out_NN[j, i] = value
            finite = finite and abs(value) <= _LARGEST
    return finite


@compiled
def _check(m_N, low_N, high_N):
    infeasible = False
    for i in range(m_N.shape[0]):
        if not abs(m_N[i]) <= _LARGEST or np.isnan(low_N[i]) or np.isnan(high_N[i]):
            return NOT_FINITE
        infeasible = infeasible or low_N[i] > high_N[i] or low_N[i] == np.inf or high_N[i] == -np.inf
    return INFEASIBLE if infeasible else SOLVED


@compiled
def _start(m_N, low_N, high_N, room, factor_NN, state_N):
    """States by where the optimum without bounds is; False where H is not positive definite."""
    n = m_N.shape[0]
    for i in range(n):
        room.part_N[i] = -m_N[i]
        for j in range(i, n):
            factor_NN[i, j] = room.h_NN[i, j]
    if not _factor(factor_NN, n):
        return False
    _solve(factor_NN, n, room.part_N)
    for i in range(n):
        d = room.part_N[i]
        state_N[i] = LOWER if d <= low_N[i] else (UPPER if d >= high_N[i] else FREE)
    return True


@compiled
def _optimum(m_N, low_N, high_N, room, factor_NN, state_N, d_N, first):
    """The optimum at given states and its gradient m + H d; False where rounding leaves no factor. At first, where all
    coordinates are free, both factor and optimum are those of the start."""
    n, k = m_N.shape[0], 0
    index_N, part_N, pull_N = room.index_N, room.part_N, room.pull_N
    for i in range(n):
        d_N[i] = 0.0
        pull_N[i] = m_N[i]
    for i in range(n):
        if state_N[i] == FREE:
            index_N[k] = i
            k += 1
            continue
        d = low_N[i] if state_N[i] == LOWER else high_N[i]
        d_N[i] = d
        row = room.h_NN[i]
        for j in range(n):
            pull_N[j] += d * row[j]
    if not (first and k == n):
        for a in range(k):
            row, target = room.h_NN[index_N[a]], factor_NN[a]
            part_N[a] = -pull_N[index_N[a]]
            for b in range(a, k):
                target[b] = row[index_N[b]]
        if not _factor(factor_NN, k):
            return False
        _solve(factor_NN, k, part_N)
    for a in range(k):
        d, row = part_N[a], room.h_NN[index_N[a]]
        d_N[index_N[a]] = d
        for j in range(n):
            pull_N[j] += d * row[j]
    return True


@compiled
def _sizes(m_N, low_N, high_N, pull_N, d_N):
    """What steps and gradients are compared with."""
    reach, bound, size = 0.0, 0.0, 0.0
    for i in range(m_N.shape[0]):
        reach = max(reach, abs(d_N[i]))
        if abs(low_N[i]) <= _LARGEST:
            bound = max(bound, abs(low_N[i]))
        if abs(high_N[i]) <= _LARGEST:
            bound = max(bound, abs(high_N[i]))
        size = max(size, abs(m_N[i]) + abs(pull_N[i] - m_N[i]))
    return max(reach + bound, _TINY), max(size, _TINY)


@compiled
def _leave(low_N, high_N, pull_N, d_N, state_N, sizes, blocks):
    """Moves coordinates that should leave their state, all or the last; how many should, and the largest excess."""
    count, last, worst = 0, -1, -np.inf
    for i in range(d_N.shape[0]):
        if state_N[i] == FREE:
            off = max(low_N[i] - d_N[i], d_N[i] - high_N[i]) / sizes[0]
        else:
            off = (-pull_N[i] if state_N[i] == LOWER else pull_N[i]) / sizes[1]
        worst = max(worst, off)
        if off > _TOLERANCE:
            count += 1
            last = i
    for i in range(d_N.shape[0]):
        if count == 0 or (not blocks and i != last):
            continue
        if state_N[i] != FREE:
            leaves = (-pull_N[i] if state_N[i] == LOWER else pull_N[i]) / sizes[1] > _TOLERANCE
            state_N[i] = FREE if leaves else state_N[i]
        elif (low_N[i] - d_N[i]) / sizes[0] > _TOLERANCE:
            state_N[i] = LOWER
        elif (d_N[i] - high_N[i]) / sizes[0] > _TOLERANCE:
            state_N[i] = UPPER
    return count, worst


@compiled
def _slack(pull_N, state_N, size):
    """The largest gradient of a free coordinate, relative."""
    slack = 0.0
    for i in range(pull_N.shape[0]):
        if state_N[i] == FREE:
            slack = max(slack, abs(pull_N[i]) / size)
    return slack


@compiled
def _element(m_N, h_NN, low_N, high_N, room, max_steps, d_N, state_N, factor_NN):
    """Status and residual of one element."""
    status = _check(m_N, low_N, high_N)
    if not _symmetrise(h_NN, room.h_NN) or status == NOT_FINITE:
        return NOT_FINITE, 0.0
    if not _start(m_N, low_N, high_N, room, factor_NN, state_N):
        return INDEFINITE, 0.0
    if status != SOLVED:
        return status, 0.0
    best, patience = m_N.shape[0] + 1, _PATIENCE
    for step in range(max_steps):
        if not _optimum(m_N, low_N, high_N, room, factor_NN, state_N, d_N, step == 0):
            return INDEFINITE, 0.0
        sizes = _sizes(m_N, low_N, high_N, room.pull_N, d_N)
        count, worst = _leave(low_N, high_N, room.pull_N, d_N, state_N, sizes, patience > 0)
        if count == 0:
            residual = max(max(worst, 0.0), _slack(room.pull_N, state_N, sizes[1]))
            return (DEGENERATE if worst > -_MARGIN else SOLVED), residual
        patience = _PATIENCE if count < best else patience - 1
        best = min(best, count)
    return NOT_CONVERGED, 0.0


@compiled
def solve_elements(first, last, programs, room, max_steps, out):
    """Elements first to last - 1; those without a solution get the step 0."""
    for b in range(first, last):
        h_NN = programs.h_MNN[b if programs.h_MNN.shape[0] > 1 else 0]
        m_N, low_N, high_N, d_N = programs.m_BN[b], programs.low_BN[b], programs.high_BN[b], out.d_BN[b]
        state_N, factor_NN = out.state_BN[b], out.factor_BNN[b]
        status, residual = _element(m_N, h_NN, low_N, high_N, room, max_steps, d_N, state_N, factor_NN)
        out.status_B[b], out.residual_B[b] = status, residual
        if status > DEGENERATE:
            for i in range(d_N.shape[0]):
                d_N[i], state_N[i] = 0.0, FREE


@compiled
def _adjoint_element(g_N, h_NN, d_N, state_N, factor_NN, w_N, room):
    """w = H_FF^-1 g on the free coordinates, and g - H w, which bounds get, in `pull_N`."""
    n, k = g_N.shape[0], 0
    index_N, part_N, pull_N = room.index_N, room.part_N, room.pull_N
    for i in range(n):
        w_N[i], pull_N[i] = 0.0, g_N[i]
        if state_N[i] == FREE:
            index_N[k], part_N[k] = i, g_N[i]
            k += 1
    _solve(factor_NN, k, part_N)
    for a in range(k):
        i, w = index_N[a], part_N[a]
        w_N[i] = w
        row = h_NN[i]
        for j in range(n):
            pull_N[j] -= 0.5 * w * row[j]
    if k == n:
        return
    for j in range(n):
        if state_N[j] != FREE:
            row, total = h_NN[j], 0.0
            for i in range(n):
                total += row[i] * w_N[i]
            pull_N[j] -= 0.5 * total


@compiled
def adjoint_elements(first, last, programs, saved, room, out):
    """Gradients of elements first to last - 1; `out.of_m_BN` is -w, from which a shared matrix's gradient is made."""
    for b in range(first, last):
        n = saved.d_BN.shape[1]
        of_m_N, of_low_N, of_high_N = out.of_m_BN[b], out.of_low_BN[b], out.of_high_BN[b]
        solved, own = saved.status_B[b] <= DEGENERATE, programs.h_MNN.shape[0] == saved.d_BN.shape[0]
        h_NN, d_N, state_N = programs.h_MNN[b if programs.h_MNN.shape[0] > 1 else 0], saved.d_BN[b], saved.state_BN[b]
        if solved:
            _adjoint_element(out.gradient_BN[b], h_NN, d_N, state_N, saved.factor_BNN[b], of_m_N, room)
        for i in range(n):
            of_m_N[i] = -of_m_N[i] if solved else 0.0
            of_low_N[i] = room.pull_N[i] if solved and state_N[i] == LOWER else 0.0
            of_high_N[i] = room.pull_N[i] if solved and state_N[i] == UPPER else 0.0
        if own:
            for i in range(n):
                row, half, d = out.of_h_MNN[b, i], 0.5 * of_m_N[i], 0.5 * d_N[i]
                for j in range(n):
                    row[j] = half * d_N[j] + d * of_m_N[j]
