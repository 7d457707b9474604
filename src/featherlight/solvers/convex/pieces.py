"""Sets and terms that are piecewise linear in each coordinate, in one form.

Along a coordinate of the step there are kinks, and segments between neighbouring kinks on which the term has one slope; the
outer kinks are bounds, or infinite. A state numbers both in order: 2 k is kink k, 2 k + 1 the segment above it. Simplex and
L1 ball add one multiplier that all coordinates share: on a segment the slope is slope + multiplier * weight.

Legend of shapes: B batch axes, N coordinates, S kinks, T = S - 1 segments.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from featherlight.solvers.convex.constraints import Box, Constraint, L1Ball, L1Prox, LinfBall, Simplex
from featherlight.solvers.convex.program import Program


class Shared(NamedTuple):
    """sum over coordinates on segments of weight * (x + d) is at most radius, or equal to it.

    Attributes:
        weights: one a segment.
        radius_B: of the set.
        is_equality: else at most.
    """

    weights: tuple[float, ...]
    radius_B: Tensor
    is_equality: bool


class Pieces(NamedTuple):
    """The term of a batch of programs.

    Attributes:
        kinks_BNS: in the step, ascending; the outer ones may be infinite.
        slopes_BNT: ascending.
        shared: what joins the coordinates; None if nothing does.
    """

    kinks_BNS: Tensor
    slopes_BNT: Tensor
    shared: Shared | None


class Limits(NamedTuple):
    """Bounds of the point and the slope of the L1 term, which broadcast to (B, N); None if there is no such term."""

    lower: Tensor
    upper: Tensor
    strength: Tensor | None


def make_limits(program: Program, constraint: Box | LinfBall | None, prox: L1Prox | None) -> tuple[Program, Limits]:
    """The program with its verdict on constraint and prox, and their numbers, 0 where they make no sense."""
    lower, upper = _bounds(program, constraint)
    finite = ~(lower.isnan() | upper.isnan())
    feasible = (lower <= upper) & (lower < torch.inf) & (upper > -torch.inf)
    if prox is None:
        program = program.excluding(_every(program, finite), _every(program, feasible))
        usable = program.usable_B[..., None]
        return program, Limits(torch.where(usable, lower, 0), torch.where(usable, upper, 0), None)
    strength = program.numbers(prox.strength)
    finite, feasible = finite & strength.isfinite(), feasible & ~(strength < 0)
    program = program.excluding(_every(program, finite), _every(program, feasible))
    usable = program.usable_B[..., None]
    return program, Limits(*(torch.where(usable, each, 0) for each in (lower, upper, strength)))


def make_pieces(program: Program, constraint: Constraint | None, prox: L1Prox | None) -> tuple[Program, Pieces]:
    """The program with its verdict on the constraint, and the constraint in one form."""
    if isinstance(constraint, Box | LinfBall) or constraint is None:
        program, limits = make_limits(program, constraint, prox)
        return program, _separable(program, *limits)
    assert isinstance(constraint, L1Ball | Simplex)
    strength = program.numbers(0.0 if prox is None else prox.strength)
    finite, feasible = _every(program, strength.isfinite()), _every(program, ~(strength < 0))
    radius = program.numbers(constraint.radius).expand(program.batch)
    program = program.excluding(finite & radius.isfinite(), feasible & ~(radius < 0))
    radius = torch.where(program.usable_B, radius, 1)
    strength = torch.where(program.usable_B[..., None], strength, 0)
    return program, _joined(program, radius, strength, isinstance(constraint, Simplex))


def _separable(program: Program, lower: Tensor, upper: Tensor, strength: Tensor | None) -> Pieces:
    x = program.point_BN
    ends = [lower.expand_as(x) - x, upper.expand_as(x) - x]
    if strength is None:
        return Pieces(torch.stack(ends, -1), torch.zeros_like(x)[..., None], None)
    zero = torch.minimum(torch.maximum(torch.zeros_like(x), lower), upper) - x
    s = strength.expand_as(x)
    return Pieces(torch.stack((ends[0], zero, ends[1]), -1), torch.stack((-s, s), -1), None)


def _joined(program: Program, radius: Tensor, strength: Tensor, is_simplex: bool) -> Pieces:
    x = program.point_BN
    far = torch.full_like(x, torch.inf)
    s = strength.expand_as(x)
    if is_simplex:
        return Pieces(torch.stack((-x, far), -1), s[..., None], Shared((1.0,), radius, True))
    return Pieces(torch.stack((-far, -x, far), -1), torch.stack((-s, s), -1), Shared((-1.0, 1.0), radius, False))


def _bounds(program: Program, constraint: Box | LinfBall | None) -> tuple[Tensor, Tensor]:
    if constraint is None:
        return program.numbers(-torch.inf), program.numbers(torch.inf)
    if isinstance(constraint, LinfBall):
        radius = program.numbers(constraint.radius)[..., None]
        return -radius, radius
    return program.numbers(constraint.lower), program.numbers(constraint.upper)


def _every(program: Program, which: Tensor) -> Tensor:
    """Whether it holds for all coordinates of an element."""
    return which.expand_as(program.gradient_BN).all(-1)


class Here(NamedTuple):
    """What the pieces are at a state of each coordinate.

    Attributes:
        free_BN: on a segment.
        base_BN: the kink, or 0 on a segment.
        slope_BN: of the segment, or 0 at a kink.
        weight_BN: of the segment in the shared sum, or 0 at a kink.
    """

    free_BN: Tensor
    base_BN: Tensor
    slope_BN: Tensor
    weight_BN: Tensor


def at_state(pieces: Pieces, state_BN: Tensor) -> Here:
    """The pieces at a state; differentiable in kinks and slopes."""
    free = state_BN % 2 == 1
    index = (state_BN // 2).long()[..., None]
    segment = index.clamp(max=pieces.slopes_BNT.shape[-1] - 1)
    zero = torch.zeros((), dtype=pieces.kinks_BNS.dtype, device=free.device)
    base = torch.where(free, zero, pieces.kinks_BNS.gather(-1, index)[..., 0])
    slope = torch.where(free, pieces.slopes_BNT.gather(-1, segment)[..., 0], zero)
    weights = (0.0,) * pieces.slopes_BNT.shape[-1] if pieces.shared is None else pieces.shared.weights
    weight = torch.where(free, _each(segment[..., 0], weights, zero), zero)
    return Here(free, base, slope, weight)


class Excess(NamedTuple):
    """By how much each coordinate should leave its state downwards or upwards, relative to what is compared; below 0 if not."""

    low_BN: Tensor
    high_BN: Tensor
    slack_BN: Tensor
    """|what should be 0|, relative."""


def excess(
    pieces: Pieces, state_BN: Tensor, here: Here, step_BN: Tensor, terms: tuple[Tensor, Tensor], multiplier_B: Tensor
) -> Excess:
    """How far a state is from the conditions of optimality.

    Args:
        pieces: the term.
        state_BN: a state of each coordinate.
        here: the pieces at the state.
        step_BN: d.
        terms: m and H d.
        multiplier_B: of what is shared.
    """
    index = (state_BN // 2).long()[..., None]
    upper = (index + 1).clamp(max=pieces.kinks_BNS.shape[-1] - 1)
    kinks = pieces.kinks_BNS
    tiny = torch.finfo(kinks.dtype).tiny
    finite = torch.where(kinks.isfinite(), kinks.abs(), 0).amax((-2, -1))
    reach = (step_BN.abs().amax(-1) + finite).clamp(min=tiny)[..., None]
    pull = terms[0] + terms[1]
    size = (terms[0].abs() + terms[1].abs() + pieces.slopes_BNT.abs().amax(-1)).amax(-1).clamp(min=tiny)[..., None]
    below, above = _slopes_beside(pieces, index, multiplier_B)
    free_low = (kinks.gather(-1, index)[..., 0] - step_BN) / reach
    free_high = (step_BN - kinks.gather(-1, upper)[..., 0]) / reach
    low = torch.where(here.free_BN, free_low, (below + pull) / size)
    high = torch.where(here.free_BN, free_high, (-pull - above) / size)
    rest = pull + here.slope_BN + multiplier_B[..., None] * here.weight_BN
    return Excess(low, high, torch.where(here.free_BN, rest.abs() / size, 0))


def _slopes_beside(pieces: Pieces, index: Tensor, multiplier_B: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes on both sides of a kink; infinite beyond the outer ones."""
    slopes, last = pieces.slopes_BNT, pieces.slopes_BNT.shape[-1]
    if pieces.shared is not None:
        weights = torch.tensor(pieces.shared.weights, dtype=slopes.dtype, device=slopes.device)
        slopes = slopes + multiplier_B[..., None, None] * weights
    below = slopes.gather(-1, (index - 1).clamp(min=0))[..., 0]
    above = slopes.gather(-1, index.clamp(max=last - 1))[..., 0]
    return (
        torch.where(index[..., 0] > 0, below, -torch.inf),
        torch.where(index[..., 0] < last, above, torch.inf),
    )


def _each(index: Tensor, values: tuple[float, ...], like: Tensor) -> Tensor:
    """values[index] for a few values."""
    found = like + values[0]
    for number, value in enumerate(values[1:], 1):
        found = torch.where(index == number, like + value, found)
    return found
