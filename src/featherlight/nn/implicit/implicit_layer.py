"""The implicit layer x = phi(A x + B u), y = C x + D u.

Legend of shapes: ... positions, N positions in one axis, I inputs, S numbers of a state, Y outputs.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from featherlight.nn.implicit.activations import RELU, Activation
from featherlight.nn.implicit.affine import How, affine_states
from featherlight.nn.implicit.gradients import Found, GradientMode, ImplicitDifferentiation
from featherlight.nn.implicit.results import ImplicitResult
from featherlight.nn.implicit.triangular import StrictlyTriangular
from featherlight.nn.implicit.well_posedness import IteratedWellPosedness, RowProjection
from featherlight.solvers import Anderson, FixedPointSolver, Status


class ImplicitLayer(nn.Module):
    """States that solve their own equation, x = phi(A x + B u), read out as y = C x + D u.

    A layer keeps nothing between calls. The equation is solved in the parameters' dtype, under autocast too. A constant
    appended to the inputs is a bias. Under torch.compile the search for the states is one graph break, as its number of
    steps depends on values (`fullgraph=True` refuses it), but for StrictlyTriangular, which compiles whole.

    Args:
        state_dim: S, at least 1.
        in_features: I.
        out_features: Y.
        activation: phi.
        solver: finds the states, and the gradients of ImplicitDifferentiation. None is
            Anderson(memory=1, plain_steps=4);
            StrictlyTriangular needs none.
        gradient: how backward passes through the states; StrictlyTriangular is exact as it is.
        well_posed: where A comes from.

    Attributes:
        free: the free parameters behind `A`.
        B: (S, I).
        C: (Y, S).
        D: (Y, I).

    Raises:
        ValueError: a size below 1, or parts that do not go together.

    Source: El Ghaoui, Gu, Travacca, Askari, Tsai 2021, "Implicit deep learning".
    """

    def __init__(
        self,
        state_dim: int,
        in_features: int,
        out_features: int,
        *,
        activation: Activation = RELU,
        solver: FixedPointSolver | None = None,
        gradient: GradientMode | None = None,
        well_posed: IteratedWellPosedness | StrictlyTriangular | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("state_dim", state_dim), ("in_features", in_features), ("out_features", out_features)):
            if size < 1:
                raise ValueError(f"`{name}` must be at least 1; got {size}. A model without states is a linear layer.")
        well_posed = RowProjection() if well_posed is None else well_posed
        if isinstance(well_posed, StrictlyTriangular) and not (solver is None and gradient is None):
            raise ValueError(
                "StrictlyTriangular() finds states and gradients exactly by substitution; leave `solver` and `gradient` out."
            )
        self.state_dim = state_dim
        self.in_features = in_features
        self.out_features = out_features
        self.activation = activation
        self.solver = Anderson(memory=1, plain_steps=4) if solver is None else solver
        self.gradient = ImplicitDifferentiation() if gradient is None else gradient
        self.well_posed = well_posed
        self.free = nn.ParameterDict(well_posed.initial(state_dim))
        self.B = nn.Parameter(_uniform(state_dim, in_features))
        self.C = nn.Parameter(_uniform(out_features, state_dim))
        self.D = nn.Parameter(_uniform(out_features, in_features))

    @classmethod
    def from_matrices(
        cls,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        d: Tensor,
        *,
        activation: Activation = RELU,
        solver: FixedPointSolver | None = None,
        gradient: GradientMode | None = None,
        well_posed: IteratedWellPosedness | StrictlyTriangular | None = None,
    ) -> Self:
        """A layer with these matrices, in their dtype and on their device.

        Raises:
            ValueError: shapes that do not fit, or an A outside the set of `well_posed`: by how much, and what to do.
        """
        states, inputs, outputs = len(a), b.shape[-1], len(c)
        if (a.shape, b.shape, c.shape, d.shape) != (
            (states, states),
            (states, inputs),
            (outputs, states),
            (outputs, inputs),
        ):
            raise ValueError(
                f"the matrices must be A (S, S), B (S, I), C (Y, S) and D (Y, I); got {tuple(a.shape)}, {tuple(b.shape)}, "
                f"{tuple(c.shape)} and {tuple(d.shape)}."
            )
        layer = cls(
            states, inputs, outputs, activation=activation, solver=solver, gradient=gradient, well_posed=well_posed
        )
        layer.free = nn.ParameterDict({k: v.detach().clone() for k, v in layer.well_posed.parameters_of(a).items()})
        layer.B, layer.C, layer.D = (nn.Parameter(matrix.detach().clone()) for matrix in (b, c, d))
        return layer

    @property
    def A(self) -> Tensor:
        """(S, S), well posed, with its graph to the free parameters."""
        return self.well_posed.matrix(dict(self.free.items()))

    def forward(self, u: Tensor, *, start: Tensor | None = None) -> ImplicitResult:
        """Values and states.

        Args:
            u: (..., I).
            start: (..., S), where the search begins, such as the states of an earlier call; None begins at phi(B u).

        Raises:
            ValueError: shapes that do not fit.
            FixedPointError: the states of some samples were not found; samples are counted along the positions in one
                axis. `attempt` returns what there is instead. StrictlyTriangular raises nothing: a sample with nan or inf in
                `u` has NaN or inf in its values and the status BROKEN_INPUT.
        """
        return self._run(u, start, strict=True)

    def attempt(self, u: Tensor, *, start: Tensor | None = None) -> ImplicitResult:
        """As calling the layer, but samples whose states are not found have a status for it, and give no gradient.

        The states of a sample with nan or inf in `u` are NaN; others come out as if it were not there.
        """
        self._check(u, start)
        broken = ~u.isfinite().all(-1)
        whole = self._run(u.masked_fill(broken[..., None], 0), start, strict=False)
        return ImplicitResult(
            whole.values.masked_fill(broken[..., None], float("nan")),
            whole.states.masked_fill(broken[..., None], float("nan")),
            whole.residuals.masked_fill(broken, float("nan")),
            whole.statuses.masked_fill(broken, int(Status.BROKEN_INPUT)),
        )

    @torch.no_grad()
    def project_(self) -> None:
        """Replaces the free parameters by those that give the same A: a projected gradient step, after the optimizer's."""
        for name, value in self.well_posed.parameters_of(self.A).items():
            self.free[name].copy_(value)

    def extra_repr(self) -> str:
        """The sizes and parts."""
        parts = f"{self.state_dim}, {self.in_features}, {self.out_features}, well_posed={self.well_posed}"
        if isinstance(self.well_posed, StrictlyTriangular):
            return parts
        return f"{parts}, solver={self.solver}, gradient={self.gradient}"

    def _run(self, u: Tensor, start: Tensor | None, *, strict: bool) -> ImplicitResult:
        self._check(u, start)
        positions = u.shape[:-1]
        u_NI = u.reshape(-1, self.in_features)
        with torch.autocast(u.device.type, enabled=False):
            b_NS = u_NI.to(self.B.dtype) @ self.B.mT
            found = self._states(b_NS, None if start is None else start.reshape(b_NS.shape).to(b_NS.dtype), strict)
        values = torch.addmm(u_NI @ self.D.mT, found.states, self.C.mT)
        if isinstance(self.well_posed, StrictlyTriangular):
            broken = ~values.detach().isfinite().all(-1)
            found = found._replace(statuses=found.statuses.masked_fill(broken, int(Status.BROKEN_INPUT)))
        return ImplicitResult(
            values.view(*positions, self.out_features),
            found.states.view(*positions, self.state_dim),
            found.residuals.view(positions),
            found.statuses.view(positions),
        )

    def _states(self, b_NS: Tensor, start: Tensor | None, strict: bool) -> Found:
        if isinstance(self.well_posed, StrictlyTriangular):
            x = self.well_posed.states(dict(self.free.items()), self.activation, b_NS)
            return Found(x, x.new_zeros(len(x)), torch.zeros(len(x), dtype=torch.int8, device=x.device))
        how = How(engine=self.well_posed.engine(self.solver), activation=self.activation, strict=strict)
        return self._solved(_Equation(self.A, b_NS, start, how))

    @torch.compiler.disable(reason="the number of a solver's steps depends on values")
    def _solved(self, equation: "_Equation") -> Found:
        return self.gradient.states(equation)

    def _check(self, u: Tensor, start: Tensor | None) -> None:
        if u.ndim < 1 or u.shape[-1] != self.in_features:
            raise ValueError(
                f"the inputs must end in an axis of in_features = {self.in_features}; got shape {tuple(u.shape)}."
            )
        if start is not None and start.shape != (*u.shape[:-1], self.state_dim):
            raise ValueError(
                f"`start` must be one state a position, {(*u.shape[:-1], self.state_dim)}; got shape {tuple(start.shape)}."
            )


@dataclass(frozen=True)
class _Equation:
    """x = phi(A x + b) as a StateEquation."""

    a: Tensor
    b_NS: Tensor
    begin: Tensor | None
    how: How

    def start(self) -> Tensor:
        return self.how.activation(self.b_NS) if self.begin is None else self.begin

    def exact(self) -> Found:
        return Found(*affine_states(self.a.mT, self.b_NS, self.begin, self.how))

    def detached(self) -> Found:
        return Found(*affine_states(self.a.detach().mT, self.b_NS.detach(), self.begin, self.how))

    def map(self, x: Tensor) -> Tensor:
        return self.how.activation(torch.addmm(self.b_NS, x, self.a.mT))


def _uniform(rows: int, columns: int) -> Tensor:
    return torch.empty(rows, columns).uniform_(-1, 1) * columns**-0.5
