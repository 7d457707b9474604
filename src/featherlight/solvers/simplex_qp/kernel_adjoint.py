"""The gradients of solutions row by row, compiled for the CPU; imported only where numba is.

Legend of shapes: N rows, F features, K codes, k slots of a row, of which the first m are in use.
"""

from typing import NamedTuple

import numpy as np

from featherlight.solvers.simplex_qp.kernel_numba import compiled

_EPS = 2.220446049250313e-16


class Saved(NamedTuple):
    """The problem, its solution and the gradients that came back."""

    z_NF: np.ndarray
    code_KF: np.ndarray
    prior_N: np.ndarray
    index_Nk: np.ndarray
    weight_Nk: np.ndarray
    grad_value_NF: np.ndarray
    grad_weight_Nk: np.ndarray


class Room(NamedTuple):
    """What one thread works in, float64."""

    around_kF: np.ndarray
    x_F: np.ndarray
    of_z_F: np.ndarray
    factor_kk: np.ndarray
    side_k: np.ndarray
    ones_k: np.ndarray


class Output(NamedTuple):
    """Gradients of the rows; the adjoint of each row; what each row adds to the strength's; z - x, and the gradient of the
    values less that of the row, from which the codebook's gradient is gathered."""

    of_z_NF: np.ndarray
    w_Nk: np.ndarray
    of_strength_N: np.ndarray
    residual_NF: np.ndarray
    rest_NF: np.ndarray


@compiled
def _gather(n, m, saved, room):
    """Codes in use around the values of a row, and the right-hand side."""
    code_KF, index_Nk, weight_Nk = saved.code_KF, saved.index_Nk, saved.weight_Nk
    value_NF, of_weight_Nk = saved.grad_value_NF, saved.grad_weight_Nk
    around_kF, x_F, side_k, ones_k = room.around_kF, room.x_F, room.side_k, room.ones_k
    for f in range(x_F.shape[0]):
        x_F[f] = 0.0
    for i in range(m):
        code, share = index_Nk[n, i], np.float64(weight_Nk[n, i])
        for f in range(x_F.shape[0]):
            c = np.float64(code_KF[code, f])
            around_kF[i, f] = c
            x_F[f] += share * c
    for i in range(m):
        side = np.float64(of_weight_Nk[n, i])
        for f in range(x_F.shape[0]):
            around_kF[i, f] -= x_F[f]
            side += around_kF[i, f] * np.float64(value_NF[n, f])
        side_k[i], ones_k[i] = side, 1.0


@compiled
def _factor(m, strength, around_kF, factor_kk):
    """The Cholesky factor of the support's curvature, lifted along ones, in the lower triangle."""
    trace = 0.0
    for i in range(m):
        for j in range(i + 1):
            total = 0.0
            for f in range(around_kF.shape[1]):
                total += around_kF[i, f] * around_kF[j, f]
            factor_kk[i, j] = total
        trace += factor_kk[i, i]
    lift = trace / m + strength
    for i in range(m):
        for j in range(i + 1):
            total = factor_kk[i, j] + lift
            for f in range(j):
                total -= factor_kk[i, f] * factor_kk[j, f]
            if i == j:
                total += strength + 4 * _EPS * lift
                factor_kk[i, i] = np.sqrt(max(total, _EPS * lift))
            else:
                factor_kk[i, j] = total / factor_kk[j, j]


@compiled
def _solve(m, factor_kk, side_k):
    """Replaces a right-hand side by its solution."""
    for i in range(m):
        total = side_k[i]
        for j in range(i):
            total -= factor_kk[i, j] * side_k[j]
        side_k[i] = total / factor_kk[i, i]
    for i in range(m - 1, -1, -1):
        side_k[i] /= factor_kk[i, i]
        for j in range(i):
            side_k[j] -= factor_kk[i, j] * side_k[i]


@compiled
def adjoint_rows(first, last, strength, saved, room, out):
    """Rows first .. last - 1."""
    index_Nk = saved.index_Nk
    width = index_Nk.shape[1]
    for n in range(first, last):
        m = 0
        while m < width and index_Nk[n, m] >= 0:
            m += 1
        if m > 0:
            _gather(n, m, saved, room)
            _factor(m, strength, room.around_kF, room.factor_kk)
            _solve(m, room.factor_kk, room.side_k)
            _solve(m, room.factor_kk, room.ones_k)
        _write(n, m, saved, room, out)


@compiled
def _write(n, m, saved, room, out):
    """The results of a row of m codes in use."""
    z_NF, value_NF, side_k, ones_k = saved.z_NF, saved.grad_value_NF, room.side_k, room.ones_k
    around_kF, x_F, of_z_F, w_Nk = room.around_kF, room.x_F, room.of_z_F, out.w_Nk
    of_z_NF, residual_NF, rest_NF = out.of_z_NF, out.residual_NF, out.rest_NF
    total, total_ones, of_strength = 0.0, 0.0, 0.0
    for i in range(m):
        total += side_k[i]
        total_ones += ones_k[i]
    for f in range(of_z_F.shape[0]):
        of_z_F[f] = 0.0
    for i in range(m):
        w = side_k[i] - total / total_ones * ones_k[i]
        is_prior = 1.0 if saved.index_Nk[n, i] == saved.prior_N[n] else 0.0
        of_strength += w * (is_prior - saved.weight_Nk[n, i])
        w_Nk[n, i] = w
        for f in range(of_z_F.shape[0]):
            of_z_F[f] += w * around_kF[i, f]
    out.of_strength_N[n] = of_strength
    for f in range(of_z_F.shape[0]):
        of_z_NF[n, f] = of_z_F[f]
        residual_NF[n, f] = z_NF[n, f] - x_F[f] if m > 0 else 0.0
        rest_NF[n, f] = value_NF[n, f] - of_z_F[f] if m > 0 else 0.0


@compiled
def adjoint_codes(first, last, saved, out, of_code_KF):
    """Adds features first .. last - 1 of the codebook's gradient, row after row."""
    index_Nk, weight_Nk = saved.index_Nk, saved.weight_Nk
    w_Nk, residual_NF, rest_NF = out.w_Nk, out.residual_NF, out.rest_NF
    for n in range(index_Nk.shape[0]):
        for i in range(index_Nk.shape[1]):
            code = index_Nk[n, i]
            if code < 0:
                break
            w, share = w_Nk[n, i], np.float64(weight_Nk[n, i])
            for f in range(first, last):
                of_code_KF[code, f] += w * residual_NF[n, f] + share * rest_NF[n, f]


def make_room(width: int, num_features: int) -> Room:
    """Arrays of one thread."""
    return Room(
        np.empty((width, num_features)),
        np.empty(num_features),
        np.empty(num_features),
        np.empty((width, width)),
        np.empty(width),
        np.empty(width),
    )
