"""Maps from free parameters to matrices A under which x = phi(A x + b) has exactly one solution for every b.

All are differentiable, so that gradients are those of the free parameters. phi is any `Activation`: entry by entry, with
slopes in [0, 1].

Legend of shapes: S numbers of a state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from featherlight.nn.implicit.certificates import perron_frobenius
from featherlight.nn.implicit.engines import Direct, Engine, PeacemanRachford
from featherlight.solvers import FixedPointSolver, project_linf_rows


class WellPosedness(Protocol):
    """Where the matrix A of an implicit layer comes from."""

    def initial(self, state_dim: int, /) -> dict[str, Tensor]:
        """First values of the free parameters, drawn with torch's default generator as torch's own layers do."""
        ...

    def parameters_of(self, a: Tensor, /) -> dict[str, Tensor]:
        """Free parameters that give the matrix `a`, (S, S); raises ValueError where none do."""
        ...

    def matrix(self, free: Mapping[str, Tensor], /) -> Tensor:
        """A, (S, S)."""
        ...


class IteratedWellPosedness(WellPosedness, Protocol):
    """A WellPosedness whose states a solver finds."""

    def engine(self, solver: FixedPointSolver, /) -> Engine:
        """The iteration that is sure to reach them."""
        ...


@dataclass(frozen=True, kw_only=True)
class RowProjection:
    """A is the nearest matrix whose rows' absolute values sum to at most `bound`, so that the equation contracts.

    The free parameter may leave the set, where some of its gradients are 0; `ImplicitLayer.project_` brings it back.

    Args:
        bound: of the infinity norm of A, in (0, 1).

    Source: El Ghaoui et al. 2021, section 2.4 and the projection of section 5; here in the forward pass.
    """

    bound: float = 0.95

    def __post_init__(self) -> None:
        _check_bound(self.bound)

    def initial(self, state_dim: int) -> dict[str, Tensor]:
        """Uniform, so that about half of the rows begin on the boundary."""
        return {"weight": _uniform(state_dim, 2 * self.bound / state_dim)}

    def parameters_of(self, a: Tensor) -> dict[str, Tensor]:
        """`a` itself, if its rows are within the bound."""
        _check_rows(a, self.bound)
        return {"weight": a}

    def matrix(self, free: Mapping[str, Tensor]) -> Tensor:
        """The projection; a free parameter inside the set comes back to the bit."""
        return project_linf_rows(free["weight"], bound=self.bound)

    def engine(self, solver: FixedPointSolver) -> Engine:
        """The plain iteration."""
        return Direct(solver=solver)


@dataclass(frozen=True, kw_only=True)
class RowRescaling:
    """A has the free parameter's rows, of length l in the L1 norm, scaled to the length `bound * tanh(l / bound)`.

    Smooth in the length and never flat, so no gradient is lost where rows are long; A stays strictly inside the set.

    Args:
        bound: of the infinity norm of A, in (0, 1).
    """

    bound: float = 0.95

    def __post_init__(self) -> None:
        _check_bound(self.bound)

    def initial(self, state_dim: int) -> dict[str, Tensor]:
        """Uniform, so that rows begin at about tanh(1) of the bound."""
        return {"weight": _uniform(state_dim, 2 * self.bound / state_dim)}

    def parameters_of(self, a: Tensor) -> dict[str, Tensor]:
        """The rows of `a` stretched, if they are below the bound."""
        _check_rows(a, self.bound, strictly=True)
        length = a.abs().sum(1, keepdim=True)
        stretched = self.bound * torch.atanh(length / self.bound)
        return {"weight": a * torch.where(length > 0, stretched / length, torch.ones_like(length))}

    def matrix(self, free: Mapping[str, Tensor]) -> Tensor:
        """The scaled rows."""
        weight = free["weight"]
        length = weight.abs().sum(-1, keepdim=True)
        safe = torch.where(length > 0, length, torch.ones_like(length))
        scale = torch.where(length > 0, self.bound * torch.tanh(safe / self.bound) / safe, torch.ones_like(length))
        return weight * scale

    def engine(self, solver: FixedPointSolver) -> Engine:
        """The plain iteration."""
        return Direct(solver=solver)


@dataclass(frozen=True, kw_only=True)
class MonotoneOperator:
    """A = (1 - margin) I - P^T P + Q - Q^T, so that I - A is strongly monotone; rows and eigenvalues may be large.

    Args:
        margin: least eigenvalue of the symmetric part of I - A, in (0, 1].

    Source: Winston and Kolter 2020, "Monotone operator equilibrium networks", equation 9.
    """

    margin: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.margin <= 1:
            raise ValueError(f"`margin` must be in (0, 1], the least eigenvalue that I - A keeps; got {self.margin}.")

    def initial(self, state_dim: int) -> dict[str, Tensor]:
        """As two linear layers."""
        width = state_dim**-0.5
        return {"symmetric": _uniform(state_dim, width), "skew": _uniform(state_dim, width)}

    def parameters_of(self, a: Tensor) -> dict[str, Tensor]:
        """A Cholesky factor and half of the skew part."""
        wide = a.double()
        symmetric = (wide + wide.T) / 2
        rest = (1 - self.margin) * torch.eye(len(a), dtype=torch.float64, device=a.device) - symmetric
        values, vectors = torch.linalg.eigh(rest)
        if values[0] < -1e-12 * max(1.0, float(values.abs().max())):
            raise ValueError(
                f"A is not well posed as a monotone operator with margin {self.margin}: the least eigenvalue of the symmetric "
                f"part of I - A is {float(values[0]) + self.margin:.4g}. Lower the margin, or subtract at least "
                f"{-float(values[0]):.4g} from A's diagonal."
            )
        root = (vectors * values.clamp(min=0).sqrt()).T
        return {"symmetric": root.to(a), "skew": ((wide - wide.T) / 4).to(a)}

    def matrix(self, free: Mapping[str, Tensor]) -> Tensor:
        """The sum above."""
        symmetric, skew = free["symmetric"], free["skew"]
        eye = torch.eye(symmetric.shape[-1], dtype=symmetric.dtype, device=symmetric.device)
        return (1 - self.margin) * eye - symmetric.mT @ symmetric + skew - skew.mT

    def engine(self, solver: FixedPointSolver) -> Engine:
        """Peaceman-Rachford splitting, since the plain iteration need not contract."""
        return PeacemanRachford(solver=solver)


@dataclass(frozen=True, kw_only=True)
class Unconstrained:
    """A is the free parameter: nothing is promised, and a sample whose states are not found says so."""

    def initial(self, state_dim: int) -> dict[str, Tensor]:
        """Uniform, with rows of length about 1/2."""
        return {"weight": _uniform(state_dim, 1 / state_dim)}

    def parameters_of(self, a: Tensor) -> dict[str, Tensor]:
        """`a` itself."""
        return {"weight": a}

    def matrix(self, free: Mapping[str, Tensor]) -> Tensor:
        """The free parameter."""
        return free["weight"]

    def engine(self, solver: FixedPointSolver) -> Engine:
        """The plain iteration."""
        return Direct(solver=solver)


def _uniform(state_dim: int, width: float) -> Tensor:
    return torch.empty(state_dim, state_dim).uniform_(-width, width)


def _check_bound(bound: float) -> None:
    if not 0 < bound < 1:
        raise ValueError(f"`bound` must be in (0, 1), or the equation need not have a single solution; got {bound}.")


def _check_rows(a: Tensor, bound: float, *, strictly: bool = False) -> None:
    """Raises ValueError that says by how much A is outside, and whether it is well posed in another norm."""
    norm = float(a.double().abs().sum(1).max())
    slack = (len(a) + 8) * torch.finfo(a.dtype).eps
    if norm < bound if strictly else norm <= bound * (1 + slack):
        return
    value = perron_frobenius(a)
    if value.upper < 1:
        what = (
            f"The Perron-Frobenius value of |A| is {value.upper:.4g} < 1, so A is well posed in a scaled norm: use "
            "`scaled_system` with its scaling, which changes no output, or Unconstrained()."
        )
    else:
        what = (
            f"The Perron-Frobenius value of |A| is {value.upper:.4g}, so no scaling helps: project A with project_linf_rows, or "
            "use MonotoneOperator() or Unconstrained()."
        )
    raise ValueError(
        f"A is outside the well-posed set of this map: its largest row sum of absolute values is {norm:.4g}, which exceeds "
        f"the bound {bound} by {norm - bound:.3g}. {what}"
    )
