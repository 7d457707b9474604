"""ConMeZO: directions in a cone around the momentum, which is a few seeds and whole numbers."""

import math
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from featherlight.functional import SignStream
from featherlight.meter import Meter
from featherlight.objective import Objective
from featherlight.optim.zeroth_order.addend import Addend, inner_product
from featherlight.optim.zeroth_order.evaluation import SlopeEvaluator, Slopes
from featherlight.optim.zeroth_order.families import RankOneSigns
from featherlight.optim.zeroth_order.normalization import Normalization, SpreadNormalized
from featherlight.optim.zeroth_order.offset import Offset
from featherlight.optim.zeroth_order.recorded import Journal, RecordedOptimizer
from featherlight.optim.zeroth_order.targets import Directions
from featherlight.optim.zeroth_order.update import Echo, StepRecord, directions_of, quantize_coefficients


@dataclass(frozen=True, kw_only=True)
class Cone:
    """The cone around the momentum in which ConMeZO draws.

    Args:
        angle: between the momentum and a direction (theta in the paper), in (0, pi / 2]; at pi / 2 there is no cone.
        beta: what is left of the momentum from one step to the next.
        window: past steps of which the momentum is made. What is older is forgotten: about `beta**window` of the weight of
            a constant gradient, and its square of the squared length of pure noise.
    """

    angle: float = 1.35
    beta: float = 0.9
    window: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.angle <= math.pi / 2:
            raise ValueError(
                f"`angle` must be in (0, pi / 2] radians (at 0 no step would look anywhere new); got {self.angle}."
            )
        if not 0 <= self.beta < 1:
            raise ValueError(f"`beta` must be in [0, 1) (1 would never take in a new estimate); got {self.beta}.")
        if not 1 <= self.window <= 1024:
            raise ValueError(
                f"`window` must be between 1 and 1024 past steps (each is applied once more in every step); got {self.window}."
            )


