"""A point some low-rank terms away from the weights, evaluated inside the forward pass.

Legend of shapes: J directions of all terms together, R rows, C columns.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from featherlight.optim.zeroth_order.addend import Addend
from featherlight.optim.zeroth_order.targets import Factors, Target

_CHEAP_SHARE = 8


class Offset:
    """A sum of low-rank changes of the weights, the same for all examples and never written to them.

    Args:
        addends: the changes, each of all targets.
        along: changes per unit of sigma, by which the direction of the evaluation is more than what it is drawn as.

    Memory: signs as packed bits; of one weight at a time its factors or, where the terms are many, a changed copy.
    """

    def __init__(self, addends: Sequence[Addend], along: Sequence[Addend] = ()) -> None:
        self.addends = addends
        self.along = along
        self._rank = sum(len(addend.coefficients) for addend in addends)

    def at(self, sigma: float) -> Self:
        """The point around which the drawn direction is taken `sigma` times, `along` and all."""
        if not self.along:
            return self
        moved = [replace(addend, rates=tuple(rate * sigma for rate in addend.rates)) for addend in self.along]
        return type(self)([*self.addends, *moved])

    def is_cheaper_beside(self, target: Target) -> bool:
        """Whether a product with the terms costs less than an eighth of one with the weight.

        Below 32 bits always: a changed copy would be rounded, and the change with it.
        """
        low_precision = target.parameter.element_size() < 4
        return low_precision or _CHEAP_SHARE * self._rank * (target.rows + target.columns) <= target.parameter.numel()

    def factors(self, target: Target) -> Factors:
        """`left` (J, R) with rates and coefficients multiplied in, and `right` (J, C); float32 or float64."""
        terms = [term for addend in self.addends if (term := addend.term(target)).rate]
        drawn = [term.factors(target) for term in terms]
        left = [one.left * (term.coefficients * term.rate)[:, None] for term, one in zip(terms, drawn, strict=True)]
        if not terms:
            dtype = self.addends[0].term(target).coefficients.dtype
            left = [target.parameter.new_zeros(0, target.rows, dtype=dtype)]
        right = [one.right for one in drawn if one.right is not None]
        none = left[0].new_zeros(0, target.columns) if target.columns else None
        return Factors(torch.cat(left), torch.cat(right) if right else none)

    def added_to(self, target: Target) -> Tensor:
        """The parameter at the offset point, as a copy of its shape and dtype."""
        left, right = self.factors(target)
        change = left.sum(0) if right is None else left.T @ right
        exact = target.parameter.detach().to(left.dtype)
        return (exact + change.view_as(exact)).to(target.parameter.dtype)

    def add_product(self, y: Tensor, x: Tensor, target: Target, *, contract_left: bool) -> Tensor:
        """Adds `x change^T` to `y`, in place, or `x change` where the weight is used transposed."""
        out, into = self.factors(target)
        assert into is not None, "only matrices are factors of products"
        if contract_left:
            out, into = into, out
        flat_y = y.reshape(-1, y.shape[-1])
        product = x.reshape(-1, x.shape[-1]).to(into.dtype) @ into.T
        if y.dtype == out.dtype:
            return flat_y.addmm_(product, out).view(y.shape)
        return flat_y.add_((product @ out).to(y.dtype)).view(y.shape)

    def add_rows(self, y: Float[Tensor, "*n C"], ids: Int[Tensor, "*n"], target: Target) -> Tensor:
        """Adds the change of the looked-up rows of a table, in place."""
        for term in (addend.term(target) for addend in self.addends):
            if not term.rate:
                continue
            of = torch.arange(term.of.start, term.of.stop, device=ids.device)
            left = term.directions.left_at(target, ids[..., None], of, term.coefficients.dtype)
            right = term.directions.right(target, term.coefficients.dtype, of=term.of)
            y.add_((left * (term.coefficients * term.rate) @ right).to(y.dtype))
        return y
