"""Levels as binary decisions whose odds are mixed from several adaptive contexts, compiled; imported only where numba is.

Every decision (is it zero, its sign, is its size above 1, 2, ...: see `functional.entropy_model`) is foreseen by several
contexts, each
with a slot that keeps the share of ones seen and how often. Their log-odds, trusted by how often they were seen, are summed with
weights that are trained on the way, and the sum steers the range coder. All is whole numbers, so that every machine decodes
the same.

Source: Mahoney 2005, "Adaptive weighing of context models for lossless data compression" (PAQ); the binarisation of Wiedemann et
al. 2020 (DeepCABAC, arXiv 1907.11900). A slot that was never seen begins at the odds mixed from the others.

Legend of shapes: R rows, C columns of a weight; S slots; n inputs of a decision.
"""

from decimal import Decimal, localcontext
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from featherlight.archive.range_coder import code_bit, compiled, inlined
from featherlight.functional.entropy_model import UNARY

_REACH = 3071
_LIMIT = 1023
_INPUTS = 5
_FIRST_WEIGHT = 65536 // 5
_HALF = 1 << 31
_REMAINDER_BITS = 16
_MARGIN = 128
LARGEST = UNARY + (1 << (_REMAINDER_BITS - 1))
"""The largest size of a level that has a code."""

_NEAR_AT, _FULL_AT, _AROUND_AT, _ROW_AT, _SIGN_AT = 0, 256, 320, 1344, 1345
_BALANCE_AT, _SIZE_AT = _SIGN_AT + 36, _SIGN_AT + 118
_SIZE_SLOTS = 114
_REMAINDER_AT = _SIZE_AT + UNARY * _SIZE_SLOTS
_COLUMNS_AT = _REMAINDER_AT + 2 * _REMAINDER_BITS
_ZERO_SET, _SIGN_SET, _SIZE_SET, _SETS = 0, 1, 1, UNARY + 4

ROW, COLUMN, IN_ROW, ROW_BALANCE, RECENT, LAST, MEAN, ROW_CLASS, NONZEROS, PLACES = range(10)
COUNT, BALANCE, LATEST, OWN_CLASS, AROUND_CLASS = range(5)
COLUMNS, PERIOD, RATE, LIMIT = range(4)


class Tables(NamedTuple):
    """Functions as whole numbers.

    Attributes:
        squash: odds in 65,536 of log-odds from -3071 to 3071 in units of 1/256.
        stretch: log-odds of odds in 4,096.
        pace: share of the error, in 65,536, by which a slot moves that was seen so often.
        trust: in 256, of a slot that was seen so often.
    """

    squash: NDArray[np.uint16]
    stretch: NDArray[np.int16]
    pace: NDArray[np.int64]
    trust: NDArray[np.int64]


class State(NamedTuple):
    """What is known of a weight at some place of it.

    Attributes:
        slots: share of ones in 2**22 above ten bits of how often, (S,).
        weights: of the inputs of each kind of decision, in 65,536, (sets, n).
        column: by column: how many were not zero, the balance of signs, the last level that was not zero, and classes of
            fullness, (5, C).
        rows: the levels of the row above and of this one, with margins, (2, C + margins).
        place: numbers that `ROW` ... `PLACES` name, (10,).
        slot_of: slots of the inputs of the decision at hand, (n,).
        inputs: their log-odds, (n,).
        settings: columns, period, rate of the weights, limit of counts, (4,).
    """

    slots: NDArray[np.uint32]
    weights: NDArray[np.int64]
    column: NDArray[np.int64]
    rows: NDArray[np.int16]
    place: NDArray[np.int64]
    slot_of: NDArray[np.int64]
    inputs: NDArray[np.int64]
    settings: NDArray[np.int64]


@cache
def tables() -> Tables:
    """The tables, from correctly rounded decimals, so that no library of mathematics has a say in them."""
    with localcontext() as context:
        context.prec = 30
        odds = [int(Decimal(65536) / (1 + (Decimal(-x) / 256).exp())) for x in range(-_REACH, _REACH + 1)]
    squash = np.clip(np.array(odds, dtype=np.int64), 2, 65534)
    stretch = np.searchsorted(squash, np.arange(8, 65536, 16), side="left") - _REACH
    counts = np.arange(_LIMIT + 1, dtype=np.int64)
    return Tables(
        squash.astype(np.uint16),
        stretch.astype(np.int16),
        2 * 65536 // (2 * counts + 3),
        256 * counts // (counts + 1),
    )


def new_state(columns: int, *, period: int = 0, rate: int = 6) -> State:
    """Of a weight with so many columns, before its first level.

    Args:
        columns: C.
        period: how far left another neighbour stands, such as the row above in an image that is read; 0 is none.
        rate: of the training of the mixing weights.
    """
    return State(
        np.full(_COLUMNS_AT + columns, _HALF, dtype=np.uint32),
        np.full((_SETS, _INPUTS), _FIRST_WEIGHT, dtype=np.int64),
        np.zeros((5, columns), dtype=np.int64),
        np.zeros((2, columns + 2 * _MARGIN), dtype=np.int16),
        np.zeros(10, dtype=np.int64),
        np.zeros(_INPUTS, dtype=np.int64),
        np.zeros(_INPUTS, dtype=np.int64),
        np.array([columns, period, rate, _LIMIT], dtype=np.int64),
    )


