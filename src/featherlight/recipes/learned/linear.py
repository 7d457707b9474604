"""Linear least squares with one matrix and many right-hand sides.

Legend of shapes: T tasks, M rows, N unknowns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from featherlight.optim.learned.meta_tasks import Tasks
from featherlight.optim.learned.protocols import Tensors


@dataclass(frozen=True, kw_only=True)
class LeastSquares:
    """`|A x - b|^2 / 2` with a matrix of the class, and right-hand sides and starts drawn normally.

    Args:
        unknowns: N.
        rows: M, at least N.
        condition: of A, whose singular values are spread evenly by their logarithms.
        matrix_seed: of A; another one is another class.
    """

    unknowns: int = 32
    rows: int = 64
    condition: float = 1e4
    matrix_seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.unknowns <= self.rows:
            raise ValueError(
                f"`unknowns` must be from 1 to `rows`, or there is no single solution; got {self.unknowns} and {self.rows}."
            )
        if not 1 <= self.condition < float("inf"):
            raise ValueError(f"`condition` must be at least 1; got {self.condition}.")

    def matrix(self) -> Float[Tensor, "M N"]:
        """A, float64."""
        generator = torch.Generator().manual_seed(self.matrix_seed)
        left = torch.linalg.qr(torch.randn(self.rows, self.unknowns, generator=generator, dtype=torch.float64)).Q
        right = torch.linalg.qr(torch.randn(self.unknowns, self.unknowns, generator=generator, dtype=torch.float64)).Q
        sizes = self.condition ** -torch.linspace(0, 1, self.unknowns, dtype=torch.float64)
        return left * sizes @ right

    def sample(self, count: int, generator: torch.Generator) -> Tasks:
        """So many right-hand sides and starts."""
        matrix = self.matrix()
        start_TN = torch.randn(count, self.unknowns, generator=generator, dtype=torch.float64)
        right_TM = torch.randn(count, self.rows, generator=generator, dtype=torch.float64)
        return with_least_squares_best(
            Tasks(starts=(start_TN,), loss=squares, data={"b": right_TM}, shared={"A": matrix}), matrix, right_TM
        )


def squares(points: Tensors, data: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Half the squared residual."""
    return 0.5 * (data["A"] @ points[0] - data["b"]).square().sum()


def with_least_squares_best(tasks: Tasks, matrix: Float[Tensor, "... M N"], right: Float[Tensor, "T M"]) -> Tasks:
    """The tasks with their lowest losses, from the least-squares solutions."""
    solution = torch.linalg.lstsq(matrix, right.mT if matrix.ndim == 2 else right[..., None]).solution
    points = solution.mT.contiguous() if matrix.ndim == 2 else solution[..., 0]
    return replace(tasks, best=tasks.losses((points,)))
