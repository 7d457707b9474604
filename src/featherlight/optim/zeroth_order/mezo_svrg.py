"""MeZO-SVRG: variance-reduced forward-only SGD, with an anchor that is no copy of the weights."""

from jaxtyping import Int
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from featherlight.functional import SignStream
from featherlight.meter import Meter
from featherlight.objective import Objective
from featherlight.optim.zeroth_order.differences import Difference
from featherlight.optim.zeroth_order.evaluation import SlopeEvaluator, Slopes
from featherlight.optim.zeroth_order.families import RankOneSigns, WholeBatchSigns
from featherlight.optim.zeroth_order.guards import check_positive
from featherlight.optim.zeroth_order.normalization import Normalization
from featherlight.optim.zeroth_order.offset import Offset
from featherlight.optim.zeroth_order.recorded import Journal, RecordedOptimizer
from featherlight.optim.zeroth_order.update import Echo, StepRecord, echo_of, quantize_coefficients


class MeZOSVRG(RecordedOptimizer):
    """Forward-only SGD whose minibatch noise is cancelled against an anchor, at the memory of plain forward-only SGD.

    Every `anchor_every`-th step, the first one included, measures the slopes `g` of the objective it is handed, which
    ought to be that of all or many examples (`next_is_anchor` says when), and follows them. The steps between follow
    `g_I(weights) - g_I(anchor) + g`, both minibatch slopes along the same directions. The anchor is the weights plus the
    few low-rank terms that were subtracted since, added inside the forward pass; `g` is a seed and whole numbers.

    Args:
        model: the module whose parameters are trained; it must stay the same object.
        lr: learning rate of the steps between anchors.
        anchor_lr: learning rate of anchor steps. Schedulers and groups set `lr`; the ratio of both stays.
        anchor_every: steps from one anchor to the next (q in the paper).
        sigma: scale of the perturbation.
        directions: how many rank-one sign directions a batch carries, at anchors and between.
        difference: between which points a slope is measured; None takes `Central()`.
        normalize: divides all steps by the spread of the slopes at anchors; None leaves them as measured.
        weight_decay: decoupled; applied in the last step before an anchor for the whole period, since the anchor must
            stay a few terms away.
        params: as for ZerothOrderSGD.
        seed: 64-bit key of all directions.
        journal: is handed a record of each step before the update.
        meter: counts random words and weight passes.

    Attributes:
        anchor_ratio: `anchor_lr / lr`.
        evaluator: measures the slopes.
        mean_square: what `normalize` carries from anchor to anchor, as in ZerothOrderSGD.

    Cost: two forward passes of the large batch at anchors; between, four of the minibatch. Memory beyond inference of a few
    MB. Weights below 32 bits are rounded stochastically in each step, so their anchor is met up to that rounding.
    Source: Gautam et al. 2024, arXiv 2404.08080, algorithm 1. Directions are of signs and rank one instead of Gaussian.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        anchor_lr: float,
        anchor_every: int = 2,
        *,
        sigma: float = 1e-3,
        directions: RankOneSigns | WholeBatchSigns | None = None,
        difference: Difference | None = None,
        normalize: Normalization | None = None,
        weight_decay: float = 0.0,
        params: ParamsT | None = None,
        seed: int = 0,
        journal: Journal | None = None,
        meter: Meter | None = None,
    ) -> None:
        check_positive("lr", lr)
        check_positive("anchor_lr", anchor_lr, allow_zero=True)
        if anchor_every < 1:
            raise ValueError(
                f"`anchor_every` must be at least 1 step from one anchor to the next; got {anchor_every}. At 1 every step is "
                "one; use ZerothOrderSGD to have none."
            )
        super().__init__(model, params, lr, weight_decay, normalize=normalize, seed=seed, journal=journal, meter=meter)
        self.anchor_every = anchor_every
        self.anchor_ratio = anchor_lr / lr
        family = directions if directions is not None else RankOneSigns()
        self.evaluator = SlopeEvaluator(family, sigma, difference=difference)

    @property
    def next_is_anchor(self) -> bool:
        """Whether the next step measures an anchor, and is to be handed the objective of the large batch."""
        return self.steps_done % self.anchor_every == 0

    @property
    def anchor(self) -> Offset:
        """Where the last anchor is, seen from the weights: what was subtracted since, by the directions of each step.

        Raises:
            ValueError: before the first step.
        """
        if not self.earlier:
            raise ValueError("there is no anchor before the first step.")
        anchor, *between = self.earlier.values()
        echoed = [echo.rates for record in between for echo in record.echoes]
        rates = tuple(map(sum, zip(anchor.rates, *echoed, strict=True)))
        own = (echo_of(self.targets, record, record.rates) for record in between)
        return Offset([echo_of(self.targets, anchor, rates), *own])

    def _measure(self, objective: Objective, stream: SignStream) -> Slopes:
        here = self.evaluator.measure(objective, self.targets, stream)
        if self.next_is_anchor:
            return here
        anchor = self.evaluator.measure(objective, self.targets, stream, offset=self.anchor)
        self.meter.random_words += anchor.directions.num_words
        return here._replace(slopes=here.slopes - anchor.slopes)

    def _record(self, measured: Slopes) -> StepRecord:
        coefficients, scale = quantize_coefficients(measured.slopes.cpu())
        if self.next_is_anchor:
            rates, echoes = self._anchor_rates(coefficients, scale), ()
        else:
            anchor, spread = next(iter(self.earlier.values())), self._last_spread()
            rates = self._rates(scale / spread)
            echoes = (Echo(step=anchor.step, rates=self._rates(anchor.scale / spread)),)
        decayed_steps = self._decayed_steps()
        return self._new_record(coefficients, scale, rates, echoes=echoes, decayed_steps=decayed_steps)

    def _anchor_rates(self, coefficients: Int[Tensor, "K"], scale: float) -> tuple[float, ...]:
        spread = 1.0
        if self.normalize is not None:
            mean_square = self.normalize.next(self.mean_square, coefficients, scale)
            spread = self.normalize.spread(mean_square, self.steps_done // self.anchor_every + 1) or float("inf")
        return self._rates(self.anchor_ratio * scale / spread)

    def _decayed_steps(self) -> float:
        """None but for the step before an anchor, which makes up for the period."""
        if (self.steps_done + 1) % self.anchor_every:
            return 0.0
        return self.anchor_ratio + self.anchor_every - 1

    def _last_spread(self) -> float:
        """That of the anchors so far; infinite where all their slopes were zero."""
        if self.normalize is None:
            return 1.0
        anchors = -(-self.steps_done // self.anchor_every)
        return self.normalize.spread(self.mean_square, anchors) or float("inf")

    def _remember(self, record: StepRecord) -> None:
        if self.next_is_anchor:
            self.earlier = {}
            super()._remember(record)
        self.earlier[record.step] = record
