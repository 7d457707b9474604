"""Regularised least squares whose features come block by block: the factor grows, nothing is solved again.

Legend of shapes: N rows, E earlier features, F new features, Y targets.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class LeastSquares:
    """The minimum over W of |T - X W|^2 + ridge |W|^2 for the features X so far, as a Cholesky factor.

    A block of features takes |new whitened|^2 off the minimum, so that the minimum never rises as blocks are appended.

    Attributes:
        factor: (E, E), float64, lower: the Cholesky factor of X^T X + ridge.
        whitened: (E, Y), float64, factor^-1 X^T T.
        square: |T|^2.
        ridge: on every weight.
    """

    factor: Tensor
    whitened: Tensor
    square: float
    ridge: float

    @classmethod
    def empty(cls, targets_NY: Tensor, *, ridge: float) -> "LeastSquares":
        """Without features.

        Args:
            targets_NY: T.
            ridge: positive.

        Raises:
            ValueError: targets of another shape or not finite, or a ridge that is not positive.
        """
        if targets_NY.ndim != 2 or 0 in targets_NY.shape:
            raise ValueError(
                f"the targets must be (rows, outputs), one or more of each; got {tuple(targets_NY.shape)}."
            )
        _check_finite(targets_NY, "targets")
        if not 0 < ridge < float("inf"):
            raise ValueError(
                f"`ridge` must be positive, or features that depend on each other have no one solution; got {ridge}."
            )
        nothing = targets_NY.new_zeros((0, 0), dtype=torch.float64)
        square = float(targets_NY.double().square().sum())
        return cls(factor=nothing, whitened=nothing.new_zeros((0, targets_NY.shape[1])), square=square, ridge=ridge)

    @property
    def minimum(self) -> float:
        """The regularised loss at `weights`; below about 1e-15 of `square` it is rounding alone."""
        return self.square - float(self.whitened.square().sum())

    @property
    def weights(self) -> Tensor:
        """(E, Y), float64: where the minimum is.

        Cost: E^2 Y.
        """
        return torch.linalg.solve_triangular(self.factor.mT, self.whitened, upper=True)

    def append(self, earlier_NE: Tensor, new_NF: Tensor, targets_NY: Tensor) -> "LeastSquares":
        """With more features.

        Args:
            earlier_NE: the features so far.
            new_NF: those to come.
            targets_NY: as at first.

        Raises:
            ValueError: shapes that do not fit, features that are not finite, or ones so large that `ridge` is lost in
                their rounding and they depend on each other.

        Cost: N (E + F) F, and E F (E + F), where all anew would take N (E + F)^2 and (E + F)^3.
        """
        if earlier_NE.shape != (len(targets_NY), len(self.factor)) or len(new_NF) != len(targets_NY):
            raise ValueError(
                f"features and targets must have the same rows, and as many earlier features as were appended "
                f"({len(self.factor)}); got {tuple(earlier_NE.shape)}, {tuple(new_NF.shape)} and {tuple(targets_NY.shape)}."
            )
        _check_finite(new_NF, "features")
        return self.grown(*products(earlier_NE, new_NF, targets_NY))

    def grown(self, cross_EF: Tensor, gram_FF: Tensor, onto_FY: Tensor) -> "LeastSquares":
        """As `append`, from products of the new features.

        Args:
            cross_EF: earlier^T new.
            gram_FF: new^T new.
            onto_FY: new^T targets.

        Raises:
            ValueError: as `append`.
        """
        found, failed = self._extended(cross_EF, gram_FF, onto_FY)
        if found is None:
            raise ValueError(
                f"the new feature {failed} is a combination of others up to rounding: its square is "
                f"{float(gram_FF[failed, failed]):.3g}, and `ridge` = {self.ridge:.3g} is lost in it. Use a larger ridge, or "
                "features of about unit size."
            )
        return found

    def grown_or_none(self, cross_EF: Tensor, gram_FF: Tensor, onto_FY: Tensor) -> "LeastSquares | None":
        """As `grown`, but None where that raises, for searches that try features."""
        return self._extended(cross_EF, gram_FF, onto_FY)[0]

    def _extended(self, cross_EF: Tensor, gram_FF: Tensor, onto_FY: Tensor) -> "tuple[LeastSquares | None, int]":
        """The longer factor; or None, and the number of the feature at which it fails."""
        below = torch.linalg.solve_triangular(self.factor, cross_EF, upper=False).mT
        left = gram_FF - below @ below.mT
        left.diagonal().add_(self.ridge)
        corner, failed = torch.linalg.cholesky_ex(left)
        lost = corner.diagonal().square() <= 4 * torch.finfo(torch.float64).eps * gram_FF.diagonal()
        if int(failed) or bool(lost.any()):
            return None, int(failed) - 1 if int(failed) else int(lost.int().argmax())
        new = torch.linalg.solve_triangular(corner, onto_FY - below @ self.whitened, upper=False)
        top = torch.cat((self.factor, torch.zeros_like(cross_EF)), 1)
        factor = torch.cat((top, torch.cat((below, corner), 1)))
        whitened = torch.cat((self.whitened, new))
        return LeastSquares(factor=factor, whitened=whitened, square=self.square, ridge=self.ridge), 0

    def refined(self, features_NE: Tensor, targets_NY: Tensor, *, steps: int = 2) -> Tensor:
        """The weights with the rounding of X^T X taken out by iterative refinement, (E, Y).

        Args:
            features_NE: all features.
            targets_NY: T.
            steps: each costs two products with the features.
        """
        weights = self.weights
        for _ in range(steps):
            rest = targets_NY.double() - features_NE.double() @ weights
            missing = features_NE.double().mT @ rest - self.ridge * weights
            weights = weights + torch.cholesky_solve(missing, self.factor)
        return weights


def products(earlier_NE: Tensor, new_NF: Tensor, targets_NY: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """earlier^T new, new^T new and new^T targets in float64, some thousand rows at a time."""
    parts = zip(*(x.split(_CHUNK_ROWS) for x in (earlier_NE, new_NF, targets_NY)), strict=True)
    sums: list[Tensor] = []
    for earlier, new, targets in parts:
        new = new.double()
        found = [earlier.double().mT @ new, new.mT @ new, new.mT @ targets.double()]
        sums = [a.add_(b) for a, b in zip(sums, found, strict=True)] if sums else found
    return sums[0], sums[1], sums[2]


def _check_finite(x: Tensor, what: str) -> None:
    if not bool(x.isfinite().all()):
        row = int(torch.nonzero(~x.isfinite().all(1))[0])
        raise ValueError(f"the {what} hold nan or inf, first in row {row}. Leave such rows out, or fill them in.")
