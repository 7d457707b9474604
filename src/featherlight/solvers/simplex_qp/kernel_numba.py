"""The active-set method row by row, compiled for the CPU; imported only where numba is.

The tiny problems are worked in float64 whatever the dtype of the rows; the codebook is priced in the dtype of the rows.
Rows are apart from each other, so that no thread count and no other row changes a bit.

Legend of shapes: N rows, F features, K codes, k slots of a row, of which the first m are in use.
"""

from typing import NamedTuple

import numba
import numpy as np

CONVERGED, STEP_LIMIT, SUPPORT_LIMIT, STALLED, NON_FINITE = 0, 1, 2, 3, 5
LANES = 8
_EPS = 2.220446049250313e-16
FAST = {"reassoc", "contract", "arcp", "nsz"}
compiled = numba.njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")


class Codebook(NamedTuple):
    """Centred codes and what is the same for all rows.

    Attributes:
        code_KF: codes in the dtype of the rows.
        by_feature_FK: the same, transposed.
        half_K: half their squared lengths; inf where not usable.
        start_K: 0; inf where not usable.
        strength: of the penalty.
        lift: squared length of the coordinate that is added to all codes and rows.
        longest: length of the longest code.
        eps: relative rounding of a price.
    """

    code_KF: np.ndarray
    by_feature_FK: np.ndarray
    half_K: np.ndarray
    start_K: np.ndarray
    strength: float
    lift: float
    longest: float
    eps: float


class Room(NamedTuple):
    """What one thread works in, float64 but for `narrow_F` and `price_K`; `free_k` and `by_sum_k` are inverse_kk times the
    linear terms and times ones, from which the best shares follow at once."""

    z_F: np.ndarray
    residual_F: np.ndarray
    narrow_F: np.ndarray
    price_K: np.ndarray
    index_k: np.ndarray
    p_k: np.ndarray
    free_k: np.ndarray
    by_sum_k: np.ndarray
    u_k: np.ndarray
    cross_k: np.ndarray
    inverse_kk: np.ndarray


class Rules(NamedTuple):
    """How far to go: `moves` of 0 lets codes come in until none is worth it, in at most `num_steps` moves; else exactly
    `num_steps` codes are looked for, each followed by at most that many moves. `certify`: price the result at the end."""

    num_steps: int
    moves: int
    certify: bool


class Output(NamedTuple):
    """Where results go; a prior of -1 is replaced by the nearest code."""

    prior_N: np.ndarray
    index_Nk: np.ndarray
    weight_Nk: np.ndarray
    status_N: np.ndarray
    kkt_N: np.ndarray
    gap_N: np.ndarray


@compiled
def _price(residual_F, by_feature_FK, start_K, price_K):
    """price = start + residual . codes, four features at a time."""
    num_features, num_codes = by_feature_FK.shape
    for j in range(num_codes):
        price_K[j] = start_K[j]
    whole = num_features - num_features % 4
    for f in range(0, whole, 4):
        a, b, c, d = residual_F[f], residual_F[f + 1], residual_F[f + 2], residual_F[f + 3]
        for j in range(num_codes):
            first = a * by_feature_FK[f, j] + b * by_feature_FK[f + 1, j]
            second = c * by_feature_FK[f + 2, j] + d * by_feature_FK[f + 3, j]
            price_K[j] += first + second
    for f in range(whole, num_features):
        a = residual_F[f]
        for j in range(num_codes):
            price_K[j] += a * by_feature_FK[f, j]


@compiled
def _lowest(price_K):
    best = 0
    for j in range(1, price_K.shape[0]):
        if price_K[j] < price_K[best]:
            best = j
    return best


@compiled
def _cross(code, m, code_KF, lift, index_k, z_F, cross_k):
    """Products of a code with those in use; returns its product with the row and its squared length, all lifted."""
    linear, curvature = lift, lift
    for f in range(z_F.shape[0]):
        c = np.float64(code_KF[code, f])
        curvature += c * c
        linear += c * z_F[f]
    for i in range(m):
        total, other = lift, index_k[i]
        for f in range(z_F.shape[0]):
            total += np.float64(code_KF[other, f]) * np.float64(code_KF[code, f])
        cross_k[i] = total
    return linear, curvature


@compiled
def _add_scaled(factor, x, y, padded):
    """y += factor x in blocks of a fixed length, which short loops gain most from."""
    for start in range(0, padded, LANES):
        for j in range(LANES):
            y[start + j] += factor * x[start + j]