@inlined
def _mix(slots, weights, index, inputs, stretch, trust, squash, num, chosen):
    """Odds in 65,536 from `num` slots."""
    total = np.int64(0)
    for i in range(num):
        slot = np.int64(slots[index[i]])
        inputs[i] = np.int64(stretch[slot >> 20]) * trust[slot & 1023] >> 8
        total += inputs[i] * weights[chosen, i]
    total = min(max(total >> 16, -_REACH), _REACH)
    return np.int64(squash[total + _REACH])


@inlined
def _learn(slots, weights, index, inputs, pace, num, chosen, bit, odds, rate, limit):
    """Moves weights and slots to a bit."""
    error = ((bit << 16) - odds) * rate
    goal = (bit << 22) - bit
    for i in range(num):
        weights[chosen, i] += (inputs[i] * error + (1 << 19)) >> 20
        slot = np.int64(slots[index[i]])
        seen = slot & 1023
        share = slot >> 10 if seen else odds << 6
        share += ((goal - share) * pace[seen]) >> 16
        slots[index[i]] = share << 10 | min(seen + 1, limit)


@compiled
def _decide(state, tables, coder, data, bit, num, chosen):
    """One decision: its odds from `num` slots, the bit, and what is learned from it."""
    slots, weights, index, inputs = state.slots, state.weights, state.slot_of, state.inputs
    odds = _mix(slots, weights, index, inputs, tables.stretch, tables.trust, tables.squash, num, chosen)
    bit = code_bit(coder, data, bit, odds)
    rate, limit = state.settings[RATE], state.settings[LIMIT]
    _learn(slots, weights, index, inputs, tables.pace, num, chosen, bit, odds, rate, limit)
    return bit


@compiled
def code_levels(state, tables, coder, data, levels):
    """Codes or decodes some levels that stand one after the other in reading order.

    Args:
        state: at the first of them; it is moved on.
        tables: of `tables()`.
        coder: of `new_coder`.
        data: bytes that are written or read.
        levels: coded, or filled in. (n,), int16.
    """
    place, column, rows, index = state.place, state.column, state.rows, state.slot_of
    slots, weights, inputs = state.slots, state.weights, state.inputs
    stretch, trust, squash, pace = tables.stretch, tables.trust, tables.squash, tables.pace
    columns, period, rate, limit = (
        state.settings[COLUMNS],
        state.settings[PERIOD],
        state.settings[RATE],
        state.settings[LIMIT],
    )
    index[4] = _ROW_AT
    for i in range(levels.shape[0]):
        c = place[COLUMN]
        if c == 0:
            _begin_row(state)
        above, here = rows[(place[ROW] + 1) & 1], rows[place[ROW] & 1]
        x = c + _MARGIN
        left, second, up = np.int64(here[x - 1]), np.int64(here[x - 2]), np.int64(above[x])
        far = far_left = far_right = np.int64(0)
        if 0 < period <= c:
            far, far_right = np.int64(here[x - period]), np.int64(here[x - period + 1])
            far_left = np.int64(here[x - period - 1])
        near = (left != 0) | (second != 0) << 1
        if c & 15 == 0:
            place[ROW_CLASS] = _class_of(place[IN_ROW], c, place[MEAN])
        beside = (up != 0) << 2 | (here[x - 3] != 0) << 3 | (above[x - 1] != 0) << 7
        index[0] = _NEAR_AT + (near | beside | (far != 0) << 4 | (far_left != 0) << 5 | (far_right != 0) << 6)
        index[1] = _FULL_AT + place[ROW_CLASS] * 8 + column[OWN_CLASS, c]
        index[2] = _AROUND_AT + (column[AROUND_CLASS, c] * 8 + column[OWN_CLASS, c]) * 8 + near * 2 + (far != 0)
        index[3] = _COLUMNS_AT + c
        level = np.int64(levels[i])
        odds = _mix(slots, weights, index, inputs, stretch, trust, squash, 5, _ZERO_SET)
        bit = code_bit(coder, data, np.int64(level != 0), odds)
        _learn(slots, weights, index, inputs, pace, 5, _ZERO_SET, bit, odds, rate, limit)
        if bit:
            level = _code_nonzero(state, tables, coder, data, level, left, up, far)
            _note_nonzero(state, level)
            index[4] = _ROW_AT
        else:
            level = np.int64(0)
        levels[i] = level
        here[x] = level
        place[PLACES] += 1
        place[COLUMN] += 1
        if place[COLUMN] == columns:
            place[COLUMN] = place[IN_ROW] = place[ROW_BALANCE] = 0
            place[ROW] += 1
            slots[_ROW_AT] = _HALF


