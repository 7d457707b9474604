"""Stochastic gradient descent on slopes along rank-one sign directions, by forward passes alone."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from featherlight.functional import SignStream
from featherlight.meter import Meter
from featherlight.objective import NonFiniteLossError, Objective
from featherlight.optim.zeroth_order.differences import Difference
from featherlight.optim.zeroth_order.evaluation import SlopeEvaluator, Slopes
from featherlight.optim.zeroth_order.families import RankOneSigns, WholeBatchSigns
from featherlight.optim.zeroth_order.gathering import Gather, Part, Settled, combine
from featherlight.optim.zeroth_order.normalization import Normalization
from featherlight.optim.zeroth_order.recorded import Journal, RecordedOptimizer
from featherlight.optim.zeroth_order.shaping import Shaping
from featherlight.optim.zeroth_order.update import StepRecord, quantize_coefficients


class ZerothOrderSGD(RecordedOptimizer):
    """Forward-only SGD at inference memory: the weights are perturbed inside the forward pass and never copied.

    Args:
        model: the module whose parameters are trained; it must stay the same object.
        lr: learning rate; a distance in weight space with `normalize`, else per unit of slope.
        sigma: scale of the perturbation.
        directions: how many rank-one sign directions a batch carries, and whether each is carried by a part of it
            (RankOneSigns) or by all (WholeBatchSigns).
        difference: between which points a slope is measured; None takes `Central()`.
        shaping: CentredRanks() goes by the ranks of a step's losses; None by the losses.
        normalize: divides the step by the spread of the slopes; None leaves it as measured.
        weight_decay: decoupled, as in AdamW: weights shrink by `lr * weight_decay` a step.
        params: parameters or parameter groups, as for torch.optim; None takes all that require a gradient. The `scale` of a
            group (1 if it has none) is how much further its parameters are perturbed and moved than others.
        seed: 64-bit key of all directions.
        journal: is handed a record of each step before the update.
        gather: brings together what several processes measure of a step, each along directions and on examples of its own;
            None measures alone.
        meter: counts random words and weight passes.

    Attributes:
        gather: as given; may be set between steps.
        evaluator: measures the slopes.
        mean_square: what `normalize` carries from step to step: the running mean square of the slopes, or another moment.

    `step(objective)` returns the mean loss of both evaluations. Cost: two forward passes (see WholeBatchSigns for more) and
    one pass over the trained weights; memory beyond inference of a few MB. Replayable: base weights and records give the same
    bits.
    Source: SPSA (Spall 1992) as MeZO uses it (Malladi et al. 2023, arXiv 2305.17333); directions, exact update and
    one direction per example are design.md, section 5.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        *,
        sigma: float = 1e-3,
        directions: RankOneSigns | WholeBatchSigns | None = None,
        difference: Difference | None = None,
        shaping: Shaping | None = None,
        normalize: Normalization | None = None,
        weight_decay: float = 0.0,
        params: ParamsT | None = None,
        seed: int = 0,
        journal: Journal | None = None,
        gather: Gather | None = None,
        meter: Meter | None = None,
    ) -> None:
        super().__init__(model, params, lr, weight_decay, normalize=normalize, seed=seed, journal=journal, meter=meter)
        family = directions if directions is not None else RankOneSigns()
        self.evaluator = SlopeEvaluator(family, sigma, difference=difference, shaping=shaping)
        self.gather = gather

    def _measure(self, objective: Objective, stream: SignStream) -> Slopes:
        if self.gather is None:
            return self.evaluator.measure(objective, self.targets, stream)
        try:
            return self.evaluator.measure(objective, self.targets, stream, slot=self.gather.slot)
        except NonFiniteLossError as error:
            self.gather.fail(error)
            raise

    def _record(self, measured: Slopes) -> StepRecord:
        return self._record_of(*quantize_coefficients(measured.slopes.cpu()))

    def _record_of(self, coefficients: Tensor, scale: float) -> StepRecord:
        return self._new_record(coefficients, scale, self._rates(scale / self._spread(coefficients, scale)))

    def _settle(self, measured: Slopes) -> Settled:
        if self.gather is None:
            return super()._settle(measured)
        coefficients, scale = quantize_coefficients(measured.slopes.cpu())
        part = Part(coefficients=coefficients, scale=scale, loss=float(measured.loss))
        return self.gather.settle(part, self._record_together)

    def _record_together(self, parts: Sequence[Part | None]) -> StepRecord:
        return self._record_of(*combine(parts))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"gather": None}
