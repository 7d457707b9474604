"""The torch optimizer around an update rule."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT
from torch.utils import _pytree

from featherlight.objective import NonFiniteLossError, Objective
from featherlight.optim.learned.protocols import MemoryPart, MetricPart, Tensors, UpdateRule
from featherlight.optim.learned.rule import ConvexRule, ConvexState
from featherlight.optim.learned.safeguard import Measured, Safeguard, SafeguardState
from featherlight.optim.learned.sets import L1Penalty, PointIn, StepIn
from featherlight.optim.learned.trial_points import TrialPoints
from featherlight.optim.zeroth_order.guards import check_positive
from featherlight.solvers.convex import ConvexStatus

_DEFAULT = Safeguard()


class ConvexUpdate(Optimizer):
    """Steps by an update rule: a small convex program, learned from past problems of a class or a special case.

    Args:
        params: parameters or groups, as for torch.optim. One state of the rule is kept for all groups together.
        rule: what makes a step of gradients; its own tensors are not trained by this. None makes a ConvexRule of the parts.
        lr: factor of the rule's steps; a group may have its own, and schedules of torch set it. At most 1 under a constraint.
        weight_decay: adds it times the weights to the gradient, as torch.optim.SGD and Adam do, and half of it times their
            square to the objective that the safeguard looks at.
        metric, memory, constraint, prox: of the ConvexRule.
        safeguard: tests each step and falls back to gradient steps; None takes every step of the rule.

    Attributes:
        rule: as given or made.
        safeguard: as given.
        replayable: False.

    `step(objective)` returns the loss before the step. Cost: one gradient and, with a safeguard, one or a few evaluations
    without; the rule's memory, and with a safeguard two more copies of the weights and one of the gradients.

    Raises:
        ValueError: a rule and parts of one, a rule made for other shapes, numbers out of range, no parameter to move.

    Source: Gautam, Pfrommer, Sojoudi 2023 (arXiv 2303.16952); the safeguard is ours.
    """

    replayable = False
    """A run of it cannot be rebuilt to the same bits, so it is saved and has no journal."""

    def __init__(
        self,
        params: ParamsT,
        rule: UpdateRule | None = None,
        *,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        metric: MetricPart | None = None,
        memory: MemoryPart | None = None,
        constraint: PointIn | StepIn | None = None,
        prox: L1Penalty | None = None,
        safeguard: Safeguard | None = _DEFAULT,
    ) -> None:
        check_positive("lr", lr, allow_zero=True)
        check_positive("weight_decay", weight_decay, allow_zero=True)
        if rule is not None and any(part is not None for part in (metric, memory, constraint, prox)):
            raise ValueError("give ConvexUpdate a `rule` or parts of one, not both: the parts would be ignored.")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.rule = rule if rule is not None else ConvexRule(metric, memory, constraint=constraint, prox=prox)
        self.safeguard = safeguard
        if not any(one.requires_grad for group in self.param_groups for one in group["params"]):
            raise ValueError(
                "none of the parameters requires a gradient, so there is nothing to move. Set `requires_grad` on some."
            )
        with torch.no_grad():
            self._shapes, self._layout = _laid_out(self.rule.init(self._points()))

    def step(self, closure: Callable[[], Any] | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step on an Objective; returns its loss before the step.

        Raises:
            ValueError: no Objective; or a program without a solution, with the reason.
            NonFiniteLossError: loss or gradient is not finite. After either all is as it was.
        """
        if not isinstance(closure, Objective):
            seen = "nothing" if closure is None else f"a {type(closure).__name__}"
            raise ValueError(
                f"ConvexUpdate.step needs an Objective, whose `value()` its safeguard measures; got {seen}. Pass "
                "BatchObjective(model, batch, loss) or an object with its methods."
            )
        with torch.enable_grad():
            loss = closure().detach()
        with torch.no_grad():
            gradients = self._gradients(loss)
            points = tuple(point.clone() for point in self._points())
            steps, state = self.rule.update(gradients, self._rule_state(points), points)
            self._check_steps(steps, state)
            trials = TrialPoints(closure, self.rule, self._groups(), points, gradients, steps)
            if self.safeguard is None:
                trials.move_by_rule(1.0)
            else:
                self._safely(self.safeguard, loss, trials)
            self._mine()["rule"] = tuple(_pytree.tree_leaves(state))
        return loss

    def _safely(self, safeguard: Safeguard, loss: Tensor, trials: TrialPoints) -> None:
        mine = self._mine()
        if "safeguard" not in mine and trials.entered():
            return
        state = SafeguardState(*mine["safeguard"]) if "safeguard" in mine else safeguard.init()
        if len(state.recent_BW) != safeguard.window:
            raise ValueError(
                f"the state is of a safeguard with `window` {len(state.recent_BW)}, this one has {safeguard.window}. Take that."
            )
        squares = trials.squares(float(state.size_B))
        at = Measured(
            trials.merit(loss),
            trials.rule_slope(),
            squares,
            trials.spectral_size(mine.get("points"), mine.get("gradients")),
            squares > 0,
            torch.finfo(loss.dtype).eps,
        )
        with trials.put_back_after_errors():
            choice, state = safeguard.choose(at, state, trials)
        if bool(choice.rule_B):
            trials.move_by_rule(float(choice.size_B))
        else:
            trials.move_by_gradient(float(choice.size_B))
        mine |= {"safeguard": tuple(state), "points": trials.points, "gradients": trials.gradients}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave, in the dtypes that it was kept in."""
        super().load_state_dict(state_dict)
        saved = state_dict["state"].get(state_dict["param_groups"][0]["params"][0], {})
        device = self._points()[0].device
        for name in self._mine().keys() & saved.keys():
            kept = device if name != "safeguard" else "cpu"
            self._mine()[name] = tuple(one.detach().clone().to(kept) for one in saved[name])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "step"} | {"_layout": None}

    def _groups(self) -> list[tuple[Tensor, float, float]]:
        """Every parameter that is trained, with its rate and weight decay."""
        return [
            (p, float(group["lr"]), float(group["weight_decay"]))
            for group in self.param_groups
            for p in group["params"]
            if p.requires_grad
        ]

    def _points(self) -> Tensors:
        return tuple(p.detach() for p, _, _ in self._groups())

    def _mine(self) -> dict[str, Any]:
        """All that is kept stands with the first parameter, as torch's L-BFGS has it."""
        return self.state[self.param_groups[0]["params"][0]]

    def _rule_state(self, points: Tensors) -> Any:
        saved = self._mine().get("rule")
        if saved is None:
            return self.rule.init(points)
        if [one.shape for one in saved] != self._shapes:
            raise ValueError(
                "the state that was loaded is of another rule or of other parameters. Load it with its own rule."
            )
        if self._layout is None:
            self._shapes, self._layout = _laid_out(self.rule.init(points))
        return _pytree.tree_unflatten(list(saved), self._layout)

    def _gradients(self, loss: Tensor) -> Tensors:
        """Those of the loss and of weight decay; raises NonFiniteLossError where a number is not finite."""
        gradients = tuple(
            (p.grad if p.grad is not None else torch.zeros_like(p)) + decay * p.detach()
            if decay or p.grad is None
            else p.grad
            for p, _, decay in self._groups()
        )
        if not bool(loss.isfinite()):
            raise NonFiniteLossError(
                f"the loss is {float(loss)}, so no step was taken and the weights are as they were. Look at the data and at the "
                "weights that training starts from."
            )
        for (p, _, _), gradient in zip(self._groups(), gradients, strict=True):
            if not bool(gradient.isfinite().all()):
                raise NonFiniteLossError(
                    f"the gradient of a parameter of shape {tuple(p.shape)} is not finite, but the loss is {float(loss):.6g}; "
                    "no step was taken and the weights are as they were. Look for a root or a logarithm of 0 in the loss."
                )
        return gradients

    def _check_steps(self, steps: Tensors, state: Any) -> None:
        """Raises ValueError for a program without a solution, and for steps that are not finite with nothing to catch them."""
        if isinstance(state, ConvexState) and bool((state.status > ConvexStatus.DEGENERATE).any()):
            number = int((state.status > ConvexStatus.DEGENERATE).nonzero()[0])
            reason = ConvexStatus(int(state.status[number])).name.lower().replace("_", " ")
            raise ValueError(
                f"the program of the step of tensor {number}, shape {tuple(steps[number].shape)}, has no solution: {reason}. "
                "Look at the numbers of the constraint, and at the metric; no step was taken."
            )
        if self.safeguard is None and not all(bool(one.isfinite().all()) for one in steps):
            raise ValueError(
                "the rule's step is not finite although the gradient is: it diverged, or its tensors are damaged. No step was "
                "taken. Take a safeguard, which falls back to gradient steps."
            )
        if isinstance(self.rule, ConvexRule) and isinstance(self.rule.constraint, PointIn):
            largest = max(lr for _, lr, _ in self._groups())
            if largest > 1:
                raise ValueError(
                    f"`lr` must be at most 1 under PointIn, or the step would leave the set; got {largest}."
                )


def _laid_out(state: Any) -> tuple[list[torch.Size], Any]:
    """Shapes of a state's tensors, and how they are nested, which cannot be copied."""
    leaves, layout = _pytree.tree_flatten(state)
    return [one.shape for one in leaves], layout
