"""Steps of a weight that is held as whole numbers: kept beside it as signs, and rounded onto its grid now and then.

Legend of shapes: J directions of all steps that are held back, K of one, R rows, C columns.
A single step is far smaller than a unit of the grid, and each rounding adds noise of up to half a unit, so steps are summed
exactly before one rounding. When that is follows from the records alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from featherlight.functional import QuantizedTensor, SignStream, pack_signs, unpack_signs
from featherlight.optim.zeroth_order.addend import Term
from featherlight.optim.zeroth_order.exact import random_halves, subtract_
from featherlight.optim.zeroth_order.targets import Factors, Target


class _Part(NamedTuple):
    """One term: its directions begin where those of the one before end. `decay` is applied to the weight first."""

    decay: float
    rate: float
    size: int


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldBack:
    """Steps that were taken but are not yet among a weight's whole numbers; a `LowRankChange`.

    Attributes:
        left: signs, packed, (J, R / 8).
        right: signs, packed, (J, C / 8).
        coefficients: whole numbers, (J,).
        weights: coefficients by all rates and later decays, (J,).
        parts: the terms, in order.
        decay: of all steps together.
        rows: R.
        columns: C.

    Memory: (R + C) / 8 + 8 bytes a direction.
    """

    left: Int[Tensor, "J Ro"]
    right: Int[Tensor, "J Co"]
    coefficients: Float[Tensor, "J"]
    weights: Float[Tensor, "J"]
    parts: tuple[_Part, ...]
    decay: float
    rows: int
    columns: int

    @property
    def rank(self) -> int:
        """J."""
        return len(self.coefficients)

    @property
    def num_bytes(self) -> int:
        """Bytes of signs and numbers."""
        return sum(one.nbytes for one in (self.left, self.right, self.coefficients, self.weights))

    def factors(self) -> tuple[Float[Tensor, "J R"], Float[Tensor, "J C"]]:
        """`left` by its weights, and `right`."""
        dtype = self.weights.dtype
        left, right = unpack_signs(self.left, self.rows, dtype), unpack_signs(self.right, self.columns, dtype)
        return left * self.weights[:, None], right

    def apply_(self, rows: Float[Tensor, "n C"], first_row: int) -> None:
        """Takes some rows of the weight through the steps, term by term as a weight of floats would be."""
        first = 0
        for decay, rate, size in self.parts:
            if decay != 1.0:
                rows.mul_(decay)
            some = slice(first, first + size)
            left = unpack_signs(self.left[some], self.rows, rows.dtype)[:, first_row : first_row + len(rows)]
            right = unpack_signs(self.right[some], self.columns, rows.dtype)
            subtract_(rows, Factors(left, right), self.coefficients[some], rate)
            first += size

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        names = ("left", "right", "coefficients", "weights")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def after(self, decay: float, terms: Sequence[Term], target: Target) -> Self:
        """With one more step behind it."""
        drawn = [term.factors(target) for term in terms]
        rights = [one.right for one in drawn if one.right is not None]
        decays = [decay, *[1.0] * (len(terms) - 1)]
        parts = [_Part(d, term.rate, len(term.coefficients)) for d, term in zip(decays, terms, strict=True)]
        return replace(
            self,
            left=torch.cat([self.left, *(pack_signs(one.left) for one in drawn)]),
            right=torch.cat([self.right, *map(pack_signs, rights)]),
            coefficients=torch.cat([self.coefficients, *(term.coefficients for term in terms)]),
            weights=torch.cat([self.weights * decay, *(term.coefficients * term.rate for term in terms)]),
            parts=(*self.parts, *parts),
            decay=self.decay * decay,
        )


def hold_back(weight: QuantizedTensor, target: Target, decay: float, terms: Sequence[Term], stream: SignStream) -> int:
    """Takes a step of a quantized weight: keeps it beside the weight, or rounds all that is kept onto the grid.

    Args:
        weight: the parameter of the target.
        target: what is trained.
        decay: factor of the weight before the step.
        terms: what the step subtracts.
        stream: of the step, whose bits a rounding takes.

    Returns:
        Random words that were drawn; 0 if nothing was rounded.

    Raises:
        ValueError: something else than steps is kept beside the weight.
    """
    before = weight.change if weight.change is not None else _nothing(target, terms[0].coefficients)
    if not isinstance(before, HeldBack):
        raise ValueError(
            f"`{target.name}` has a {type(before).__name__} beside its whole numbers, onto which steps cannot be put. Bake it in "
            "(`dequantize`) and quantize the model again."
        )
    held = before.after(decay, terms, target)
    weight.change = held
    return _merge_(weight, target, stream) if held.rank > weight.merge_rank else 0


def _merge_(weight: QuantizedTensor, target: Target, stream: SignStream) -> int:
    """Rounds the weight with all that is held back onto its grid, up or down with the odds of the distance."""
    num_words = 0
    for first, count in weight.blocks():
        exact = weight.exact_rows(first, count)
        halves, drawn = random_halves(exact.shape, stream, target, first * target.columns, exact.device)
        weight.store_(exact, first, halves=halves)
        num_words += drawn
    weight.change = None
    return num_words


def _nothing(target: Target, like: Tensor) -> HeldBack:
    none = like.new_empty(0)
    octets = [like.new_empty(0, -(-size // 8), dtype=torch.uint8) for size in (target.rows, target.columns)]
    return HeldBack(
        left=octets[0],
        right=octets[1],
        coefficients=none,
        weights=none,
        parts=(),
        decay=1.0,
        rows=target.rows,
        columns=target.columns,
    )