@compiled
def _take_in(code, m, prior, book, room):
    """Takes a code into slot m, share 0; False where rounding hides what it would add."""
    u_k, cross_k, free_k, by_sum_k, inverse_kk = room.u_k, room.cross_k, room.free_k, room.by_sum_k, room.inverse_kk
    linear, curvature = _cross(code, m, book.code_KF, book.lift, room.index_k, room.z_F, cross_k)
    curvature += book.strength
    if code == prior:
        linear += book.strength
    pivot, along, by_sum = curvature, -linear, -1.0
    padded = m + 1 + (-m - 1) % LANES
    for i in range(padded):
        u_k[i] = 0.0
    for i in range(m):
        cross = cross_k[i]
        along += cross * free_k[i]
        by_sum += cross * by_sum_k[i]
        _add_scaled(cross, inverse_kk[i], u_k, padded)
    for i in range(m):
        pivot -= cross_k[i] * u_k[i]
    if not pivot > 64 * _EPS * curvature:
        return False
    room.index_k[m], room.p_k[m], u_k[m], free_k[m], by_sum_k[m] = code, 0.0, -1.0, 0.0, 0.0
    for i in range(padded):
        inverse_kk[m, i] = 0.0
    for i in range(m):
        for j in range(m, padded):
            inverse_kk[i, j] = 0.0
    _rank_one(m + 1, 1.0 / pivot, along, by_sum, u_k, free_k, by_sum_k, inverse_kk)
    return True


@compiled
def _rank_one(m, factor, along, by_sum, u_k, free_k, by_sum_k, inverse_kk):
    """inverse += factor u u', with its products kept up."""
    for i in range(m):
        scaled = factor * u_k[i]
        free_k[i] += scaled * along
        by_sum_k[i] += scaled * by_sum
        _add_scaled(scaled, u_k, inverse_kk[i], m + -m % LANES)


@compiled
def _drop(slot, m, room):
    """Takes a code out; the last slot takes its place."""
    u_k, free_k, by_sum_k, inverse_kk = room.u_k, room.free_k, room.by_sum_k, room.inverse_kk
    for i in range(m + -m % LANES):
        u_k[i] = inverse_kk[slot, i] if i < m else 0.0
    _rank_one(m, -1.0 / u_k[slot], free_k[slot], by_sum_k[slot], u_k, free_k, by_sum_k, inverse_kk)
    last = m - 1
    room.index_k[slot], room.p_k[slot] = room.index_k[last], room.p_k[last]
    free_k[slot], by_sum_k[slot] = free_k[last], by_sum_k[last]
    for i in range(m):
        inverse_kk[slot, i] = inverse_kk[last, i]
    for i in range(m):
        inverse_kk[i, slot] = inverse_kk[i, last]


@compiled
def _move(m, room):
    """Goes towards the best shares; the slot that blocks, or -1 where none does."""
    p_k, free_k, by_sum_k = room.p_k, room.free_k, room.by_sum_k
    total, total_by_sum = 0.0, 0.0
    for i in range(m):
        total += free_k[i]
        total_by_sum += by_sum_k[i]
    level = (1.0 - total) / total_by_sum
    slot, step = -1, 1.0
    for i in range(m):
        target = free_k[i] + level * by_sum_k[i]
        if target < 0.0:
            ratio = p_k[i] / (p_k[i] - target)
            if slot < 0 or ratio < step:
                slot, step = i, ratio
    for i in range(m):
        target = free_k[i] + level * by_sum_k[i]
        if slot < 0:
            p_k[i] = target
        else:
            p_k[i] = max(0.0, p_k[i] + step * (target - p_k[i]))
    return slot


@compiled
def _residual(m, prior, book, room):
    """Forms x - z; returns its length and the mean price of the codes in use, each by its share."""
    z_F, residual_F, narrow_F, p_k, index_k = room.z_F, room.residual_F, room.narrow_F, room.p_k, room.index_k
    code_KF, strength = book.code_KF, book.strength
    size, level = 0.0, 0.0
    for f in range(z_F.shape[0]):
        residual_F[f] = -z_F[f]
    for i in range(m):
        share, code = p_k[i], index_k[i]
        level += strength * share * share
        if code == prior:
            level -= strength * share
        for f in range(z_F.shape[0]):
            residual_F[f] += share * np.float64(code_KF[code, f])
    for f in range(z_F.shape[0]):
        narrow_F[f] = residual_F[f]
        size += residual_F[f] * residual_F[f]
        level += residual_F[f] * (residual_F[f] + z_F[f])
    return np.sqrt(size), level


@compiled
def _cheapest(m, prior, book, room):
    """Prices all codes: the lowest, by how much it is below the mean of those in use, their unevenness, and the noise."""
    size, level = _residual(m, prior, book, room)
    price_K, index_k, p_k, z_F, strength = room.price_K, room.index_k, room.p_k, room.z_F, book.strength
    _price(room.narrow_F, book.by_feature_FK, book.start_K, price_K)
    price_K[prior] -= strength
    uneven, length, used = 0.0, 0.0, False
    for i in range(m):
        price_K[index_k[i]] += strength * p_k[i]
        uneven = max(uneven, abs(price_K[index_k[i]] - level))
    code = _lowest(price_K)
    for i in range(m):
        used = used or index_k[i] == code
    for f in range(z_F.shape[0]):
        length += z_F[f] * z_F[f]
    noise = book.eps * (book.longest * (size + book.eps * (book.longest + np.sqrt(length))) + book.strength)
    gap = level - price_K[code]
    return code, gap, uneven, gap > noise and not used


