"""The exact method: codes are taken in by price and dropped when their share reaches 0, until no price is lower.

On a CPU the rows go through a compiled kernel where the extra `kernels` is installed, elsewhere through torch's batched
operations; both give the same to rounding. Under torch.compile either is one operator with slots of a fixed number, while
otherwise the solution has as many as the row with most codes uses.

Legend of shapes: N rows, F features, K codes, k codes that a row may mix.
"""

from dataclasses import dataclass

import torch

from featherlight.solvers.simplex_qp.backward import connect
from featherlight.solvers.simplex_qp.ops import solve_exactly
from featherlight.solvers.simplex_qp.problem import Found, SimplexProblem, SimplexSolution


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
            found = Found(*solve_exactly(*problem, width, max_steps))
            if not torch.compiler.is_compiling():
                found = found.trimmed()
        return connect(problem, found)
