"""FZOO: one-sided differences along several directions, and a step divided by the deviation of the losses."""

from torch import nn
from torch.optim.optimizer import ParamsT

from featherlight.functional import SignStream
from featherlight.meter import Meter
from featherlight.objective import Objective
from featherlight.optim.zeroth_order.differences import OneSided
from featherlight.optim.zeroth_order.evaluation import SlopeEvaluator, Slopes
from featherlight.optim.zeroth_order.families import RankOneSigns, WholeBatchSigns
from featherlight.optim.zeroth_order.normalization import StandardDeviation
from featherlight.optim.zeroth_order.recorded import Journal, RecordedOptimizer
from featherlight.optim.zeroth_order.update import StepRecord, quantize_coefficients


class FZOO(RecordedOptimizer):
    """Forward-only descent whose step adapts to the deviation of N perturbed losses, in the units of the paper.

    A step evaluates the batch at the weights and at `sigma` along each of N directions, and subtracts
    `lr / deviation * mean((loss_n - loss) / sigma * direction_n)`. It is `ZerothOrderSGD` with
    `WholeBatchSigns(N)`, `OneSided()` and `StandardDeviation()` at the learning rate `lr / sigma`, which is about how far
    the weights move.

    Args:
        model: the module whose parameters are trained; it must stay the same object.
        lr: learning rate (eta in the paper); scales with `sigma`, since the deviation of the losses does.
        sigma: scale of the perturbation (epsilon in the paper).
        directions: WholeBatchSigns(N) as published, 8 where None. RankOneSigns(N), or RankOneSigns(None) for one direction
            for each example, needs two passes instead of N + 1; the deviation is then that of what the examples say.
        weight_decay: decoupled: weights shrink by `lr * weight_decay` a step.
        params: as for ZerothOrderSGD.
        seed: 64-bit key of all directions.
        journal: is handed a record of each step before the update.
        meter: counts random words and weight passes.

    Attributes:
        evaluator: measures the slopes.

    `step(objective)` returns the loss at the weights. Cost: N + 1 forward passes and one pass over the trained weights;
    memory beyond inference of a few MB. Replayable. Nothing is carried from step to step.
    Source: Dang et al. 2025, arXiv 2506.09034, by a summary of its update rule; the paper itself was not at hand. Directions
    are of signs and rank one instead of a sign for each weight, and slopes are recorded in 12 bits. A step whose perturbed
    losses are all equal is not taken.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        *,
        sigma: float = 1e-3,
        directions: RankOneSigns | WholeBatchSigns | None = None,
        weight_decay: float = 0.0,
        params: ParamsT | None = None,
        seed: int = 0,
        journal: Journal | None = None,
        meter: Meter | None = None,
    ) -> None:
        directions = directions if directions is not None else WholeBatchSigns()
        if directions.count == 1:
            raise ValueError(
                "FZOO needs two directions or more, since its step is divided by the deviation of their losses; got "
                f"{directions}. Use WholeBatchSigns(8), or ZerothOrderSGD for one direction."
            )
        super().__init__(model, params, lr, weight_decay, seed=seed, journal=journal, meter=meter)
        self.evaluator = SlopeEvaluator(directions, sigma, difference=OneSided())

    def _measure(self, objective: Objective, stream: SignStream) -> Slopes:
        return self.evaluator.measure(objective, self.targets, stream)

    def _record(self, measured: Slopes) -> StepRecord:
        coefficients, scale = quantize_coefficients(measured.slopes.cpu())
        normalize = StandardDeviation()
        deviation = self.evaluator.sigma * normalize.spread(normalize.next(0.0, coefficients, scale), 1)
        return self._new_record(coefficients, scale, self._rates(scale / deviation if deviation > 0 else 0.0))
