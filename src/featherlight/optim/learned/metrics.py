"""Metrics that are learned: one step size for a tensor or an entry, Kronecker factors of a matrix, a dense matrix.

All are kept as inverses, in a form that no value of theirs can make indefinite: sizes as logarithms, matrices as factors F of
`F F'`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featherlight.optim.learned.inverses import DiagonalInverse, FullInverse, KroneckerInverse, MirrorInverse
from featherlight.optim.learned.learned_values import like, log_of_positive
from featherlight.optim.learned.protocols import Tensors


class ScalarSteps(nn.Module):
    """One step size for all tensors, or one for each: the metric is the identity over it.

    Args:
        sizes: positive; a number fits tensors of any number and shape, a sequence that many tensors.

    Attributes:
        log_sizes: their logarithms.
    """

    def __init__(self, sizes: float | Sequence[float] = 1.0) -> None:
        super().__init__()
        self.log_sizes = log_of_positive(sizes, "sizes")

    def init(self, points: Tensors) -> tuple[()]:
        """Nothing is kept; raises ValueError for another number of tensors."""
        if self.log_sizes.ndim and len(self.log_sizes) != len(points):
            raise ValueError(
                f"this rule has {len(self.log_sizes)} step sizes, one for each tensor of its class, but is handed "
                f"{len(points)} tensors. Use it on problems of its class, or learn a single size for all."
            )
        return ()

    def update(
        self, gradients: Tensors, state: tuple[()], points: Tensors
    ) -> tuple[tuple[DiagonalInverse, ...], tuple[()]]:
        """The inverse metric of each tensor."""
        sizes = self.log_sizes.exp().expand(len(points))
        return tuple(DiagonalInverse(like(size, p)) for size, p in zip(sizes, points, strict=True)), ()

    def description(self) -> dict[str, Any]:
        """How many sizes; the values are tensors of the rule."""
        return {"sizes": [1.0] * len(self.log_sizes) if self.log_sizes.ndim else 1.0}


class MirrorSteps(nn.Module):
    """The relative entropy to the point in place of a metric, for positive numbers: exponentiated gradient.

    Args:
        size: positive; learned (its logarithm).

    Attributes:
        log_size: its logarithm.

    Source: Kivinen, Warmuth 1997; Beck, Teboulle 2003.
    """

    def __init__(self, size: float = 1.0) -> None:
        super().__init__()
        self.log_size = log_of_positive(size, "size")

    def init(self, points: Tensors) -> tuple[()]:
        """Nothing is kept."""
        return ()

    def update(
        self, gradients: Tensors, state: tuple[()], points: Tensors
    ) -> tuple[tuple[MirrorInverse, ...], tuple[()]]:
        """The same entropy for each tensor."""
        return tuple(MirrorInverse(like(self.log_size.exp(), p)) for p in points), ()

    def description(self) -> dict[str, Any]:
        """The size is a tensor of the rule."""
        return {"size": 1.0}


class DiagonalSteps(nn.Module):
    """A step size for each entry of each tensor: the metric is diagonal.

    Args:
        sizes: positive, one tensor for each parameter and of its shape; `DiagonalSteps.constant` makes them all alike.

    Attributes:
        log_sizes: their logarithms.
    """

    def __init__(self, sizes: Sequence[Tensor]) -> None:
        super().__init__()
        self.log_sizes = nn.ParameterList([log_of_positive(size, "sizes") for size in sizes])

    @classmethod
    def constant(cls, points: Sequence[Tensor], size: float = 1.0) -> "DiagonalSteps":
        """The same size for all entries of tensors like these."""
        return cls([torch.full_like(p, size, requires_grad=False) for p in points])

    def init(self, points: Tensors) -> tuple[()]:
        """Nothing is kept; raises ValueError for tensors of other shapes."""
        check_class("DiagonalSteps", [tuple(one.shape) for one in self.log_sizes], points)
        return ()

    def update(
        self, gradients: Tensors, state: tuple[()], points: Tensors
    ) -> tuple[tuple[DiagonalInverse, ...], tuple[()]]:
        """The inverse metric of each tensor."""
        return tuple(DiagonalInverse(like(one.exp(), p)) for one, p in zip(self.log_sizes, points, strict=True)), ()

    def description(self) -> dict[str, Any]:
        """The shapes; the values are tensors of the rule."""
        return {"shapes": [list(one.shape) for one in self.log_sizes]}

    @classmethod
    def from_description(cls, options: dict[str, Any]) -> "DiagonalSteps":
        """One with sizes of 1."""
        return cls([torch.ones(shape) for shape in options["shapes"]])


class KroneckerSteps(nn.Module):
    """`X -> (F F') X (H H')` for every tensor as a matrix, its first axis by all others; vectors have F alone.

    Args:
        left: F of each tensor, (R, R), or None for the identity.
        right: H of each tensor, (C, C), or None. `KroneckerSteps.constant` starts from multiples of the identity.

    Attributes:
        num_tensors: of the class.

    Cost: products of (R, R) and (C, C) with each matrix.
    Source: the metric of Shampoo (Gupta, Koren, Singer 2018) and K-FAC, here learned.
    """

    def __init__(self, left: Sequence[Tensor | None], right: Sequence[Tensor | None]) -> None:
        super().__init__()
        if len(left) != len(right):
            raise ValueError(
                f"`left` has factors of {len(left)} tensors and `right` of {len(right)}; give one of each."
            )
        self.left = nn.ParameterDict({str(n): _factor(one, "left") for n, one in enumerate(left) if one is not None})
        self.right = nn.ParameterDict({str(n): _factor(one, "right") for n, one in enumerate(right) if one is not None})
        self.num_tensors = len(left)

    @classmethod
    def constant(cls, points: Sequence[Tensor], size: float = 1.0, *, largest: int = 1024) -> "KroneckerSteps":
        """Steps of `size` in all directions, without a factor for sides of more than `largest` rows or columns, as in Shampoo.

        A longer vector has one size for all its entries.
        """
        left: list[Tensor | None] = []
        right: list[Tensor | None] = []
        for point in points:
            rows, columns = point.shape[0] if point.ndim else 1, max(1, point[:1].numel() if point.ndim else 1)
            sides = [rows <= largest, columns <= largest and (columns > 1 or rows > largest)]
            if not any(sides):
                raise ValueError(
                    f"a tensor of shape {tuple(point.shape)} has no side of at most `largest` {largest}, so its Kronecker "
                    "metric would be the identity for good. Raise `largest`, or take DiagonalSteps."
                )
            start = size ** (0.5 / sum(sides))
            for factors, side, has_factor in zip((left, right), (rows, columns), sides, strict=True):
                eye = torch.eye(side if has_factor else 0, dtype=point.dtype, device=point.device)
                factors.append(eye * start if has_factor else None)
        return cls(left, right)

    def init(self, points: Tensors) -> tuple[()]:
        """Nothing is kept; raises ValueError for tensors of other shapes."""
        found = [(p.shape[0] if p.ndim else 1, p[:1].numel() if p.ndim else 1) for p in points]
        mine = [(self._side(self.left, n), self._side(self.right, n)) for n in range(self.num_tensors)]
        fits = len(found) == len(mine) and all(
            own in (None, seen)
            for pair, sizes in zip(mine, found, strict=True)
            for own, seen in zip(pair, sizes, strict=True)
        )
        if not fits:
            raise class_mismatch("KroneckerSteps", f"sides {mine} (None: any)", points)
        return ()

    def update(
        self, gradients: Tensors, state: tuple[()], points: Tensors
    ) -> tuple[tuple[KroneckerInverse, ...], tuple[()]]:
        """The inverse metric of each tensor."""
        return tuple(
            KroneckerInverse(*(_square(side, str(n), p) for side in (self.left, self.right)))
            for n, p in enumerate(points)
        ), ()

    def description(self) -> dict[str, Any]:
        """The sides of the factors; the values are tensors of the rule."""
        sides = range(self.num_tensors)
        return {"left": [self._side(self.left, n) for n in sides], "right": [self._side(self.right, n) for n in sides]}

    @classmethod
    def from_description(cls, options: dict[str, Any]) -> "KroneckerSteps":
        """One with identities."""
        return cls(*([None if n is None else torch.eye(n) for n in options[side]] for side in ("left", "right")))

    @staticmethod
    def _side(factors: nn.ParameterDict, number: int) -> int | None:
        return len(factors[str(number)]) if str(number) in factors else None


class FullSteps(nn.Module):
    """A dense metric over the entries of each tensor.

    Args:
        factors: F of the inverse metric `F F'` of each tensor, (N, N) with N its entries.

    Cost: N^2 numbers and operations for each tensor.
    """

    def __init__(self, factors: Sequence[Tensor]) -> None:
        super().__init__()
        self.factors = nn.ParameterList([_factor(one, "factors") for one in factors])

    @classmethod
    def constant(cls, points: Sequence[Tensor], size: float = 1.0) -> "FullSteps":
        """Steps of `size` in all directions."""
        return cls([torch.eye(p.numel(), dtype=p.dtype, device=p.device) * size**0.5 for p in points])

    @classmethod
    def from_inverse(cls, inverses: Sequence[Tensor]) -> "FullSteps":
        """From the inverse metrics themselves, (N, N).

        Raises:
            ValueError: one is not symmetric and positive definite.
        """
        return cls([_cholesky(one) for one in inverses])

    def init(self, points: Tensors) -> tuple[()]:
        """Nothing is kept; raises ValueError for tensors of another number of entries."""
        if [len(one) for one in self.factors] != [p.numel() for p in points]:
            raise class_mismatch("FullSteps", f"{[len(one) for one in self.factors]} entries", points)
        return ()

    def update(
        self, gradients: Tensors, state: tuple[()], points: Tensors
    ) -> tuple[tuple[FullInverse, ...], tuple[()]]:
        """The inverse metric of each tensor."""
        return tuple(FullInverse(_times_transposed(like(f, p))) for f, p in zip(self.factors, points, strict=True)), ()

    def description(self) -> dict[str, Any]:
        """The entries of each tensor; the values are tensors of the rule."""
        return {"entries": [len(one) for one in self.factors]}

    @classmethod
    def from_description(cls, options: dict[str, Any]) -> "FullSteps":
        """One with identities."""
        return cls([torch.eye(n) for n in options["entries"]])


def check_class(part: str, shapes: Sequence[tuple[int, ...]], points: Tensors) -> None:
    """Raises ValueError where the points do not have the shapes that a part is made for."""
    if list(shapes) != [tuple(p.shape) for p in points]:
        raise class_mismatch(part, f"shapes {list(shapes)}", points)


def class_mismatch(part: str, made_for: str, points: Tensors) -> ValueError:
    """The sentence for tensors that a part is not made for."""
    return ValueError(
        f"{part} of this rule is made for tensors of {made_for}, but is handed shapes {[tuple(p.shape) for p in points]}. A "
        "metric with a number for each entry fits the class it was learned on alone: use it there, or learn one that fits any "
        "shape (ScalarSteps)."
    )


def _times_transposed(factor: Tensor) -> Tensor:
    return factor @ factor.mT


def _square(side: nn.ParameterDict, name: str, point: Tensor) -> Tensor | None:
    return _times_transposed(like(side[name], point)) if name in side else None


def _factor(matrix: Tensor, name: str) -> nn.Parameter:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not torch.isfinite(matrix).all():
        raise ValueError(f"`{name}` must be finite square matrices; got one of shape {tuple(matrix.shape)}.")
    return nn.Parameter(matrix.detach().clone())


def _cholesky(matrix: Tensor) -> Tensor:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not torch.allclose(matrix, matrix.mT):
        raise ValueError(f"an inverse metric must be a symmetric matrix; got one of shape {tuple(matrix.shape)}.")
    factor, failed = torch.linalg.cholesky_ex(matrix.detach())
    if bool(failed):
        smallest = float(torch.linalg.eigvalsh(matrix.detach())[0])
        raise ValueError(
            f"the inverse metric is indefinite: its smallest eigenvalue is {smallest:.3g}, so the program of a step would be "
            "without a solution. Add a multiple of the identity, or drop the directions of eigenvalues below zero."
        )
    return factor
