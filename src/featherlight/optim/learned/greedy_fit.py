"""Exact meta-training where the losses are quadratic: the best step of the next kind is the solution of a linear system.

Legend of shapes: T tasks, N entries of a task's point, M past steps.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from featherlight.optim.learned.greedy_curvature import Curvature, Quadratics, all_alike, count_hessians
from featherlight.optim.learned.greedy_rule import GreedyRule
from featherlight.optim.learned.meta_objective import MetaObjective
from featherlight.optim.learned.meta_score import last_loss
from featherlight.optim.learned.meta_tasks import Tasks
from featherlight.optim.learned.meta_unroll import Position, begin, take_steps

_MOST_UNKNOWNS = 6_000
_SOLVED = 1e-24


class GreedyLeastSquares(Optimizer):
    """Learns the next step of a GreedyRule each time it is called: `K` calls of `step(MetaObjective(...))` learn all.

    The steps before the one being learned are those that are learned already; it is the one that makes the weighted sum of the
    tasks' gaps least, exactly. A task counts by one over its first gap to the power `1 - emphasis` and its present gap to the
    power `emphasis`.

    Args:
        rule: what is learned.
        emphasis: 0 minimises gaps relative to the start, in which the slowest tasks count most; 1 those relative to the gap as
            it is, in which all count alike.
        ridge: is added to the system's diagonal, relative to it.
        lr: factor of what is found; 1 is exact.

    `step` takes the tasks of the objective, whatever its horizon, and returns the mean loss after the steps learned before.

    Raises:
        ValueError: (in `step`) all steps are learned, the tasks are not quadratic or not convex, or the system is too large.

    Cost: a system of `N^2 + M` unknowns, or of N where all tasks have the same Hessian.
    Source: see GreedyRule.
    """

    def __init__(self, rule: GreedyRule, *, emphasis: float = 0.5, ridge: float = 1e-10, lr: float = 1.0) -> None:
        if not 0 <= emphasis <= 1:
            raise ValueError(f"`emphasis` must lie in [0, 1]; got {emphasis}.")
        if not 0 <= ridge < 1:
            raise ValueError(f"`ridge` must lie in [0, 1), relative to the system's diagonal; got {ridge}.")
        super().__init__(rule.parameters(), {"lr": lr})
        self.rule = rule
        self.emphasis = emphasis
        self.ridge = ridge
        self._kept: tuple[Tasks, Curvature, int, Position] | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Float[Tensor, ""]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Learns one step.

        Args:
            closure: a MetaObjective of the same rule.
        """
        if not isinstance(closure, MetaObjective):
            raise ValueError(
                f"`GreedyLeastSquares.step` takes a MetaObjective, whose tasks it learns from; got {closure!r}."
            )
        number = int(self.rule.fitted)
        if number >= self.rule.horizon:
            raise ValueError(
                f"all {number} steps of this rule are learned. Make a GreedyRule of a larger `horizon` to learn more."
            )
        curvature, position = self._place(closure, number)
        losses, found = curvature.at(position.points)
        _, start = curvature.at(curvature.tasks.starts)
        moves = self._moves(position) if number else None
        self._put(number, found, self._weights(start.gaps_T, found.gaps_T), moves)
        self.rule.fitted += 1
        _, position = take_steps(self.rule, curvature.tasks, position, 1)
        self._kept = (closure.tasks, curvature, number + 1, position)
        return losses.mean()

    def _place(self, objective: MetaObjective, number: int) -> tuple[Curvature, Position]:
        """The tasks, without those that are not finite, and where the steps that are learned lead."""
        if self._kept is not None and self._kept[0] is objective.tasks and self._kept[2] == number:
            return self._kept[1], self._kept[3]
        objective.value()
        tasks = objective.tasks
        _, position = take_steps(self.rule, tasks, begin(self.rule, tasks), number)
        curvature = Curvature.of(tasks)
        count_hessians(objective, curvature.hessians_TNN)
        return curvature, position

    def _moves(self, position: Position) -> Float[Tensor, "T M N"]:
        points, state = position
        flat = torch.cat([p.flatten(1) for p in points], 1).to(state.moves_MN.dtype)
        return torch.cat([(flat - state.point_N)[:, None], state.moves_MN], 1)[:, : state.moves_MN.shape[1]]

    def _weights(self, first: Tensor, now: Tensor) -> Float[Tensor, "T"]:
        solved = now <= _SOLVED * first
        return torch.where(solved, 0.0, first ** (self.emphasis - 1) * now.clamp(min=1e-300) ** -self.emphasis)

    def _put(self, number: int, found: Quadratics, weights: Tensor, moves: Tensor | None) -> None:
        matrices, shares = self.rule.matrices_KNN, self.rule.shares_KM
        lr = float(self.param_groups[0]["lr"])
        if not weights.any():
            matrices[number].copy_(matrices[max(0, number - 1)])
            return
        kept = weights > 0
        found, weights = Quadratics(*(one[kept] for one in found)), weights[kept]
        matrix, share = best_step(found, weights, None if moves is None else moves[kept, :number], ridge=self.ridge)
        matrices[number].copy_(lr * matrix)
        shares[number, : len(share)].copy_(lr * share)