@compiled
def _code_nonzero(state, tables, coder, data, level, left, up, far):
    """Sign and size of a level that is not zero."""
    place, index = state.place, state.slot_of
    latest, last = state.column[LATEST, place[COLUMN]], place[LAST]
    of_column = min(max(state.column[BALANCE, place[COLUMN]], -4), 4) + 4
    of_row = min(max(place[ROW_BALANCE], -4), 4) + 4
    index[0] = _SIGN_AT + (_sign(left) * 3 + _sign(up)) * 3 + _sign(far)
    index[1] = _SIGN_AT + 27 + _sign(latest) * 3 + _sign(last)
    index[2] = _BALANCE_AT + of_column * 9 + of_row
    index[3] = _BALANCE_AT + 81
    positive = _decide(state, tables, coder, data, np.int64(level > 0), 4, _SIGN_SET)
    size, most = abs(level), max(abs(left), max(abs(up), abs(far)))
    reached = np.int64(1)
    while reached <= UNARY:
        at = _SIZE_AT + (reached - 1) * _SIZE_SLOTS
        index[0] = at + positive
        index[1] = at + 2 + min(most, 15)
        index[2] = at + 18 + min(place[RECENT] >> 3, 31)
        index[3] = at + 50 + min(abs(latest), 15) * 2 + positive
        index[4] = at + 82 + min(abs(last), 15) * 2 + positive
        if not _decide(state, tables, coder, data, np.int64(size > reached), 5, _SIZE_SET + reached):
            break
        reached += 1
    if reached > UNARY:
        reached += _code_remainder(state, tables, coder, data, size - UNARY - 1)
    return reached if positive else -reached


@compiled
def _code_remainder(state, tables, coder, data, beyond):
    """A number from 0 on, Exp-Golomb of order 0: how many digits `beyond + 1` has is told step by step, then the digits."""
    digits, value, index = np.int64(0), beyond + 1, state.slot_of
    while digits < _REMAINDER_BITS - 2:
        index[0] = _REMAINDER_AT + digits
        if not _decide(state, tables, coder, data, np.int64(value >> (digits + 1) != 0), 1, _SIZE_SET + UNARY + 1):
            break
        digits += 1
    decoded = np.int64(1)
    for k in range(digits - 1, -1, -1):
        bit = (value >> k) & 1
        if k == digits - 1:
            index[0] = _REMAINDER_AT + _REMAINDER_BITS + digits
            bit = _decide(state, tables, coder, data, bit, 1, _SIZE_SET + UNARY + 2)
        else:
            bit = code_bit(coder, data, bit, 32768)
        decoded = decoded << 1 | bit
    return decoded - 1


@compiled
def _note_nonzero(state, level):
    """Takes a level that is not zero into what is known of its row and column."""
    place, column = state.place, state.column
    c = place[COLUMN]
    step = 1 if level > 0 else -1
    column[COUNT, c] += 1
    column[BALANCE, c] += step
    column[LATEST, c] = level
    place[NONZEROS] += 1
    place[IN_ROW] += 1
    place[ROW_BALANCE] += step
    place[RECENT] += (abs(level) * 16 - place[RECENT]) >> 2
    place[LAST] = level
    place[ROW_CLASS] = _class_of(place[IN_ROW], c + 1, place[MEAN])
    _classify(state, c)


@compiled
def _begin_row(state):
    """Sorts the columns into classes anew: at each of the first rows, then at every eighth."""
    place = state.place
    place[MEAN] = ((place[NONZEROS] << 16) + 65536) // (place[PLACES] + 16)
    if place[ROW] < 32 or place[ROW] & 7 == 0:
        for c in range(state.settings[COLUMNS]):
            _classify(state, c)


@compiled
def _classify(state, c):
    """How full a column has been, and those around it."""
    column, columns, period = state.column, state.settings[COLUMNS], state.settings[PERIOD]
    row, mean = state.place[ROW], state.place[MEAN]
    before = column[COUNT, c - 1] if c > 0 else column[COUNT, c]
    around = before + (column[COUNT, c + 1] if c + 1 < columns else column[COUNT, c])
    if period > 0:
        around += column[COUNT, c - period] if c >= period else before
        around += column[COUNT, c + period] if c + period < columns else before
        around >>= 1
    column[OWN_CLASS, c] = _class_of(column[COUNT, c], row, mean)
    column[AROUND_CLASS, c] = _class_of(around, 2 * row, mean)


@compiled
def _class_of(count, seen, mean):
    """How count / seen compares with a mean share in 65,536, in eight classes by powers of two."""
    ratio = (((count << 16) + 2 * mean) // (seen + 2) << 3) // (mean + 1)
    digits = 0
    while ratio > 0 and digits < 7:
        digits += 1
        ratio >>= 1
    return digits


@compiled
def _sign(level):
    return 0 if level == 0 else (1 if level < 0 else 2)
