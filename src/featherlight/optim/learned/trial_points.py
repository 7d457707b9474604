"""Points around the weights, at which the safeguard has the objective evaluated."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from featherlight.objective import NonFiniteLossError, Objective
from featherlight.optim.learned.protocols import Tensors, UpdateRule
from featherlight.optim.learned.rule import ConvexRule
from featherlight.optim.learned.sets import PointIn

_NO_SIZE = 1e-12
_ROUNDINGS = 1024


class TrialPoints:
    """The weights moved by a rule or along the gradient, and the objective there: the safeguard's `Trials` of one problem.

    Distances are measured with the groups' rates: a gradient step of size t moves a parameter by t times its rate times its
    gradient, so that what has a rate of 0 stays, and scalar products are those in which that is the gradient.

    Args:
        objective: is evaluated, and counts.
        rule: whose constraint and penalty gradient steps follow.
        groups: every parameter with its rate and weight decay.
        points: copies of their values.
        gradients: there, of the loss and the weight decay.
        steps: of the rule, without the rates.
    """

    def __init__(
        self,
        objective: Objective,
        rule: UpdateRule,
        groups: Sequence[tuple[Tensor, float, float]],
        points: Tensors,
        gradients: Tensors,
        steps: Tensors,
    ) -> None:
        self.objective = objective
        self.points = points
        self.gradients = tuple(one.clone() for one in gradients)
        self._bound = rule if isinstance(rule, ConvexRule) and not rule.is_free else None
        self._parameters = [p for p, _, _ in groups]
        self._rates = [rate for _, rate, _ in groups]
        self._decays = [decay for _, _, decay in groups]
        self._steps = tuple(rate * step for rate, step in zip(self._rates, steps, strict=True))

    def rule(self, scales_B: Tensor, needed_B: Tensor) -> Tensor:
        """The value at the point moved by a multiple of the rule's step."""
        self.move_by_rule(float(scales_B))
        return self._value()

    def gradient(self, sizes_B: Tensor, needed_B: Tensor) -> tuple[Tensor, Tensor]:
        """The value at the point moved by a gradient step, and the decrease that its slope predicts."""
        steps = self._gradient_steps(float(sizes_B))
        self._move(steps, 1.0)
        return self._value(), -self._slope(steps)

    def move_by_rule(self, scale: float) -> None:
        """Sets the weights to the point plus a multiple of the rule's step."""
        self._move(self._steps, scale)

    def move_by_gradient(self, size: float) -> None:
        """Sets the weights to the point plus a gradient step; size 0 is the point itself."""
        self._move(self._gradient_steps(size) if size else self._steps, 1.0 if size else 0.0)

    def entered(self) -> bool:
        """Whether the point was outside of a constraint on points, and the weights are now the nearest point inside."""
        if self._bound is None or not isinstance(self._bound.constraint, PointIn):
            return False
        still = tuple(torch.zeros_like(g) for g in self.gradients)
        steps = self._bound.gradient_steps(still, self.points, [_NO_SIZE] * len(still))
        steps = tuple(step if rate else torch.zeros_like(step) for step, rate in zip(steps, self._rates, strict=True))
        far = [
            float(s.abs().max()) > _ROUNDINGS * torch.finfo(p.dtype).eps * max(1.0, float(p.abs().max()))
            for s, p in zip(steps, self.points, strict=True)
            if s.numel()
        ]
        if any(far):
            self._move(steps, 1.0)
        return any(far)

    def merit(self, loss: Tensor) -> Tensor:
        """The loss at the weights as they are, with weight decay and penalty, float64, ()."""
        decayed = [
            0.5 * decay * p.detach().double().square().sum()
            for p, decay in zip(self._parameters, self._decays, strict=True)
            if decay
        ]
        total = loss.detach().double().cpu() + sum(one.cpu() for one in decayed)
        if self._bound is not None:
            total = total + self._bound.penalty(tuple(p.detach() for p in self._parameters)).cpu()
        return total

    def rule_slope(self) -> Tensor:
        """The change that the rule's step predicts to first order, ()."""
        return self._slope(self._steps).nan_to_num(nan=0.0)

    def squares(self, size: float) -> Tensor:
        """The squared length of the gradient, or under a constraint the decrease a gradient step predicts over its size, ()."""
        return (-self._slope(self._gradient_steps(size)) / size).clamp(min=0)

    def spectral_size(self, points: Tensors | None, gradients: Tensors | None) -> Tensor:
        """The squared length of the last step over its product with the change of the gradient; 0 where there is none, ()."""
        if points is None or gradients is None:
            return torch.zeros((), dtype=torch.float64)
        length, turn = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for now, before, g, old, rate in zip(self.points, points, self.gradients, gradients, self._rates, strict=True):
            if rate:
                moved = now.double() - before.double()
                length += (moved.square().sum() / rate).cpu()
                turn += (moved * (g.double() - old.double())).sum().cpu()
        return torch.where(turn > 0, length / turn, 0.0).nan_to_num(nan=0.0, posinf=0.0)

    @contextmanager
    def put_back_after_errors(self) -> Iterator[None]:
        """Where the block raises, the weights are what they were."""
        try:
            yield
        except BaseException:
            self._move(self._steps, 0.0)
            raise

    def _gradient_steps(self, size: float) -> Tensors:
        sizes = [size * rate for rate in self._rates]
        if self._bound is None:
            return tuple(-one * g for one, g in zip(sizes, self.gradients, strict=True))
        found = self._bound.gradient_steps(self.gradients, self.points, [one if one else 1.0 for one in sizes])
        return tuple(step if one else torch.zeros_like(step) for step, one in zip(found, sizes, strict=True))

    def _slope(self, steps: Tensors) -> Tensor:
        """Products of steps and gradients, and the change of the penalty."""
        products = [(s.double() * g.double()).sum().cpu() for s, g in zip(steps, self.gradients, strict=True)]
        slope = torch.stack(products).sum()
        if self._bound is not None:
            moved = tuple(p + s for p, s in zip(self.points, steps, strict=True))
            slope = slope + (self._bound.penalty(moved) - self._bound.penalty(self.points)).cpu()
        return slope

    def _move(self, steps: Tensors, scale: float) -> None:
        for parameter, point, step in zip(self._parameters, self.points, steps, strict=True):
            parameter.detach().copy_(point + scale * step if scale else point)

    def _value(self) -> Tensor:
        try:
            return self.merit(self.objective.value())
        except NonFiniteLossError:
            return torch.tensor(torch.inf, dtype=torch.float64)