@compiled
def _refine(m, prior, book, room):
    """Takes the rounding of the inverse out of the shares, once; nothing where a share would fall below 0."""
    p_k, by_sum_k, u_k, g_k, inverse_kk = room.p_k, room.by_sum_k, room.u_k, room.cross_k, room.inverse_kk
    index_k, residual_F, code_KF, strength = room.index_k, room.residual_F, book.code_KF, book.strength
    total_by_sum, mean, level = 0.0, 0.0, 1.0
    for i in range(m):
        code = index_k[i]
        g = strength * (p_k[i] - (code == prior))
        for f in range(residual_F.shape[0]):
            g += np.float64(code_KF[code, f]) * residual_F[f]
        g_k[i], u_k[i] = g, 0.0
        mean += p_k[i] * g
    for i in range(m):
        for j in range(m):
            u_k[j] += (g_k[i] - mean) * inverse_kk[i, j]
    for i in range(m):
        total_by_sum += by_sum_k[i]
        level += u_k[i] - p_k[i]
    level /= total_by_sum
    for i in range(m):
        if p_k[i] - u_k[i] + level * by_sum_k[i] < 0.0:
            return
    for i in range(m):
        p_k[i] += level * by_sum_k[i] - u_k[i]


@compiled
def _advance(m, moves, room):
    """At most `moves` moves; the number of codes left, and the slot that was dropped last if the last move was blocked."""
    blocked = -1
    for _ in range(moves):
        blocked = _move(m, room)
        if blocked < 0:
            break
        _drop(blocked, m, room)
        m -= 1
    return m, blocked


@compiled
def _solve_row(prior, width, book, room, rules):
    """From the prior code to the end: codes in use, status, KKT residual and gap."""
    _take_in(prior, 0, prior, book, room)
    room.p_k[0] = 1.0
    m, newest, left, status = 1, -1, rules.num_steps, STEP_LIMIT
    while True:
        m, blocked = _advance(m, max(1, rules.moves), room)
        left -= 1
        if rules.moves == 0 and blocked >= 0:
            if blocked != newest and left >= 0:
                newest = -1
                continue
            status = STALLED if blocked == newest else STEP_LIMIT
        closing = left < 0 or status == STALLED
        if closing and rules.moves > 0:
            _residual(m, prior, book, room)
            _refine(m, prior, book, room)
            if not rules.certify:
                return m, SUPPORT_LIMIT, 0.0, 0.0
        code, gap, uneven, worth = _cheapest(m, prior, book, room)
        if not worth:
            status = status if status == STALLED else CONVERGED
        elif closing:
            status = SUPPORT_LIMIT if rules.moves > 0 else status
        elif m == width:
            status = SUPPORT_LIMIT
        elif _take_in(code, m, prior, book, room):
            newest = m
            m += 1
            continue
        else:
            status = STALLED
        return m, status, max(uneven, gap), max(0.0, 2 * gap)


@compiled
def _store(m, index_k, p_k, out_index_k, out_weight_k):
    """Slots in order of falling share; free ones and those without a share are -1 and 0."""
    kept = 0
    for i in range(m):
        share = out_weight_k.dtype.type(p_k[i])
        if share > 0.0:
            at = kept
            while at > 0 and out_weight_k[at - 1] < share:
                out_index_k[at], out_weight_k[at] = out_index_k[at - 1], out_weight_k[at - 1]
                at -= 1
            out_index_k[at], out_weight_k[at] = index_k[i], share
            kept += 1
    for i in range(kept, out_index_k.shape[0]):
        out_index_k[i], out_weight_k[i] = -1, 0.0


@compiled
def solve_rows(first, last, z_NF, usable_N, book, room, rules, out):
    """Solves rows first .. last - 1."""
    width = out.index_Nk.shape[1]
    z_F, narrow_F = room.z_F, room.narrow_F
    for n in range(first, last):
        for f in range(z_NF.shape[1]):
            z_F[f] = z_NF[n, f]
            narrow_F[f] = -z_NF[n, f]
        prior = out.prior_N[n]
        if prior < 0:
            _price(room.narrow_F, book.by_feature_FK, book.half_K, room.price_K)
            prior = _lowest(room.price_K)
            out.prior_N[n] = prior
        m, status, kkt, gap = 0, NON_FINITE, 0.0, 0.0
        if usable_N[n] and book.start_K[prior] == 0.0:
            m, status, kkt, gap = _solve_row(prior, width, book, room, rules)
        out.status_N[n], out.kkt_N[n], out.gap_N[n] = status, kkt, gap
        _store(m, room.index_k, room.p_k, out.index_Nk[n], out.weight_Nk[n])


def make_room(width: int, num_features: int, num_codes: int, dtype: np.dtype) -> Room:
    """Arrays of one thread."""
    slots = width + 1 + LANES
    by_feature = (np.empty(num_features), np.empty(num_features), np.empty(num_features, dtype))
    by_slot = (np.empty(slots, np.int64), *(np.empty(slots) for _ in range(5)))
    return Room._make((*by_feature, np.empty(num_codes, dtype), *by_slot, np.zeros((slots, slots))))
