"""What quadratic tasks are made of: their Hessians, once, and gradients and ways to the lowest points, anywhere.

Legend of shapes: T tasks, N entries of a task's point. Where all tasks have the same Hessian it is decomposed once.
"""

from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from featherlight.optim.learned.meta_objective import MetaObjective
from featherlight.optim.learned.meta_tasks import Tasks
from featherlight.optim.learned.metrics import FullSteps
from featherlight.optim.learned.protocols import Tensors
from featherlight.optim.learned.secant_rule import SecantRule

_TASKS_AT_ONCE = 64


class Quadratics(NamedTuple):
    """The tasks where they are: `f(x + d) = f(x) + g'd + d'Hd/2`.

    Attributes:
        hessians_TNN: H.
        gradients_TN: g.
        errors_TN: from the points to the nearest lowest ones.
    """

    hessians_TNN: Float[Tensor, "T N N"]
    gradients_TN: Float[Tensor, "T N"]
    errors_TN: Float[Tensor, "T N"]

    @property
    def gaps_T(self) -> Float[Tensor, "T"]:
        """How far each loss is above its lowest."""
        return -0.5 * (self.gradients_TN * self.errors_TN).sum(1)


class Curvature(NamedTuple):
    """The Hessians of quadratic tasks and their pseudo-inverses.

    Attributes:
        tasks: T of them.
        hessians_TNN: H.
        basis: eigenvectors of H, (T, N, N), or (1, N, N) for all.
        inverse: reciprocal eigenvalues, (T, N), or (1, N); 0 where the eigenvalue is 0 to rounding.
    """

    tasks: Tasks
    hessians_TNN: Tensor
    basis: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, tasks: Tasks) -> Self:
        """Of these tasks, whose losses must be quadratic and convex.

        Raises:
            ValueError: a task is not quadratic, or has a direction of negative curvature.
        """
        hessians = _hessians(tasks)
        values, basis = torch.linalg.eigh(hessians[:1] if all_alike(hessians) else hessians)
        noise = values.abs().amax(-1, keepdim=True) * (values.shape[-1] * torch.finfo(values.dtype).eps)
        if bool((values < -100 * noise).any()):
            raise ValueError(
                f"a task has negative curvature: the smallest eigenvalue of its Hessian is {float(values.min()):.3g}, so its "
                "loss has no lowest point and there is no best step. The exact solve is for convex quadratic losses; learn by a "
                "MetaObjective otherwise."
            )
        inverse = torch.where(values > noise, 1 / values.clamp(min=torch.finfo(values.dtype).tiny), 0.0)
        found = cls(tasks, hessians, basis, inverse)
        found._require_quadratic()
        return found

    def at(self, points: Tensors) -> tuple[Float[Tensor, "T"], Quadratics]:
        """The losses, and the tasks as they are at these points."""
        losses, gradients = self.tasks.losses_and_gradients(points)
        flat = torch.cat([one.flatten(1) for one in gradients], 1)
        errors = -(self.basis @ (self.inverse[..., None] * (self.basis.mT @ flat[..., None])))[..., 0]
        return losses, Quadratics(self.hessians_TNN, flat, errors)

    def _require_quadratic(self) -> None:
        starts = self.tasks.starts
        before, found = self.at(starts)
        parts = found.errors_TN.split([p[0].numel() for p in starts], 1)
        after = self.tasks.losses(tuple(p + part.reshape(p.shape) for p, part in zip(starts, parts, strict=True)))
        off = (before - after - found.gaps_T).abs() / (before.abs() + after.abs() + found.gaps_T.abs()).clamp(
            min=1e-300
        )
        if not bool(off.max() <= torch.finfo(off.dtype).eps ** 0.25):
            raise ValueError(
                f"the tasks are not quadratic: a loss differs from what gradient and Hessian predict by {float(off.max()):.2g} "
                "of it. The exact solve is for quadratic losses; learn by a MetaObjective otherwise."
            )


class MeanCurvature(Optimizer):
    """Sets the metric of a SecantRule to the mean Hessian of quadratic tasks: one `step(MetaObjective(...))` learns all there is.

    With several tensors, each has the block of the mean Hessian that is its own.

    Args:
        rule: whose metric is FullSteps.
        ridge: is added to the mean Hessian, relative to its largest eigenvalue.
        lr: size of the rule's steps from there on; 1 are Newton's for the mean.

    `step` returns the mean loss at the starts.

    Raises:
        ValueError: the rule's metric is another; (in `step`) tasks that are not quadratic or not convex.
    """

    def __init__(self, rule: SecantRule, *, ridge: float = 1e-12, lr: float = 1.0) -> None:
        if not isinstance(rule.metric, FullSteps):
            raise ValueError(
                f"`rule` must have a full metric, which a Hessian is put into; its metric is a {type(rule.metric).__name__}. "
                "Build it as SecantRule(FullSteps.constant(points))."
            )
        super().__init__(rule.parameters(), {"lr": lr})
        self._metric: FullSteps = rule.metric
        self.ridge = ridge

    @torch.no_grad()
    def step(self, closure: Any = None) -> Float[Tensor, ""]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Sets the metric.

        Args:
            closure: a MetaObjective of the same rule.
        """
        if not isinstance(closure, MetaObjective):
            raise ValueError(
                f"`MeanCurvature.step` takes a MetaObjective, whose tasks it learns from; got {closure!r}."
            )
        closure.value()
        curvature = Curvature.of(closure.tasks)
        count_hessians(closure, curvature.hessians_TNN)
        mean, first = curvature.hessians_TNN.mean(0), 0
        for factor in self._metric.factors:
            block = mean[first : first + len(factor), first : first + len(factor)]
            eye = torch.eye(len(factor), dtype=block.dtype, device=block.device)
            root = torch.linalg.cholesky(block + self.ridge * torch.linalg.matrix_norm(block, 2) * eye)
            inverse = torch.linalg.solve_triangular(root.mT, eye, upper=True)
            factor.copy_(float(self.param_groups[0]["lr"]) ** 0.5 * inverse)
            first += len(factor)
        return closure.tasks.losses(closure.tasks.starts).mean()


def count_hessians(objective: MetaObjective, hessians: Float[Tensor, "T N N"]) -> None:
    """Counts the Hessians as N gradients of each task, in the meter of the objective."""
    objective.meter.backward_passes += hessians.shape[0] * hessians.shape[1]
    objective.meter.example_forwards += hessians.shape[0] * hessians.shape[1]


def all_alike(hessians: Tensor) -> bool:
    """Whether all tasks have the same Hessian, to the last bit."""
    return torch.equal(hessians, hessians[:1].expand_as(hessians))


def _hessians(tasks: Tasks) -> Float[Tensor, "T N N"]:
    """By reverse over reverse differentiation, which is exact."""
    starts, data, shared = tasks.starts, dict(tasks.data), dict(tasks.shared)
    shapes, sizes = [p.shape[1:] for p in starts], [p[0].numel() for p in starts]

    def loss(point: Tensor, own: dict[str, Tensor]) -> Tensor:
        parts = zip(point.split(sizes), shapes, strict=True)
        return tasks.loss(tuple(part.reshape(shape) for part, shape in parts), {**own, **shared})

    flat = torch.cat([p.flatten(1) for p in starts], 1)
    each = torch.func.vmap(
        torch.func.jacrev(torch.func.grad(loss)), (0, dict.fromkeys(data, 0)), chunk_size=_TASKS_AT_ONCE
    )
    return each(flat, data).detach()
