"""A step that is a user's own convex program, through cvxpylayers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from featherlight.optim.learned.convex_update import ConvexUpdate
from featherlight.optim.learned.metrics import class_mismatch
from featherlight.optim.learned.protocols import Tensors
from featherlight.optim.learned.safeguard import Safeguard
from featherlight.solvers.convex import make_cvxpy_layer

if TYPE_CHECKING:
    import cvxpy


class CvxpyState(NamedTuple):
    """What a CvxpyRule keeps from step to step.

    Attributes:
        steps: the last step of each tensor.
    """

    steps: Tensors


class CvxpyRule(nn.Module):
    """Steps that solve a convex program of one's own: what the kernels do not cover.

    Args:
        problem: of cvxpy, with the rules of disciplined parametrized programming.
        variables: the steps d, one for each tensor and of its shape.
        gradients: parameters of the problem that take the gradients, one for each tensor and of its shape.
        points: parameters that take the points, likewise, or none.
        last_steps: parameters that take the last steps, likewise, or none.
        learned: the other parameters with the values that they start from; they are learned.
        solver_args: for cvxpylayers, such as tolerances: those of its default solver are loose.

    Attributes:
        shapes: of the variables.
        order: the parameters as the layer takes them.
        layer: of cvxpylayers.

    It is an UpdateRule, and is saved by torch alone (`state_dict`), as its program is code. It cannot be run by vmap.

    Raises:
        ValueError: cvxpylayers is absent, the program is not of that kind, or a parameter of it has no role.

    Cost: tens to hundreds of times that of a kernel.
    Source: Agrawal et al. 2019 (arXiv 1910.12430).
    """

    def __init__(
        self,
        problem: "cvxpy.Problem",
        variables: Sequence["cvxpy.Variable"],
        gradients: Sequence["cvxpy.Parameter"],
        *,
        points: Sequence["cvxpy.Parameter"] = (),
        last_steps: Sequence["cvxpy.Parameter"] = (),
        learned: Mapping["cvxpy.Parameter", Tensor] | None = None,
        solver_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.shapes = [tuple(one.shape) for one in variables]
        given = dict(learned or {})
        for name, group in (("gradients", gradients), ("points", points), ("last_steps", last_steps)):
            if (group or name == "gradients") and [tuple(one.shape) for one in group] != self.shapes:
                raise ValueError(
                    f"`{name}` must be parameters of the shapes of `variables`, {self.shapes}; got "
                    f"{[tuple(one.shape) for one in group]}."
                )
        self.order = [*gradients, *points, *last_steps, *given]
        missing = [one.name() for one in problem.parameters() if all(one is not known for known in self.order)]
        if missing:
            raise ValueError(
                f"the problem has parameters that nothing is put into: {missing}. Name each among `gradients`, `points`, "
                "`last_steps` or `learned`."
            )
        self.uses_points, self.uses_steps = bool(points), bool(last_steps)
        self.learned = nn.ParameterList([value.detach().clone() for value in given.values()])
        self.solver_args = dict(solver_args or {})
        self.layer = make_cvxpy_layer(problem, self.order, variables)

    def init(self, points: Tensors) -> CvxpyState:
        """No steps so far; raises ValueError for tensors of other shapes than the variables."""
        if self.shapes != [tuple(p.shape) for p in points]:
            raise class_mismatch("CvxpyRule", f"shapes {self.shapes}", points)
        return CvxpyState(tuple(torch.zeros_like(p) for p in points))

    def update(self, gradients: Tensors, state: CvxpyState, points: Tensors) -> tuple[Tensors, CvxpyState]:
        """The solution of the program; raises ValueError where the solver finds none."""
        values = [*gradients, *(points if self.uses_points else ()), *(state.steps if self.uses_steps else ())]
        dtype = torch.float64
        try:
            found = self.layer(
                *(one.to("cpu", dtype) for one in (*values, *self.learned)), solver_args=self.solver_args
            )
        except Exception as error:  # each solver of cvxpylayers has errors of its own
            raise ValueError(
                f"the solver found no step: {type(error).__name__}: {error}. The program may be infeasible or unbounded at these "
                "values; loosen its constraints, or its tolerances in `solver_args`."
            ) from error
        steps = tuple(step.to(p.device, p.dtype) for step, p in zip(found, points, strict=True))
        return steps, CvxpyState(steps)


def CvxpyUpdate(
    problem: "cvxpy.Problem",
    parameters: Mapping[str, Any],
    variables: Sequence["cvxpy.Variable"],
    params: ParamsT,
    *,
    lr: float = 1.0,
    weight_decay: float = 0.0,
    safeguard: Safeguard | None = None,
    solver_args: Mapping[str, Any] | None = None,
) -> ConvexUpdate:
    """A ConvexUpdate whose step is a cvxpy program.

    Args:
        problem: see CvxpyRule.
        parameters: of the problem, by role: `gradients`, and where used `points` and `last_steps`, lists with one for each
            variable; `learned`, a mapping to the values they start from.
        variables: the steps d.
        params: parameters or groups, as for torch.optim.
        lr: factor of the steps; at most 1 if the program constrains points.
        weight_decay: as in ConvexUpdate.
        safeguard: as in ConvexUpdate; its gradient steps know nothing of the program's constraints, so it is off by default.
        solver_args: see CvxpyRule.

    Raises:
        ValueError: as CvxpyRule and ConvexUpdate; a role that is unknown, or no gradients.
    """
    unknown = sorted(parameters.keys() - {"gradients", "points", "last_steps", "learned"})
    if unknown or "gradients" not in parameters:
        raise ValueError(
            "`parameters` must say which take the `gradients`, and may name `points`, `last_steps` and `learned`; got "
            f"{sorted(parameters)}."
        )
    rule = CvxpyRule(problem, variables, solver_args=solver_args, **parameters)
    return ConvexUpdate(params, rule, lr=lr, weight_decay=weight_decay, safeguard=safeguard)
