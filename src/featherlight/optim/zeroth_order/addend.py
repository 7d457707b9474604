"""A low-rank change of the weights, as signs and whole numbers: what a step subtracts, or a point is away.

Legend of shapes: K directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from featherlight.optim.zeroth_order.targets import Directions, Factors, Target


class Term(NamedTuple):
    """`rate * sum_k c_k left_k right_k^T`, of one target.

    Attributes:
        directions: where the factors come from.
        of: which of them.
        coefficients: (K,), whole numbers.
        rate: 0 where all coefficients are zero. The sum must not be subtracted then: the sign of its zeros, which would
            show in weights of -0.0, depends on the order of summation.
    """

    directions: Directions
    of: slice
    coefficients: Float[Tensor, "K"]
    rate: float

    def factors(self, target: Target, *, first_row: int = 0, num_rows: int | None = None) -> Factors:
        """Signs of its directions, for some rows."""
        dtype = self.coefficients.dtype
        return self.directions.factors(target, dtype, of=self.of, first_row=first_row, num_rows=num_rows)


@dataclass(frozen=True, kw_only=True)
class Addend:
    """A low-rank change of all targets: the sum over the directions of one step, at a rate for each parameter group.

    Attributes:
        directions: drawn for the step.
        coefficients: (K,) int64.
        rates: per parameter group.
        first: number of the step's first direction among those drawn.
    """

    directions: Directions
    coefficients: Int[Tensor, "K"]
    rates: tuple[float, ...]
    first: int = 0

    def term(self, target: Target) -> Term:
        """What it changes in one target; where its examples share a direction, that one bears all coefficients."""
        integers = self.coefficients.sum(0, keepdim=True) if target.shared else self.coefficients
        dtype = torch.float64 if target.parameter.dtype == torch.float64 else torch.float32
        rate = self.rates[target.group] if integers.any() else 0.0
        of = slice(self.first, self.first + len(integers))
        return Term(self.directions, of, integers.to(target.parameter.device, dtype), rate)


def inner_product(targets: Sequence[Target], one: Addend, other: Addend) -> int:
    """That of two sums over directions, whatever their rates: a whole number, and exact.

    Cost: the draws of both; no product is as large as a weight.
    """
    total = 0
    for target in targets:
        terms = [addend.term(target) for addend in (one, other)]
        (left, right), (left_other, right_other) = (term.factors(target) for term in terms)
        products = left.double() @ left_other.double().T
        if right is not None and right_other is not None:
            products *= right.double() @ right_other.double().T
        coefficients, coefficients_other = (term.coefficients.long() for term in terms)
        rows = (products.long() * coefficients_other).sum(1)
        total += sum(a * b for a, b in zip(coefficients.tolist(), rows.tolist(), strict=True))
    return total
