"""A metric of its own for each of the first steps, and shares of past steps: the rule that is learned by linear solves.

Legend: N entries of all tensors together, K steps, M past steps.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from featherlight.optim.learned.metrics import class_mismatch
from featherlight.optim.learned.protocols import Tensors


class GreedyState(NamedTuple):
    """What a GreedyRule keeps from step to step.

    Attributes:
        step: how many were taken.
        point_N: where the last one started.
        moves_MN: the last M moves, the latest first.
    """

    step: Int[Tensor, ""]
    point_N: Float[Tensor, "N"]
    moves_MN: Float[Tensor, "M N"]


class GreedyRule(nn.Module):
    """Step k is `P_k g + sum_j w_kj d_j` of the gradient g and the last M moves d_j, or the last learned P and w beyond.

    Args:
        shapes: of the tensors of a problem of the class.
        horizon: K, steps that have a metric of their own.
        memory: M.
        dtype: of the metrics.

    Attributes:
        matrices_KNN: P, zero until learned; not always symmetric.
        shares_KM: w.
        fitted: how many of the K are learned.

    It is an UpdateRule. The map of a step is the solution of `min |d - P_k g - sum_j w_kj d_j|^2`. It was learned where its
    class goes in K steps and knows nothing of other places: keep a safeguard around it.
    Cost: N^2 operations a step, K N^2 numbers.
    Source: the exact solution for horizon 1 of the meta-loss of Gautam, Pfrommer, Sojoudi 2023 (arXiv 2303.16952), applied
    step by step, with past steps as in heavy-ball methods (Polyak 1964).
    """

    fitted: Tensor

    def __init__(
        self,
        shapes: Sequence[Sequence[int]],
        *,
        horizon: int,
        memory: int = 2,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        if horizon < 1:
            raise ValueError(
                f"`horizon` must be at least 1 step, or the rule would have no step to learn; got {horizon}."
            )
        if memory < 0:
            raise ValueError(f"`memory` must be 0 past steps or more; got {memory}.")
        super().__init__()
        self.shapes = tuple(tuple(shape) for shape in shapes)
        num = sum(torch.Size(shape).numel() for shape in self.shapes)
        self.matrices_KNN = nn.Parameter(torch.zeros(horizon, num, num, dtype=dtype))
        self.shares_KM = nn.Parameter(torch.zeros(horizon, memory, dtype=dtype))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.int64))

    @property
    def horizon(self) -> int:
        """K."""
        return len(self.matrices_KNN)

    def init(self, points: Tensors) -> GreedyState:
        """The state before the first step; raises ValueError for tensors of other shapes."""
        if self.shapes != tuple(tuple(p.shape) for p in points):
            raise class_mismatch("GreedyRule", f"shapes {list(self.shapes)}", points)
        point = self._flat(points)
        memory = self.shares_KM.shape[1]
        return GreedyState(torch.zeros_like(self.fitted), point, torch.zeros_like(point).expand(memory, -1).clone())

    def update(self, gradients: Tensors, state: GreedyState, points: Tensors) -> tuple[Tensors, GreedyState]:
        """The steps and the next state."""
        point, gradient = self._flat(points), self._flat(gradients)
        moves = torch.cat([(point - state.point_N)[None], state.moves_MN])[: len(state.moves_MN)]
        which = torch.minimum(state.step, self.fitted - 1).clamp(min=0).reshape(1)
        matrix, shares = self.matrices_KNN.index_select(0, which)[0], self.shares_KM.index_select(0, which)[0]
        step = matrix @ gradient + shares @ moves
        parts = step.split([p.numel() for p in points])
        steps = tuple(part.reshape(p.shape).to(p.dtype) for part, p in zip(parts, points, strict=True))
        return steps, GreedyState(state.step + 1, point, moves)

    def description(self) -> dict[str, Any]:
        """The options that it is built from; the values are tensors of the rule."""
        memory = self.shares_KM.shape[1]
        return {"shapes": [list(shape) for shape in self.shapes], "horizon": self.horizon, "memory": memory}

    @classmethod
    def from_description(cls, options: dict[str, Any]) -> Self:
        """One that is not learned yet."""
        return cls(options["shapes"], horizon=options["horizon"], memory=options["memory"])

    def _flat(self, tensors: Tensors) -> Float[Tensor, "N"]:
        return torch.cat([one.reshape(-1) for one in tensors]).to(self.matrices_KNN.dtype)
