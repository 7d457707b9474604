"""The step of mirror descent with the entropy: exponentiated gradient.

Legend of shapes: B batch axes, N coordinates.
"""

import torch
from torch import Tensor

from featherlight.solvers.convex.constraints import EntropyMirror, Simplex
from featherlight.solvers.convex.metrics import DiagonalMetric
from featherlight.solvers.convex.outcome import ConvexSolution, ConvexStatus
from featherlight.solvers.convex.program import Program, begin, check_shapes


def solve_mirror(gradient: Tensor, mirror: EntropyMirror, point: Tensor, simplex: Simplex | None) -> ConvexSolution:
    """The steps from a positive point; in a simplex if one is given."""
    strength = torch.as_tensor(mirror.strength, device=gradient.device)
    radius = torch.as_tensor(1.0 if simplex is None else simplex.radius, device=gradient.device)
    like = torch.ones(gradient.shape[-1:], dtype=gradient.dtype, device=gradient.device)
    check_shapes(gradient, DiagonalMetric(like), point)
    program = begin(gradient, DiagonalMetric(like), point, strength.shape, radius.shape)
    program, strength = _with_strength(program, program.numbers(strength))
    radius = program.numbers(radius).expand(program.batch)
    x = program.point_BN
    possible = (x >= 0).all(-1) & ~(radius < 0)
    possible = possible if simplex is None else possible & (x > 0).any(-1)
    program = program.excluding(radius.isfinite(), possible)
    usable = program.usable_B
    radius, x = torch.where(usable, radius, 1), torch.where(usable[..., None], x, 1)
    positive = x > 0
    kept = torch.where(positive, x, 1)
    moved = -program.gradient_BN / strength[..., None]
    if simplex is None:
        step = torch.where(positive, kept * torch.expm1(moved), 0)
        program = program.excluding(step.detach().isfinite().all(-1), torch.ones_like(usable))
        return program.solution(torch.where(program.usable_B[..., None], step, 0))
    shares = torch.softmax(torch.where(positive, kept.log() + moved, -torch.inf), -1)
    return program.solution(radius[..., None] * shares - x, degenerate_B=(radius == 0) | ~positive.all(-1))


def _with_strength(program: Program, strength: Tensor) -> tuple[Program, Tensor]:
    """The program with its verdict on the strength, which is 1 where it makes no sense."""
    strength = strength.expand(program.batch)
    good = strength > 0
    status = torch.where(program.usable_B & ~good, int(ConvexStatus.INDEFINITE), program.status_B)
    status = torch.where(program.usable_B & ~strength.isfinite(), int(ConvexStatus.NOT_FINITE), status).to(torch.int8)
    program = program._replace(status_B=status)
    return program, torch.where(program.usable_B, strength, 1)
