"""Where a point may be, and what is added to the objective at it: parts that hold numbers or tensors.

Numbers of a part may be tensors that broadcast with the batch, and gradients reach them.

Legend of shapes: B batch axes, N coordinates, M equations.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Box:
    """lower <= x <= upper.

    Args:
        lower: numbers that broadcast to (B, N); -inf is no bound.
        upper: as `lower`; inf is no bound.
    """

    lower: Tensor | float
    upper: Tensor | float

    def __post_init__(self) -> None:
        if not isinstance(self.lower, Tensor) and not isinstance(self.upper, Tensor) and not self.lower <= self.upper:
            raise ValueError(
                f"the box is empty: `lower` is {self.lower} and `upper` {self.upper}. Give lower <= upper."
            )


@dataclass(frozen=True, eq=False)
class _Sized:
    """With a radius."""

    radius: Tensor | float

    def __post_init__(self) -> None:
        if not isinstance(self.radius, Tensor) and not 0 <= self.radius < float("inf"):
            raise ValueError(f"a radius must be a finite number of at least 0; got {self.radius}.")


@dataclass(frozen=True, eq=False)
class LinfBall(_Sized):
    """max |x| <= radius.

    Args:
        radius: (B), at least 0, or a number.
    """


@dataclass(frozen=True, eq=False)
class L2Ball(_Sized):
    """The Euclidean length of x is at most `radius`. Without a point the step itself is bounded: a trust region.

    Args:
        radius: (B), at least 0, or a number.
    """


@dataclass(frozen=True, eq=False)
class L1Ball(_Sized):
    """sum |x| <= radius.

    Args:
        radius: (B), at least 0, or a number.
    """


@dataclass(frozen=True, eq=False)
class Simplex(_Sized):
    """x >= 0 and sum x = radius.

    Args:
        radius: (B), at least 0, or a number.
    """

    radius: Tensor | float = 1.0


@dataclass(frozen=True, eq=False)
class AffineEquality:
    """matrix x = vector. Equations that follow from others are left out, with the status DEGENERATE.

    Args:
        matrix_MN: (B, M, N); of a Kronecker metric N is P Q, row by row.
        vector_M: (B, M).
    """

    matrix_MN: Tensor
    vector_M: Tensor

    def __post_init__(self) -> None:
        if self.matrix_MN.ndim < 2 or self.vector_M.ndim < 1 or self.matrix_MN.shape[-2] != self.vector_M.shape[-1]:
            raise ValueError(
                f"`matrix_MN` needs a row for each number of `vector_M`; got shapes {tuple(self.matrix_MN.shape)} and "
                f"{tuple(self.vector_M.shape)}."
            )


Constraint = Box | LinfBall | L2Ball | L1Ball | Simplex | AffineEquality
"""A closed convex set."""


@dataclass(frozen=True, eq=False)
class L1Prox:
    """strength * sum |x|, added to the objective.

    Args:
        strength: at least 0: a number, or a tensor that broadcasts to (B, N).
    """

    strength: Tensor | float

    def __post_init__(self) -> None:
        if not isinstance(self.strength, Tensor) and not 0 <= self.strength < float("inf"):
            raise ValueError(f"`strength` must be a finite number of at least 0; got {self.strength}.")


@dataclass(frozen=True, eq=False)
class EntropyMirror:
    """In place of a quadratic form: strength * sum(y log(y / x) - y + x) at y = x + d, on positive coordinates.

    With Simplex its step is that of exponentiated gradient, y = radius * softmax(log x - m / strength); without a
    constraint y = x exp(-m / strength). Coordinates of x that are 0 stay 0.

    Args:
        strength: (B), above 0, or a number: one over the step size.

    Source: Kivinen, Warmuth 1997; Beck, Teboulle 2003, "Mirror descent".
    """

    strength: Tensor | float

    def __post_init__(self) -> None:
        if not isinstance(self.strength, Tensor) and not 0 < self.strength < float("inf"):
            raise ValueError(f"`strength` must be a finite number above 0; got {self.strength}.")
