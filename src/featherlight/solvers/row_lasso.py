"""Sparse rows of a linear map, each with a bounded sum of sizes: many small lassos that share their features.

Row r is the minimum over w of |t_r - X w|^2 / 2 + penalty |w|_1, with |w_i|_1 summed over the first `num_bounded` entries at most
`bound`. All rows are solved side by side by the alternating direction method of multipliers with a step of their own, from one
eigendecomposition of X^T X, and now and then by a solve over the entries that are not 0; each has a duality gap.

Legend of shapes: N samples, F features, R rows.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from featherlight.solvers.projections import project_l1_ball

_CHECK_EVERY = 10
_FIRST_POLISH = 50
"""Steps before the first solve over the supports; each later one comes after twice as many."""
_MOST_NUMBERS = 4_000_000
"""Of the matrices of such solves side by side."""


class RowStatus(IntEnum):
    """How the search for a row ended."""

    CONVERGED = 0
    """Its gap is at most `tolerance` of its loss at 0."""
    STEPS_EXHAUSTED = 1
    """It was not after `max_steps`."""
    BROKEN_INPUT = 2
    """Its targets hold nan or inf; its weights are NaN, and other rows are as if it were not there."""


@dataclass(frozen=True, kw_only=True)
class RowLasso:
    """The outcome.

    Attributes:
        weights: (R, F), float64, with exact zeros, and within the bound.
        objective: (R,), at `weights`.
        gap: (R,), what `objective` is above the minimum at most.
        status: (R,), int8 numbers of RowStatus.
        steps: (R,), int32, until a row was done.
    """

    weights: Tensor
    objective: Tensor
    gap: Tensor
    status: Tensor
    steps: Tensor


@dataclass(frozen=True, kw_only=True)
class LassoProblem:
    """What is known of features and targets: their products.

    Attributes:
        gram: (F, F), float64, X^T X.
        onto: (R, F), float64, T^T X.
        square: (R,), float64, |t_r|^2.
    """

    gram: Tensor
    onto: Tensor
    square: Tensor

    @classmethod
    def of(cls, features_NF: Tensor, targets_NR: Tensor) -> "LassoProblem":
        """The products of features and targets in float64.

        Raises:
            ValueError: other shapes, or features that are not finite.
        """
        if (
            features_NF.ndim != 2
            or targets_NR.ndim != 2
            or len(features_NF) != len(targets_NR)
            or 0 in features_NF.shape
        ):
            raise ValueError(
                "features and targets must be (samples, features) and (samples, rows) of the same samples; got "
                f"{tuple(features_NF.shape)} and {tuple(targets_NR.shape)}."
            )
        if not bool(features_NF.isfinite().all()):
            row = int(torch.nonzero(~features_NF.isfinite().all(1))[0])
            raise ValueError(
                f"the features hold nan or inf, first in sample {row}; every row depends on them. Leave it out."
            )
        x, t = features_NF.double(), targets_NR.double()
        return cls(gram=x.mT @ x, onto=t.mT @ x, square=t.square().sum(0))


def row_lasso(
    problem: LassoProblem,
    *,
    penalty: float,
    bound: float | None = None,
    num_bounded: int = 0,
    tolerance: float = 1e-7,
    max_steps: int = 20_000,
) -> RowLasso:
    """The sparse rows.

    Args:
        problem: products of features and targets.
        penalty: positive, on the sizes of all entries.
        bound: of the sum of the sizes of the first `num_bounded` entries; None bounds nothing.
        num_bounded: how many, at most F.
        tolerance: of the duality gap, in parts of |t_r|^2 / 2.
        max_steps: of the iteration.

    Raises:
        ValueError: a number out of its range.

    Cost: one eigendecomposition of (F, F); a step takes two products of (R, F) with (F, F), over the rows that are not done.

    Source: Boyd et al. 2011, "Distributed optimization and statistical learning via ADMM"; El Ghaoui et al. 2021, section 5;
    Tsai et al. 2022, "State-driven implicit modeling".
    """
    if not 0 < penalty < float("inf"):
        raise ValueError(
            f"`penalty` must be positive, or no gap can be proven for entries without a bound; got {penalty}."
        )
    if bound is not None and not 0 < bound < float("inf"):
        raise ValueError(f"`bound` must be positive; got {bound}. None bounds nothing.")
    if not 0 <= num_bounded <= len(problem.gram):
        raise ValueError(f"`num_bounded` must be between 0 and the {len(problem.gram)} features; got {num_bounded}.")
    broken = ~(problem.onto.isfinite().all(1) & problem.square.isfinite())
    whole = LassoProblem(
        gram=problem.gram,
        onto=problem.onto.masked_fill(broken[:, None], 0),
        square=problem.square.masked_fill(broken, 0),
    )
    bounded = num_bounded if bound is not None else 0
    search = _Search(whole, penalty, bound or 0.0, bounded, tolerance)
    search.run(max_steps)
    nan = float("nan")
    return RowLasso(
        weights=search.best.masked_fill(broken[:, None], nan),
        objective=search.objective.masked_fill(broken, nan),
        gap=search.gap.masked_fill(broken, nan),
        status=search.status.masked_fill(broken, int(RowStatus.BROKEN_INPUT)),
        steps=search.steps,
    )


class _Search:
    """ADMM over the rows that are not done."""

    def __init__(self, problem: LassoProblem, penalty: float, bound: float, bounded: int, tolerance: float) -> None:
        self.problem, self.penalty, self.bound, self.bounded = problem, penalty, bound, bounded
        self.values, self.vectors = torch.linalg.eigh(problem.gram)
        num_rows = len(problem.onto)
        self.best = torch.zeros_like(problem.onto)
        self.objective = problem.square / 2
        self.gap = torch.full_like(problem.square, float("inf"))
        self.dual = torch.full_like(problem.square, -float("inf"))
        self.goal = tolerance * problem.square / 2
        self.status = torch.full((num_rows,), int(RowStatus.STEPS_EXHAUSTED), dtype=torch.int8, device=self.gap.device)
        self.steps = torch.zeros(num_rows, dtype=torch.int32, device=self.gap.device)

    def run(self, max_steps: int) -> None:
        rows = torch.arange(len(self.gap), device=self.gap.device)
        z = self.best.clone()
        u = torch.zeros_like(z)
        rho = self.values.clamp(min=0).mean().clamp(min=1e-300).expand(len(rows)).clone()
        onto = self.problem.onto
        for step in range(max_steps + 1):
            if step % _CHECK_EVERY == 0:
                rows, z, u, rho, onto = self._check(step, rows, z, u, rho, onto)
                if not len(rows):
                    return
            x = ((onto + rho[:, None] * (z - u)) @ self.vectors) / (self.values + rho[:, None]) @ self.vectors.mT
            relaxed = 1.6 * x - 0.6 * z
            before, z = z, self._prox(relaxed + u, rho)
            u = u + relaxed - z
            if step % _CHECK_EVERY == _CHECK_EVERY - 1 and step < max_steps // 2:
                apart, moved = (x - z).norm(dim=1), (z - before).norm(dim=1)
                factor = (apart * onto.norm(dim=1) / (rho * moved * z.norm(dim=1)).clamp(min=1e-300)).sqrt()
                factor = torch.where((factor > 3) | (factor < 1 / 3), factor.clamp(0.1, 10), torch.ones_like(factor))
                rho, u = rho * factor, u / factor[:, None]

    def _prox(self, v: Tensor, rho: Tensor) -> Tensor:
        """Of the penalty and the bound: to shrink, and then to project, is the prox of both."""
        shrunk = torch.nn.functional.relu(v.abs() - self.penalty / rho[:, None]) * v.sign()
        if not self.bounded:
            return shrunk
        ball = project_l1_ball(shrunk[:, : self.bounded], radius=self.bound)
        return torch.cat((ball, shrunk[:, self.bounded :]), 1)

    def _check(self, step: int, rows: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Notes objective and gap of the rows under way; leaves those that go on."""
        z = state[0]
        self._note(z, rows)
        if step >= _FIRST_POLISH and (step // _FIRST_POLISH).bit_count() == 1 and step % _FIRST_POLISH == 0:
            for part in torch.arange(len(rows), device=rows.device).split(max(1, _MOST_NUMBERS // z.shape[1] ** 2)):
                self._note(self._polished(z[part], rows[part]), rows[part])
        done = self.gap[rows] <= self.goal[rows]
        self.status[rows[done]] = int(RowStatus.CONVERGED)
        self.steps[rows] = step
        going = ~done
        return rows[going], *(one[going] for one in state)

    def _note(self, z: Tensor, rows: Tensor) -> None:
        """Keeps the weights if they are the best so far, and the gap that they prove."""
        objective, gap = self._measure(z, rows)
        better = objective <= self.objective[rows]
        self.best[rows[better]], self.objective[rows[better]] = z[better], objective[better]
        dual = (objective - gap).nan_to_num(nan=-float("inf"))
        self.dual[rows] = torch.maximum(self.dual[rows], dual)
        self.gap[rows] = self.objective[rows] - self.dual[rows]

    def _polished(self, z: Tensor, rows: Tensor) -> Tensor:
        """The optimum over the rows' present supports, if their signs and the bound's being met or not are right; else anything.

        There w = G^-1 (X^T t - penalty signs - nu signs of the bounded), with nu such that the bound holds.
        """
        held, signs = z != 0, z.sign()
        matrix = self.problem.gram * (held[:, :, None] & held[:, None, :])
        matrix.diagonal(dim1=-2, dim2=-1).add_(torch.where(held, 1e-15 * self.values[-1], 1.0))
        bounded = signs.clone()
        bounded[:, self.bounded :] = 0
        right = torch.stack(((self.problem.onto[rows] - self.penalty * signs) * held, bounded), -1)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        free, per_nu = torch.cholesky_solve(right, factor).unbind(-1)
        over, rate = (bounded * free).sum(1) - self.bound, (bounded * per_nu).sum(1)
        nu = torch.where((over > 0) & (rate > 0), over / rate, torch.zeros_like(over)) if self.bounded else 0 * over
        found = free - nu[:, None] * per_nu
        if self.bounded:
            ball = project_l1_ball(found[:, : self.bounded].nan_to_num(), radius=self.bound)
            found = torch.cat((ball, found[:, self.bounded :]), 1)
        return torch.where((failed == 0)[:, None], found, z)

    def _measure(self, w: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Objective and gap of (R', F) weights within the bound; the dual point is the scaled residual."""
        onto, square = self.problem.onto[rows], self.problem.square[rows]
        curved = w @ self.problem.gram
        residual = (square - 2 * (onto * w).sum(1) + (curved * w).sum(1)).clamp(min=0)
        objective = residual / 2 + self.penalty * w.abs().sum(1)
        pulled = (onto - curved).abs()
        free = pulled[:, self.bounded :]
        most = free.amax(1) if free.shape[1] else torch.zeros_like(square)
        scale = (self.penalty / most.clamp(min=1e-300)).clamp(max=1.0)
        dual = scale * (square - (onto * w).sum(1)) - scale.square() * residual / 2
        if self.bounded:
            over = (scale * pulled[:, : self.bounded].amax(1) - self.penalty).clamp(min=0)
            dual = dual - self.bound * over
        return objective, objective - dual