class ConMeZO(RecordedOptimizer):
    """Forward-only SGD whose directions lean towards an average of the past estimates.

    A direction is `cos(angle) sqrt(d) m / |m| + sin(angle) u`, with u of random signs, d trained numbers and the momentum
    `m = beta m + (1 - beta) estimate`. Every estimate lies in the span of the directions drawn so far, so `m` is a weight
    for each step of the window, and is never formed: the forward pass adds it as low-rank terms, the update applies
    earlier steps once more. Its length is computed from inner products of signs, which are whole numbers.

    Args:
        model: the module whose parameters are trained; it must stay the same object.
        lr: learning rate; a distance in weight space with `normalize`, else per unit of slope.
        cone: angle, decay and window of the momentum.
        sigma: scale of the perturbation.
        directions: how many directions a batch carries; all lean towards the same momentum.
        normalize: divides the step by the spread of the slopes; None leaves it as measured.
        weight_decay: decoupled; weights shrink by `lr * weight_decay` a step.
        params: as for ZerothOrderSGD.
        seed: 64-bit key of all directions.
        journal: is handed a record of each step before the update; it grows by 4 + 4 bytes a group for each step of the
            window.
        meter: counts random words and weight passes.

    Attributes:
        evaluator: measures the slopes.
        weights: what the whole numbers of each earlier step count in the momentum.
        mean_square: running mean square of the slopes, of `normalize`.

    Cost: two forward passes with `window` low-rank terms in each layer, and `window + 1` passes over the trained weights.
    Replayable.
    Source: Behric et al. 2025, arXiv 2511.02757, and the authors' code. Directions are of signs and rank one instead of
    Gaussian; the momentum has a window; there is no warm-up of beta, and the first step has no cone.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        cone: Cone | None = None,
        *,
        sigma: float = 1e-3,
        directions: RankOneSigns | None = None,
        normalize: SpreadNormalized | None = None,
        weight_decay: float = 0.0,
        params: ParamsT | None = None,
        seed: int = 0,
        journal: Journal | None = None,
        meter: Meter | None = None,
    ) -> None:
        super().__init__(model, params, lr, weight_decay, normalize=normalize, seed=seed, journal=journal, meter=meter)
        self.cone = cone if cone is not None else Cone()
        family = directions if directions is not None else RankOneSigns()
        self.evaluator = SlopeEvaluator(family, sigma * math.sin(self.cone.angle))
        self.weights: dict[int, float] = {}
        self._tilt = 0.0
        self._products: dict[tuple[int, int], int] = {}
        self._directions: dict[int, Directions] = {}

    def _measure(self, objective: Objective, stream: SignStream) -> Slopes:
        """Slopes along `u + tilt m`, which is the direction over `sin(angle)`."""
        if not (tilt := self._tilt):
            return self.evaluator.measure(objective, self.targets, stream)
        scales = [group["scale"] for group in self.param_groups]
        along = [self._past(step, [tilt * weight * scale for scale in scales]) for step, weight in self.weights.items()]
        return self.evaluator.measure(objective, self.targets, stream, offset=Offset((), along))

    def _record(self, measured: Slopes) -> StepRecord:
        coefficients, scale = quantize_coefficients(measured.slopes.cpu())
        own = scale * self._shrink() / self._spread(coefficients, scale)
        rates = self._rates(own)
        common = own * int(coefficients.sum()) * self._tilt
        echoes = (Echo(step=step, rates=self._rates(common * weight)) for step, weight in self.weights.items())
        return self._new_record(coefficients, scale, rates, echoes=tuple(echo for echo in echoes if any(echo.rates)))

    def _next_tilt(self) -> float:
        """What is added of the momentum to a direction of signs; 0 while there is none."""
        length = self._length()
        num_trained = sum(target.parameter.numel() for target in self.targets)
        return num_trained**0.5 / math.tan(self.cone.angle) / length if length else 0.0

    def _shrink(self) -> float:
        """From a slope along `u + tilt m` and that direction to a slope along the cone's and the cone's."""
        return math.sin(self.cone.angle) ** 2 if self._tilt else 1.0

    def _length(self) -> float:
        """Of the momentum, up to the rounding of one sum."""
        steps = list(self.weights)
        pairs = [(one, other) for number, one in enumerate(steps) for other in steps[: number + 1]]
        for one, other in pairs:
            if (one, other) not in self._products:
                self._products[one, other] = inner_product(self.targets, self._past(one), self._past(other))
        twice = (
            (1 if one == other else 2) * self.weights[one] * self.weights[other] * self._products[one, other]
            for one, other in pairs
        )
        return max(0.0, math.fsum(twice)) ** 0.5

    def _past(self, step: int, rates: list[float] | None = None) -> Addend:
        record = self.earlier[step]
        if step not in self._directions:
            self._directions[step] = directions_of(self.targets, record)
            self.meter.random_words += self._directions[step].num_words
        rates = rates or [1.0] * len(self.param_groups)
        return Addend(directions=self._directions[step], coefficients=record.coefficients, rates=tuple(rates))

    def _next_mean_square(self, normalize: Normalization, coefficients: Int[Tensor, "K"], scale: float) -> float:
        return normalize.next(self.mean_square, coefficients, scale * self._shrink() ** 0.5)

    def _remember(self, record: StepRecord) -> None:
        super()._remember(record)
        taken_in = (1 - self.cone.beta) * self._shrink() * record.scale
        kept = self.cone.beta + taken_in * int(record.coefficients.sum()) * self._tilt
        weights = {step: kept * weight for step, weight in self.weights.items()} | {record.step: taken_in}
        steps = list(weights)[-self.cone.window :]
        self.weights = {step: weights[step] for step in steps}
        self.earlier = {step: record if step == record.step else self.earlier[step] for step in steps}
        self._products = {pair: product for pair, product in self._products.items() if set(pair) <= set(steps)}
        self._directions = {step: drawn for step, drawn in self._directions.items() if step in self.weights}
        self._tilt = self._next_tilt()

    def _own_state(self) -> dict[str, Any]:
        return {"weights": list(self.weights.values())}

    def _take_state(self, state: dict[str, Any]) -> None:
        self.weights = dict(zip(self.earlier, state["weights"], strict=True))
        self._products, self._directions = {}, {}
        self._tilt = self._next_tilt()
