"""Differentiable optimisation as a layer: its output solves a convex program of which the input is the linear term.

Legend of shapes: ... samples (any number of axes), N coordinates, R factors.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from featherlight.nn.implicit.results import ImplicitResult
from featherlight.solvers.convex import (
    AffineEquality,
    Box,
    Constraint,
    ConvexSolution,
    ConvexStatus,
    DiagonalMetric,
    FullMetric,
    L1Ball,
    L1Prox,
    L2Ball,
    LinfBall,
    LowRankMetric,
    Metric,
    Simplex,
    make_cvxpy_layer,
    solve_convex_step,
)


class LearnedMetric(Protocol):
    """Where the quadratic form of a ConvexLayer comes from: parameters without bounds, and a form that is always positive."""

    def parameters(self, dim: int) -> dict[str, Tensor]:
        """What is learned, at its start, for outputs of `dim` coordinates."""
        ...

    def metric(self, parameters: dict[str, nn.Parameter]) -> Metric:
        """The form of the parameters."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Floored:
    """With a smallest curvature."""

    floor: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.floor < 1:
            raise ValueError(
                f"`floor` must be in (0, 1), the smallest curvature of a metric that starts near I; got {self.floor}."
            )


@dataclass(frozen=True, kw_only=True)
class LearnedDiagonal(_Floored):
    """A learned diagonal: softplus(p) + floor, 1 at the start.

    Args:
        floor: smallest curvature, above 0.
    """

    def parameters(self, dim: int) -> dict[str, Tensor]:
        """See LearnedMetric."""
        return {"curvature": torch.full((dim,), _softplus_inverse(1 - self.floor))}

    def metric(self, parameters: dict[str, nn.Parameter]) -> Metric:
        """See LearnedMetric."""
        return DiagonalMetric(nn.functional.softplus(parameters["curvature"]) + self.floor)


@dataclass(frozen=True, kw_only=True)
class LearnedLowRank(_Floored):
    """A learned diagonal and a few learned factors, small normal numbers at the start.

    Args:
        rank: number of factors, at least 1.
        floor: smallest curvature, above 0.
    """

    rank: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ValueError(f"`rank` must be at least 1; got {self.rank}. Without factors take LearnedDiagonal().")

    def parameters(self, dim: int) -> dict[str, Tensor]:
        """See LearnedMetric."""
        return LearnedDiagonal(floor=self.floor).parameters(dim) | {"factors": 0.1 * torch.randn(dim, self.rank)}

    def metric(self, parameters: dict[str, nn.Parameter]) -> Metric:
        """See LearnedMetric."""
        diagonal = nn.functional.softplus(parameters["curvature"]) + self.floor
        return LowRankMetric(diagonal, parameters["factors"])


@dataclass(frozen=True, kw_only=True)
class LearnedFull(_Floored):
    """A learned matrix: F F' + floor I, near I at the start.

    Args:
        floor: smallest curvature, above 0.
    """

    def parameters(self, dim: int) -> dict[str, Tensor]:
        """See LearnedMetric."""
        return {"root": torch.eye(dim) + 0.1 / math.sqrt(dim) * torch.randn(dim, dim)}

    def metric(self, parameters: dict[str, nn.Parameter]) -> Metric:
        """See LearnedMetric."""
        root = parameters["root"]
        return FullMetric(root @ root.mT + self.floor * torch.eye(len(root), dtype=root.dtype, device=root.device))


