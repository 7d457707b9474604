"""How many codes a soft convex quantizer mixes at a position, and how they are found.

Legend of shapes: N rows, F features, K codes, k codes that a row may mix.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from jaxtyping import Float, Int
from torch import Tensor, nn

from featherlight.nn.vector_quantizers.sparse_search import Search, search_mixtures
from featherlight.nn.vector_quantizers.weight_grid import WeightGrid
from featherlight.solvers.simplex_qp import ActiveSet, Relaxation, SimplexMethod, solve_simplex_least_squares
from featherlight.solvers.simplex_qp.backward import attach
from featherlight.solvers.simplex_qp.problem import SimplexProblem

_FLOAT_BITS = 32


class Mixture(NamedTuple):
    """Codes and shares of some rows.

    Attributes:
        values_NF: shares times codes, with gradients of rows, codebook and strength.
        indices_Nk: int64; -1 where a row uses fewer codes.
        weights_Nk: shares, 0 beside -1, with the same gradients.
    """

    values_NF: Float[Tensor, "N F"]
    indices_Nk: Int[Tensor, "N k"]
    weights_Nk: Float[Tensor, "N k"]


class Mixing(Protocol):
    """A way to find the mixture of codes near to a row."""

    def mix(
        self,
        rows_NF: Float[Tensor, "N F"],
        codes_KF: Float[Tensor, "K F"],
        strength: Float[Tensor, ""],
        grid: WeightGrid | None,
    ) -> Mixture:
        """The mixtures, before their shares are rounded to the grid, which may bear on the choice of codes."""
        ...

    def width(self, num_codes: int, dim: int) -> int:
        """k of its mixtures.

        Raises:
            ValueError: the codebook has too few codes.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Exact:
    """As many codes as the program wants, by an active-set method: the point of the hull that is held to the nearest code.

    Args:
        max_support: most codes at a position; None is the solver's own limit, 2 F + 2 and at least 32.
    """

    max_support: int | None = None

    def mix(self, rows_NF: Tensor, codes_KF: Tensor, strength: Tensor, grid: WeightGrid | None) -> Mixture:
        """See `Mixing`."""
        return _solved(
            rows_NF, codes_KF, strength, ActiveSet(max_support=self.max_support), self.width(*codes_KF.shape)
        )

    def width(self, num_codes: int, dim: int) -> int:
        """See `Mixing`."""
        return ActiveSet(max_support=self.max_support).width(num_codes, dim)


@dataclass(frozen=True, kw_only=True)
class Relaxed:
    """All codes, by the relaxation as published: solved without the bounds, then projected onto the simplex.

    It takes off far less of the error than the exact program does. Memory: O(N K).
    """

    def mix(self, rows_NF: Tensor, codes_KF: Tensor, strength: Tensor, grid: WeightGrid | None) -> Mixture:
        """See `Mixing`."""
        return _solved(rows_NF, codes_KF, strength, Relaxation(), len(codes_KF))

    def width(self, num_codes: int, dim: int) -> int:
        """See `Mixing`."""
        return num_codes


@dataclass(frozen=True)
class Sparse:
    """At most k codes, found greedily with an exact line search over the whole codebook.

    Args:
        num_mixed: k, from 2 on; 2, 4 and 8 are usual.
        num_starts: nearest codes that the first pair is tried with. More find better pairs, each for two products of rows
            and codes.

    Raises:
        ValueError: k below 2, or no start.
    """

    num_mixed: int
    num_starts: int = 2

    def __post_init__(self) -> None:
        if self.num_mixed < 2:
            raise ValueError(
                f"`num_mixed` must be at least 2 codes, or there is nothing to mix; got {self.num_mixed}. For one code a "
                "position set `hard` on the quantizer, or take a `VectorQuantizer`."
            )
        if self.num_starts < 1:
            raise ValueError(
                f"`num_starts` must be at least 1, since a pair has to start somewhere; got {self.num_starts}."
            )

    def mix(self, rows_NF: Tensor, codes_KF: Tensor, strength: Tensor, grid: WeightGrid | None) -> Mixture:
        """See `Mixing`."""
        search = Search(self.num_mixed, self.num_starts, None if grid is None else grid.units)
        prior_N, indices_Nk, weights_Nk = search_mixtures(
            rows_NF.detach(), codes_KF.detach(), strength.detach(), search
        )
        problem = SimplexProblem(rows_NF, codes_KF, strength, prior_N)
        values_NF, weights_Nk = attach(problem, prior_N, indices_Nk, weights_Nk)
        return Mixture(values_NF, indices_Nk, weights_Nk)

    def width(self, num_codes: int, dim: int) -> int:
        """See `Mixing`."""
        if self.num_mixed > num_codes:
            raise ValueError(
                f"a position cannot mix {self.num_mixed} different codes of a codebook of {num_codes}. Lower `num_mixed`, or "
                "take a larger codebook."
            )
        return self.num_mixed


def bits_of(num_mixed: int, num_codes: int, grid: WeightGrid | None) -> float:
    """Bits of a mixture at a fixed length.

    On a grid, log2 of how many mixtures there are, with neither the order of codes nor those without a share counted (see
    `WeightGrid.num_points`). Without, k indices and k - 1 weights of float32.
    """
    if grid is not None:
        return math.log2(grid.num_points(num_codes, num_mixed))
    return num_mixed * math.log2(num_codes) + _FLOAT_BITS * (num_mixed - 1)


def _solved(rows_NF: Tensor, codes_KF: Tensor, strength: Tensor, method: SimplexMethod, width: int) -> Mixture:
    """A solution with as many slots for every batch, whatever its largest support is."""
    solution = solve_simplex_least_squares(rows_NF, codes_KF, strength, method=method)
    free = (0, width - solution.indices_Nk.shape[1])
    return Mixture(
        solution.values_NF,
        nn.functional.pad(solution.indices_Nk, free, value=-1),
        nn.functional.pad(solution.weights_Nk, free),
    )
