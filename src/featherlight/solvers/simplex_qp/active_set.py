"""The exact method: codes are taken in by price and dropped when their share reaches 0, until no price is lower.

Legend of shapes: N rows, n rows still at work, F features, K codes, k codes that a row may mix.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from featherlight.solvers.simplex_qp.backward import solution_on
from featherlight.solvers.simplex_qp.pricing import Centred, centre, mix, nearest_codes, rows_at_once
from featherlight.solvers.simplex_qp.problem import SimplexProblem, SimplexSolution, SimplexStatus
from featherlight.solvers.simplex_qp.support import Mixtures, Program, add, at_prior, largest_first, move

_COMPACTION = 0.75


@dataclass(frozen=True, kw_only=True)
class ActiveSet:
    """Primal active set, which is fully corrective Frank-Wolfe with away steps: exact in finitely many steps.

    All rows start at their prior code. In each step the whole codebook is priced at every row's residual by one matrix
    product, the code of the lowest price is taken in, and the least-squares problem on the few codes of the row is solved
    anew; codes whose share reaches 0 leave.

    Args:
        max_support: most codes that a row may mix; None is 2 F + 2 and at least 32, bounded by K. A row that would need
            more is left best on those it has, with status SUPPORT_LIMIT.
        max_steps: most codes that are taken in or dropped for a row; None is 4 max_support + 16.

    Cost: about twice as many steps as codes in the answer, O(K F + k F + k^2) each. Memory: O(N k) besides the inputs.

    Source: Wolfe 1976, "Finding the nearest point in a polytope", with a quadratic penalty.
    """

    max_support: int | None = None
    max_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_support", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}. None takes the default.")

    def width(self, num_codes: int, dim: int) -> int:
        """Slots a row: k of the solution."""
        if self.max_support is None:
            return min(num_codes, max(32, 2 * dim + 2))
        if self.max_support > num_codes:
            raise ValueError(
                f"`max_support` is {self.max_support}, but the codebook has only {num_codes} codes. Lower it to "
                f"{num_codes} or take a larger codebook."
            )
        return self.max_support

    def solve(self, problem: SimplexProblem) -> SimplexSolution:
        """The solution of every row, exact to rounding."""
        width = self.width(*problem.codebook_KF.shape)
        max_steps = self.max_steps or 4 * width + 16
        with torch.no_grad():
            centred = centre(problem.z_NF, problem.codebook_KF)
            prior_N = nearest_codes(centred) if problem.prior_N is None else problem.prior_N
            found = solve_rows(problem, centred, prior_N, width, max_steps)
        return solution_on(problem, centred, prior_N, *found)


def solve_rows(
    problem: SimplexProblem, centred: Centred, prior_N: Tensor, width: int, max_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices, weights and status of all rows by torch's operations, a chunk of rows at a time."""
    work = torch.float32 if problem.z_NF.device.type == "mps" else torch.float64
    lift = (centred.scale + problem.strength).to(work)
    program = Program(centred.codebook_KF.to(work), problem.strength.to(work), lift)
    num_codes, dim = problem.codebook_KF.shape
    size = rows_at_once(num_codes, 2 * width * (width + dim))
    chunks = zip(centred.z_NF.split(size), prior_N.split(size), strict=True)
    found = [_Rows(program, centred, z, prior, width).run(max_steps) for z, prior in chunks]
    indices_Nk, weights_Nk, status_N = (torch.cat(parts) for parts in zip(*found, strict=True))
    usable_N = centred.usable_N & centred.usable_K[prior_N]
    return (
        torch.where(usable_N[:, None], indices_Nk, -1),
        torch.where(usable_N[:, None], weights_Nk, 0).to(problem.z_NF.dtype),
        torch.where(usable_N, status_N, int(SimplexStatus.NON_FINITE)),
    )


