"""FZOO, MEAZO and Adam on zeroth-order estimates as their formulas read, in float64 with dense directions.

A direction is a list of tensors, one for each parameter. Slopes are counted in whole numbers of 12 bits, as records are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tests.oracles.philox import direction_of

Loss = Callable[[nn.Module], Tensor]
Direction = list[Tensor]


def sign_directions(model: nn.Module, count: int, *, seed: int, step: int) -> list[Direction]:
    """Rank-one signs from the integer oracle, for all parameters of the model in float64."""
    return [
        [
            torch.tensor(
                direction_of(tuple(p.shape), seed=seed, step=step, parameter=index, direction=number),
                dtype=torch.float64,
            ).reshape(p.shape)
            for index, p in enumerate(model.parameters())
        ]
        for number in range(count)
    ]


def loss_at(model: nn.Module, loss: Loss, direction: Direction, sigma: float) -> Tensor:
    """The loss at weights that are written, and written back."""
    before = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p, z in zip(model.parameters(), direction, strict=True):
            p.add_(sigma * z)
        result = loss(model)
        for p, old in zip(model.parameters(), before, strict=True):
            p.copy_(old)
    return result


def in_twelve_bits(slopes: Sequence[float]) -> list[float]:
    """Each as a whole number of 4095ths of the largest; that unit is a float32."""
    unit = float(torch.tensor(max(map(abs, slopes)) / 4095, dtype=torch.float64).float())
    return [unit * max(-4095, min(4095, round(slope / unit))) for slope in slopes]


def descend(model: nn.Module, directions: list[Direction], amounts: Sequence[float]) -> None:
    """Subtracts `sum_n amounts[n] * directions[n]`."""
    with torch.no_grad():
        for direction, amount in zip(directions, amounts, strict=True):
            for p, z in zip(model.parameters(), direction, strict=True):
                p.sub_(amount * z)


def fzoo_step(model: nn.Module, loss: Loss, directions: list[Direction], *, lr: float, sigma: float) -> float:
    """Equations of Dang et al. 2025: one-sided, divided by the deviation of the perturbed losses. Returns the loss."""
    count = len(directions)
    base = float(loss_at(model, loss, directions[0], 0.0))
    slopes = in_twelve_bits([(float(loss_at(model, loss, z, sigma)) - base) / sigma for z in directions])
    losses = [base + sigma * slope for slope in slopes]
    mean = sum(losses) / count
    deviation = (sum((one - mean) ** 2 for one in losses) / (count - 1)) ** 0.5
    descend(model, directions, [lr / deviation * slope / count for slope in slopes])
    return base


@dataclass(kw_only=True)
class Meazo:
    """One scalar second moment of the mean projected gradient; central differences."""

    lr: float
    sigma: float
    decay: float
    eps: float
    moment: float = 0.0
    steps: int = 0

    def step(self, model: nn.Module, loss: Loss, directions: list[Direction]) -> None:
        count = len(directions)
        ends = [[float(loss_at(model, loss, z, sign * self.sigma)) for sign in (1, -1)] for z in directions]
        slopes = in_twelve_bits([(plus - minus) / (2 * self.sigma) for plus, minus in ends])
        self.steps += 1
        self.moment = self.decay * self.moment + (1 - self.decay) * (sum(slopes) / count) ** 2
        corrected = self.moment / (1 - self.decay**self.steps)
        descend(model, directions, [self.lr / (corrected**0.5 + self.eps) * slope / count for slope in slopes])


@dataclass(kw_only=True)
class Adam:
    """Kingma and Ba 2015, algorithm 1, on central differences along one direction."""

    lr: float
    sigma: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    steps: int = 0
    first: list[Tensor] = field(default_factory=list)
    second: list[Tensor] = field(default_factory=list)

    def step(self, model: nn.Module, loss: Loss, direction: Direction) -> None:
        plus, minus = (float(loss_at(model, loss, direction, sign * self.sigma)) for sign in (1, -1))
        gradient = [(plus - minus) / (2 * self.sigma) * z for z in direction]
        self.first = self.first or [torch.zeros_like(g) for g in gradient]
        self.second = self.second or [torch.zeros_like(g) for g in gradient]
        self.steps += 1
        (b1, b2), t = self.betas, self.steps
        self.first = [b1 * m + (1 - b1) * g for m, g in zip(self.first, gradient, strict=True)]
        self.second = [b2 * v + (1 - b2) * g * g for v, g in zip(self.second, gradient, strict=True)]
        moves = [
            m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + self.eps)
            for m, v in zip(self.first, self.second, strict=True)
        ]
        descend(model, [moves], [self.lr])
