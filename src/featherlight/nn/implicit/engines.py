"""How the states x = phi(b + x m) are iterated.

Legend of shapes: E matrices solved side by side, N samples, S numbers of a state.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from featherlight.solvers import FixedPoint, FixedPointSolver


class Engine(Protocol):
    """Solves x = phi(b + x m) for phi with slopes in [0, 1]."""

    def solve(self, m: Tensor, phi: Callable[[Tensor], Tensor], b: Tensor, start: Tensor | None, /) -> FixedPoint:
        """Its value is like `b`; its status and residual have one number a row of `b`, all rows in one axis.

        Args:
            m: (S, S), or (E, S, S).
            phi: of tensors like `b`.
            b: (N, S), or (E, N, S).
            start: like `b`; None starts from phi(b).
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Direct:
    """Iterates the equation as it stands, for matrices under which it contracts in some norm."""

    solver: FixedPointSolver

    def solve(self, m: Tensor, phi: Callable[[Tensor], Tensor], b: Tensor, start: Tensor | None) -> FixedPoint:
        """See `Engine`."""
        shape, add = b.shape, _plus_product(m)
        x = phi(b) if start is None else start
        found = self.solver(lambda x: phi(add(b, x.view(shape), m)).flatten(0, -2), x.flatten(0, -2))
        return replace(found, value=found.value.view(shape))


@dataclass(frozen=True, kw_only=True)
class PeacemanRachford:
    """Splits the equation into its linear and its monotone part, for matrices with I - m strongly monotone.

    With step 1 the resolvent of the activation's part is the activation itself, whichever it is, and that of the linear
    part one inverse for all samples. The reflections' composition contracts whatever the size of m.

    Source: Winston and Kolter 2020, "Monotone operator equilibrium networks", algorithm 2, at alpha = 1.
    """

    solver: FixedPointSolver

    def solve(self, m: Tensor, phi: Callable[[Tensor], Tensor], b: Tensor, start: Tensor | None) -> FixedPoint:
        """See `Engine`; the residual is that of the splitting's own variable."""
        shape, add = b.shape, _plus_product(m)
        double = 2 * torch.eye(m.shape[-1], dtype=m.dtype, device=m.device)
        inverse = torch.linalg.inv(double - m)
        shift = b @ inverse

        def mirrored(z: Tensor) -> Tensor:
            return 2 * add(shift, z, inverse) - z

        def reflect(z: Tensor) -> Tensor:
            mirror = mirrored(z.view(shape))
            return (2 * phi(mirror) - mirror).flatten(0, -2)

        x = phi(b) if start is None else start
        found = self.solver(reflect, (2 * x - add(b, x, m)).flatten(0, -2))
        return replace(found, value=phi(mirrored(found.value.view(shape))))


def _plus_product(m: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return torch.addmm if m.ndim == 2 else torch.baddbmm