class _Rows:
    """A chunk of rows and the state of those that are not yet solved."""

    def __init__(self, program: Program, centred: Centred, z_nF: Tensor, prior_n: Tensor, width: int) -> None:
        self.program = program
        self.prices_KF = centred.codebook_KF
        self.usable_K = centred.usable_K
        self.z_nF = z_nF.to(program.codebook_KF.dtype)
        self.prior_n = prior_n
        self.mixtures = at_prior(program, self.z_nF, prior_n, width)
        self.number_n = torch.arange(len(z_nF), device=z_nF.device)
        self.newest_n = torch.full_like(prior_n, -1)
        self.open_n = torch.ones_like(prior_n, dtype=torch.bool)
        self.found = Mixtures(*(x.clone() for x in self.mixtures[:3]), self.mixtures.inverse_nkk[:0])
        self.status_n = torch.full_like(prior_n, int(SimplexStatus.STEP_LIMIT))
        eps = torch.finfo(z_nF.dtype).eps
        self.rounding = 4 * eps
        self.longest = self.prices_KF.square().sum(1).max().sqrt().to(self.z_nF.dtype)

    def run(self, max_steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Steps until every row is solved."""
        for _ in range(max_steps):
            if not self._step():
                break
        self._store(self.open_n)
        return *largest_first(self.found.indices_nk, self.found.weights_nk), self.status_n

    def _step(self) -> bool:
        """One code in or out for each open row; False when none is open."""
        self.mixtures, blocked_n, slot_n = move(self.mixtures)
        useless_n = blocked_n & (slot_n == self.newest_n)
        code_n, worth_n = self._price()
        ready_n = self.open_n & ~blocked_n
        self.mixtures, added_n, added_slot_n = add(
            self.program, self.mixtures, self.z_nF, code_n, self.prior_n, ready_n & worth_n
        )
        self.newest_n = torch.where(added_n, added_slot_n, -1)
        full_n = (self.mixtures.indices_nk >= 0).all(1)
        self._close(ready_n & ~worth_n, SimplexStatus.CONVERGED)
        self._close(ready_n & worth_n & ~added_n & full_n, SimplexStatus.SUPPORT_LIMIT)
        self._close(ready_n & worth_n & ~added_n & ~full_n, SimplexStatus.STALLED)
        self._close(self.open_n & useless_n, SimplexStatus.STALLED)
        return self._compact()

    def _price(self) -> tuple[Tensor, Tensor]:
        """The code of the lowest price for each row, and whether it would lower the objective by more than rounding."""
        indices_nk, weights_nk = self.mixtures.indices_nk, self.mixtures.weights_nk
        slots_nk = indices_nk.clamp(min=0)
        strength = self.program.strength
        residual_nF = mix(weights_nk, slots_nk, self.program.codebook_KF) - self.z_nF
        price_nK = residual_nF.to(self.prices_KF.dtype) @ self.prices_KF.T
        price_nK = torch.where(self.usable_K, price_nK, torch.inf)
        penalty = strength.to(price_nK.dtype)
        price_nK.scatter_add_(1, self.prior_n[:, None], (-penalty).expand(len(price_nK), 1))
        price_nK.scatter_add_(1, slots_nk, penalty * weights_nk.to(price_nK.dtype))
        code_n = torch.argmin(price_nK, 1)
        lowest_n = price_nK.gather(1, code_n[:, None])[:, 0]
        level_n = (weights_nk.to(price_nK.dtype) * price_nK.gather(1, slots_nk)).sum(1)
        size_n = residual_nF.square().sum(1).sqrt() + self.rounding * (self.longest + self.z_nF.square().sum(1).sqrt())
        noise_n = self.rounding * (self.longest * size_n + strength)
        used_n = (indices_nk == code_n[:, None]).any(1)
        return code_n, ((level_n - lowest_n) > noise_n) & ~used_n

    def _close(self, which_n: Tensor, status: SimplexStatus) -> None:
        self.status_n[self.number_n[which_n]] = int(status)
        self._store(which_n)
        self.open_n = self.open_n & ~which_n

    def _compact(self) -> bool:
        num_open = int(self.open_n.sum())
        if num_open <= _COMPACTION * len(self.open_n):
            keep = self.open_n.nonzero()[:, 0]
            self.mixtures = self.mixtures.rows(keep)
            self.z_nF, self.prior_n, self.number_n = self.z_nF[keep], self.prior_n[keep], self.number_n[keep]
            self.newest_n, self.open_n = self.newest_n[keep], self.open_n[keep]
        return num_open > 0

    def _store(self, which_n: Tensor) -> None:
        number = self.number_n[which_n]
        self.found.indices_nk[number] = self.mixtures.indices_nk[which_n]
        self.found.weights_nk[number] = self.mixtures.weights_nk[which_n]