class ConvexLayer(nn.Module):
    """y = argmin -u'y + 1/2 y' H y + r(y)  subject to y in X, of which H, X and r are learned; u is the input.

    A projection in a learned metric, a sparse code, a learned softmax-like choice: what is known of the output is kept
    exactly by construction. Gradients are exact, of any order; see `solve_convex_step`.

    Args:
        dim: N, coordinates of input and output.
        metric: where H comes from.
        constraint: X; its tensors, where it has any, become parameters named `constraint_...`. Numbers stay fixed.
        prox: r; as `constraint`, `prox_...`.

    Source: Amos, Kolter 2017, "OptNet"; Agrawal et al. 2019, "Differentiable convex optimization layers".
    """

    def __init__(
        self,
        dim: int,
        *,
        metric: LearnedMetric | None = None,
        constraint: Constraint | None = None,
        prox: L1Prox | None = None,
    ) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"`dim` must be at least 1, the coordinates of the output; got {dim}.")
        self.dim = dim
        self.metric = LearnedDiagonal() if metric is None else metric
        self._constraint, self._prox = constraint, prox
        start = self.metric.parameters(dim)
        self._metric_names = tuple(start)
        for name, value in start.items():
            self.register_parameter(name, nn.Parameter(value))
        for prefix, part in (("constraint", constraint), ("prox", prox)):
            for name, value in vars(part).items() if part is not None else ():
                if isinstance(value, Tensor):
                    self.register_parameter(f"{prefix}_{name}", nn.Parameter(value.detach().clone()))
        solve_convex_step(
            torch.zeros(dim), self._learned_metric(), constraint=self._part("constraint"), prox=self._term()
        )

    def forward(self, u: Tensor) -> ImplicitResult:
        """The minima, as values and states.

        Args:
            u: (..., N), floating point.

        Raises:
            ConvexError: a sample has no minimum. `attempt` returns what there is instead.
        """
        return self._run(u, strict=True)

    def attempt(self, u: Tensor) -> ImplicitResult:
        """As calling the layer, but samples without a minimum have value 0, no gradient, and a ConvexStatus that says why."""
        return self._run(u, strict=False)

    def extra_repr(self) -> str:
        """What the layer is made of, in a line."""
        parts = [f"dim={self.dim}", f"metric={self.metric}"]
        parts += [type(part).__name__ for part in (self._constraint, self._prox) if part is not None]
        return ", ".join(parts)

    def _run(self, u: Tensor, *, strict: bool) -> ImplicitResult:
        if u.ndim < 1 or u.shape[-1] != self.dim:
            raise ValueError(f"the layer takes inputs of {self.dim} coordinates; got shape {tuple(u.shape)}.")
        with torch.autocast(u.device.type, enabled=False):
            found = solve_convex_step(
                -u, self._learned_metric(), constraint=self._part("constraint"), prox=self._term()
            )
        values = found.unwrap() if strict else found.step_BN
        return ImplicitResult(values, values, found.residual_B, found.status_B)

    def _learned_metric(self) -> Metric:
        return self.metric.metric({name: self.get_parameter(name) for name in self._metric_names})

    def _part(self, prefix: str) -> Constraint | None:
        """The constraint with the parameters that its tensors have become."""
        part = self._constraint
        if part is None:
            return None
        assert isinstance(part, Box | LinfBall | L2Ball | L1Ball | Simplex | AffineEquality)
        return type(part)(**self._fields(prefix, part))

    def _term(self) -> L1Prox | None:
        return None if self._prox is None else L1Prox(**self._fields("prox", self._prox))

    def _fields(self, prefix: str, part: Constraint | L1Prox) -> dict[str, Any]:
        return {
            name: self.get_parameter(f"{prefix}_{name}") if isinstance(value, Tensor) else value
            for name, value in vars(part).items()
        }


def _softplus_inverse(value: float) -> float:
    return value + math.log(-math.expm1(-value))