def fit_greedy(
    tasks: Tasks, *, horizon: int, memory: int = 2, emphasis: float = 0.5, ridge: float = 1e-10
) -> GreedyRule:
    """Learns a GreedyRule on a batch of quadratic tasks.

    Args:
        tasks: T of them, convex; float64 is best.
        horizon: steps that get a metric of their own.
        memory: past steps that go into a step.
        emphasis: as for GreedyLeastSquares.
        ridge: as for GreedyLeastSquares.

    Raises:
        ValueError: as GreedyLeastSquares; or `horizon` is 0.
    """
    shapes = [p.shape[1:] for p in tasks.starts]
    rule = GreedyRule(shapes, horizon=horizon, memory=memory, dtype=tasks.starts[0].dtype).to(tasks.starts[0].device)
    optimizer = GreedyLeastSquares(rule, emphasis=emphasis, ridge=ridge)
    objective = MetaObjective(rule, tasks, 1, score=last_loss)
    for _ in range(horizon):
        optimizer.step(objective)
    return rule


def best_step(
    found: Quadratics, weights: Float[Tensor, "T"], moves: Float[Tensor, "T M N"] | None, *, ridge: float
) -> tuple[Float[Tensor, "N N"], Float[Tensor, "M"]]:
    """The P and w for which `sum_t weights_t f_t(x_t + P g_t + sum_j w_j d_tj)` is least."""
    hessians, gradients, errors = found
    num = gradients.shape[1]
    if moves is None or not moves.shape[1]:
        moves = gradients.new_zeros(len(gradients), 0, num)
    if all_alike(hessians):
        root = weights.sqrt()[:, None]
        driver = "gelsd" if gradients.device.type == "cpu" else None
        return torch.linalg.lstsq(root * gradients, root * errors, driver=driver).solution.mT, gradients.new_zeros(0)
    if num * num + moves.shape[1] > _MOST_UNKNOWNS:
        raise ValueError(
            f"the exact solve has {num * num + moves.shape[1]:,} unknowns, a metric of {num} x {num} entries, and at most "
            f"{_MOST_UNKNOWNS:,} are solved for. Learn a ConvexRule with a diagonal or Kronecker metric by a MetaObjective."
        )
    system, right = _system(hessians, gradients, weights, moves)
    scale = system.diagonal().clamp(min=torch.finfo(system.dtype).tiny).rsqrt()
    scaled = scale[:, None] * system * scale + ridge * torch.eye(len(system), dtype=system.dtype, device=system.device)
    solution = scale * torch.linalg.solve(scaled, scale * right)
    return solution[: num * num].reshape(num, num), solution[num * num :]


def _system(hessians: Tensor, gradients: Tensor, weights: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
    """The normal equations of `best_step`; P stands row by row in front of w."""
    tasks, num = gradients.shape
    weighted = weights[:, None, None] * hessians
    outer = gradients[:, :, None] * gradients[:, None]
    pairs = weighted.reshape(tasks, -1).mT @ outer.reshape(tasks, -1)
    top = pairs.reshape(num, num, num, num).permute(0, 2, 1, 3).reshape(num * num, num * num)
    pushed = moves @ weighted
    side = torch.einsum("tmi,ta->iam", pushed, gradients).reshape(num * num, -1)
    corner = torch.einsum("tmi,tki->mk", pushed, moves)
    right = torch.cat([
        -torch.einsum("t,ti,ta->ia", weights, gradients, gradients).reshape(-1),
        -torch.einsum("t,ti,tmi->m", weights, gradients, moves),
    ])  # fmt: skip
    return torch.cat([torch.cat([top, side], 1), torch.cat([side.mT, corner], 1)]), right
