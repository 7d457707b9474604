"""Block pivoting: all coordinates that should leave their state do so at once, one at a time where that goes in circles.

With a quadratic that is strictly convex, a separable term and moves of the last such coordinate alone the search is finite;
blocks make it short. A multiplier that coordinates share is taken along in each step; where that does not settle, it is
searched for from outside, on the decreasing piecewise linear function it is the root of.

Source: Murty 1974; Judice, Pires 1994, "A block principal pivoting algorithm for large-scale strictly monotone linear
complementarity problems"; Kim, Park 2011.

Legend of shapes: B elements, b elements still at work, N coordinates.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from featherlight.solvers.convex.metrics import VectorMetric
from featherlight.solvers.convex.pieces import Here, Pieces, Shared, at_state, excess
from featherlight.solvers.convex.program import none_of

_PATIENCE = 3
_TOGETHER = 30
_COMPACTION = 0.75


class _Work(NamedTuple):
    """The elements still at work: their programs and where their search is.

    Attributes:
        best_b: fewest coordinates that wanted to leave, so far.
        patience_b: blocks that may still be tried without a new best.
        tight_b: whether the shared constraint holds with equality.
        multiplier_b, low_b, high_b: of the shared constraint, and a bracket of it.
    """

    number_b: Tensor
    gradient_bN: Tensor
    point_bN: Tensor
    tensors: tuple[Tensor, ...]
    kinks_bNS: Tensor
    slopes_bNT: Tensor
    radius_b: Tensor
    state_bN: Tensor
    best_b: Tensor
    patience_b: Tensor
    tight_b: Tensor
    multiplier_b: Tensor
    low_b: Tensor
    high_b: Tensor

    def rows(self, which: Tensor) -> "_Work":
        """A part of the elements."""
        fields = {name: value[which] for name, value in self._asdict().items() if name != "tensors"}
        return self._replace(tensors=tuple(tensor[which] for tensor in self.tensors), **fields)


def find_states(
    gradient_BN: Tensor,
    metric: VectorMetric,
    point_BN: Tensor,
    pieces: Pieces,
    max_steps: int,
    together: int = _TOGETHER,
) -> tuple[Tensor, Tensor, Tensor]:
    """The state of each coordinate at the optimum.

    Args:
        gradient_BN: m.
        metric: H, with B elements of its own.
        point_BN: x.
        pieces: with B elements; no graph.
        max_steps: pivots, at most.
        together: pivots for which a shared multiplier is taken along.

    Returns:
        States int8 (B, N), whether the shared constraint is tight (B), whether the search ended (B).
    """
    kind = type(metric)
    size = gradient_BN.shape[0]
    work = _start(gradient_BN, metric, point_BN, pieces)
    states = work.state_bN.clone()
    tights, found = work.tight_b.clone(), torch.zeros_like(work.tight_b)
    for count in range(max_steps if size else 0):
        work, done_b = _pivot(work, kind, pieces.shared, count < together)
        number = work.number_b[done_b]
        states[number], tights[number], found[number] = work.state_bN[done_b], work.tight_b[done_b], True
        left = int((~done_b).sum())
        if left == 0:
            break
        if left <= _COMPACTION * len(done_b):
            work = work.rows((~done_b).nonzero()[:, 0])
    return states, tights, found


def _start(gradient: Tensor, metric: VectorMetric, point: Tensor, pieces: Pieces) -> _Work:
    """States by where the optimum without the constraint is."""
    shared = pieces.shared
    sides = [-gradient] if shared is None else [-gradient, torch.ones_like(gradient)]
    solved = metric.solve_columns(torch.stack(sides, -1))
    step = solved[..., 0]
    zero = torch.zeros_like(gradient[:, 0])
    tight, radius, far = torch.zeros_like(zero, dtype=torch.bool), zero, torch.full_like(zero, torch.inf)
    if shared is not None:
        radius = shared.radius_B
        tight = radius > 0
        if shared.is_equality:
            level = ((point + step).sum(-1) - radius) / solved[..., 1].sum(-1)
            step = step - level[:, None] * solved[..., 1]
        else:
            tight = tight & ((point + step).abs().sum(-1) > radius)
    state = _by_place(step, pieces.kinks_BNS)
    if shared is not None:
        zero_kink = 0 if shared.is_equality else 2
        state = torch.where((radius > 0)[:, None], state, zero_kink).to(torch.int8)
    number = torch.arange(len(zero), device=zero.device)
    best = torch.full_like(number, gradient.shape[1] + 1)
    low = -far if shared is None or shared.is_equality else zero
    return _Work(
        number, gradient, point, metric.tensors, pieces.kinks_BNS, pieces.slopes_BNT, radius, state,
        best, torch.full_like(number, _PATIENCE), tight, zero, low, far,
    )  # fmt: skip


def _by_place(step: Tensor, kinks: Tensor) -> Tensor:
    """The segment a coordinate is on, or the outer kink it is beyond."""
    last = kinks.shape[-1] - 1
    segment = (step[..., None] > kinks[..., 1:-1]).sum(-1) if last > 1 else torch.zeros_like(step, dtype=torch.long)
    state = 2 * segment + 1
    state = torch.where(step <= kinks[..., 0], 0, state)
    return torch.where(step >= kinks[..., -1], 2 * last, state).to(torch.int8)


def _pivot(work: _Work, kind: type[VectorMetric], shared: Shared | None, together: bool) -> tuple[_Work, Tensor]:
    """One step of all elements, and which of them are at their optimum."""
    metric = kind(*work.tensors)
    joined = None if shared is None else shared._replace(radius_B=work.radius_b)
    pieces = Pieces(work.kinks_bNS, work.slopes_bNT, joined)
    here = at_state(pieces, work.state_bN)
    point = _optimum(work, metric, here, together)
    terms = work.gradient_bN, metric.apply(point.step_bN)
    off = excess(pieces, work.state_bN, here, point.step_bN, terms, point.multiplier_b)
    tolerance = 0.1 * none_of(point.step_bN.dtype)
    leaving = (off.high_BN > tolerance).to(torch.int8) - (off.low_BN > tolerance).to(torch.int8)
    if joined is not None:
        leaving = leaving * (work.radius_b > 0)[:, None]
    count = leaving.abs().sum(-1, dtype=torch.long)
    settled = count == 0
    work = work._replace(multiplier_b=point.multiplier_b)
    done = settled & (point.total_b.abs() <= tolerance * point.size_b)
    work, leaving = _choose(work, leaving, count)
    if joined is not None:
        work, leaving = _shared_step(work, metric, pieces, point, settled & ~done, leaving, terms, together)
        done = done & (point.curvature_b > 0) | (settled & ~work.tight_b)
    moved = (work.state_bN + leaving).clamp(0, 2 * pieces.kinks_BNS.shape[-1] - 2).to(torch.int8)
    return work._replace(state_bN=torch.where(done[:, None], work.state_bN, moved)), done


class _Point(NamedTuple):
    """The optimum at given states; `total_b` is by how much the shared sum is above its radius, 0 where that is not tight, and
    `size_b` how large the numbers are that it is the difference of."""

    step_bN: Tensor
    multiplier_b: Tensor
    total_b: Tensor
    size_b: Tensor
    curvature_b: Tensor


def _optimum(work: _Work, metric: VectorMetric, here: Here, together: bool) -> _Point:
    side = -(work.gradient_bN + here.slope_BN + metric.apply(here.base_BN))
    solved = metric.solve_columns(torch.stack((side, here.weight_BN), -1), here.free_BN)
    plain, along = solved[..., 0], solved[..., 1]
    total = (here.weight_BN * (work.point_bN + plain)).sum(-1) - work.radius_b
    size = work.radius_b + (here.weight_BN.abs() * (work.point_bN.abs() + plain.abs())).sum(-1)
    curvature = (here.weight_BN * along).sum(-1)
    active = work.tight_b & (curvature > 0)
    multiplier = work.multiplier_b
    if together:
        exact = torch.maximum(total / torch.where(active, curvature, 1), work.low_b)
        multiplier = torch.where(active, exact, multiplier)
    multiplier = torch.where(work.tight_b, multiplier, 0)
    total = torch.where(work.tight_b, total - multiplier * curvature, 0)
    step = here.base_BN + plain - multiplier[:, None] * along
    return _Point(step, multiplier, total, size, torch.where(work.tight_b, curvature, 1))


def _choose(work: _Work, leaving: Tensor, count: Tensor) -> tuple[_Work, Tensor]:
    """All that want to leave, or the last of them where blocks have not made them fewer for a while."""
    fewer = count < work.best_b
    patience = torch.where(fewer, _PATIENCE, work.patience_b - 1)
    order = torch.arange(1, leaving.shape[1] + 1, device=leaving.device)
    last = torch.where(leaving != 0, order, 0).amax(-1, keepdim=True)
    leaving = torch.where((patience < 0)[:, None] & (order != last), 0, leaving)
    return work._replace(best_b=torch.minimum(count, work.best_b), patience_b=patience.clamp(min=-1)), leaving


def _shared_step(
    work: _Work,
    metric: VectorMetric,
    pieces: Pieces,
    point: _Point,
    unbalanced_b: Tensor,
    leaving: Tensor,
    terms: tuple[Tensor, Tensor],
    together: bool,
) -> tuple[_Work, Tensor]:
    """Where no coordinate is free, the one that is first to be; where the coordinates are settled, another multiplier."""
    empty = work.tight_b & ~(point.curvature_b > 0)
    value, index, sign = _first_to_free(pieces, terms[0] + terms[1])
    order = torch.arange(leaving.shape[1], device=leaving.device)
    single = torch.where(order == index[:, None], sign[:, None], 0).to(torch.int8)
    if together:
        return work, torch.where(empty[:, None], single, leaving)
    unbalanced = unbalanced_b & work.tight_b
    low = torch.where(unbalanced & (point.total_b > 0), work.multiplier_b, work.low_b)
    high = torch.where(unbalanced & (point.total_b <= 0), work.multiplier_b, work.high_b)
    unit = torch.nn.functional.one_hot(index, leaving.shape[1]).to(value)
    alone = value - work.radius_b * (metric.apply(unit) * unit).sum(-1)
    newton = work.multiplier_b + point.total_b / torch.where(empty, 1, point.curvature_b)
    next_one = torch.where(empty, alone, newton)
    middle = torch.where(low.isfinite() & high.isfinite(), 0.5 * (low + high), next_one)
    next_one = torch.where((next_one > low) & (next_one < high), next_one, middle)
    work = work._replace(
        multiplier_b=torch.where(unbalanced, next_one, work.multiplier_b),
        low_b=low,
        high_b=high,
        best_b=torch.where(unbalanced, leaving.shape[1] + 1, work.best_b),
        patience_b=torch.where(unbalanced, _PATIENCE, work.patience_b),
    )
    return work, leaving


def _first_to_free(pieces: Pieces, pull: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest multiplier at which a coordinate leaves 0, which one and in which direction."""
    assert pieces.shared is not None
    upward = -pull - pieces.slopes_BNT[..., -1]
    if pieces.shared.is_equality:
        value, index = upward.max(-1)
        return value, index, torch.ones_like(index)
    downward = pull + pieces.slopes_BNT[..., 0]
    value, index = torch.maximum(upward, downward).max(-1)
    is_upward = (upward >= downward).gather(-1, index[:, None])[:, 0]
    return value, index, torch.where(is_upward, 1, -1)