class CvxpyProgram(nn.Module):
    """The minimum of any convex program that cvxpy can state, through cvxpylayers: the extra `cvxpy`.

    For programs that ConvexLayer does not cover; hundreds of times slower than it where both do. First derivatives alone.

    Args:
        problem: a cvxpy.Problem that follows the rules of disciplined parametrized programming.
        inputs: its parameters that a call is given, in their order.
        output: its variable that is returned.
        learned: start values of its other parameters, which become parameters of the module.
        solver_args: settings of diffcp; None is a tolerance of 1e-10. Jobs are torch's threads unless given.

    Source: Agrawal et al. 2019, "Differentiable convex optimization layers".
    """

    def __init__(
        self,
        problem: Any,
        *,
        inputs: Sequence[Any],
        output: Any,
        learned: Mapping[Any, Tensor] | None = None,
        solver_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        learned = {} if learned is None else learned
        self._layer = make_cvxpy_layer(problem, [*inputs, *learned], [output])
        self._shapes, self._size = [tuple(each.shape) for each in inputs], tuple(output.shape)
        self._solver_args = {"eps": 1e-10} if solver_args is None else dict(solver_args)
        for name in ("n_jobs_forward", "n_jobs_backward"):
            self._solver_args.setdefault(name, torch.get_num_threads())
        self._learned = nn.ParameterList([nn.Parameter(value.detach().clone()) for value in learned.values()])

    def forward(self, *inputs: Tensor) -> ImplicitResult:
        """The minima, as values and states; residuals are nan, as the solver returns none.

        Args:
            inputs: (..., *shape of the parameter) each; the axes before broadcast.

        Raises:
            ConvexError: a sample has no minimum. `attempt` returns what there is instead.
        """
        values, status = self._solve(inputs)
        ConvexSolution(values, status, torch.zeros_like(status)).unwrap()
        return self._result(values, status)

    def attempt(self, *inputs: Tensor) -> ImplicitResult:
        """As calling the layer, but samples without a minimum have value 0, no gradient, and a ConvexStatus that says why."""
        return self._result(*self._solve(inputs))

    def _result(self, values: Tensor, status: Tensor) -> ImplicitResult:
        return ImplicitResult(values, values, torch.full_like(status, torch.nan, dtype=values.dtype), status)

    def _solve(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Values and statuses; where the solver gives up on a batch its samples are solved one by one."""
        from diffcp import SolverError

        rows, batch = self._rows(inputs)
        finite = torch.stack([row.isfinite().reshape(len(row), -1).all(1) for row in rows]).all(0)
        status = torch.where(finite, int(ConvexStatus.SOLVED), int(ConvexStatus.NOT_FINITE)).to(torch.int8)
        values = rows[0].new_zeros(len(status), *self._size)
        chosen = finite.nonzero()[:, 0]
        parts = [chosen] if len(chosen) else []
        try:
            found = [self._minima([row[part] for row in rows]) for part in parts]
        except SolverError:
            parts, found = list(chosen.split(1)), []
            for part in parts:
                try:
                    found.append(self._minima([row[part] for row in rows]))
                except SolverError as error:
                    infeasible = "infeasible" in str(error)
                    status[part] = int(ConvexStatus.INFEASIBLE if infeasible else ConvexStatus.NOT_CONVERGED)
                    found.append(values[part])
        for part, minima in zip(parts, found, strict=True):
            values = values.index_copy(0, part, minima)
        return values.reshape(*batch, *self._size).to(inputs[0].dtype), status.reshape(batch)

    def _minima(self, rows: list[Tensor]) -> Tensor:
        learned = [parameter.double() for parameter in self._learned]
        return self._layer(*rows, *learned, solver_args=self._solver_args)[0]

    def _rows(self, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], torch.Size]:
        """Inputs with one axis of samples, in float64, and the shape of the batch."""
        if len(inputs) != len(self._shapes) or not inputs:
            raise ValueError(f"the program takes {len(self._shapes)} inputs, at least one; got {len(inputs)}.")
        for number, (given, shape) in enumerate(zip(inputs, self._shapes, strict=True)):
            if given.ndim < len(shape) or tuple(given.shape[given.ndim - len(shape) :]) != shape:
                raise ValueError(f"input {number} must have shape (..., {shape}); got {tuple(given.shape)}.")
        pairs = list(zip(inputs, self._shapes, strict=True))
        batch = torch.broadcast_shapes(*(given.shape[: given.ndim - len(shape)] for given, shape in pairs))
        return [given.double().expand(*batch, *shape).reshape(-1, *shape) for given, shape in pairs], batch
