"""LOZO: forward-only SGD in a subspace that changes lazily, with momentum in the small factors."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from featherlight.functional import QuantizedTensor, SignStream
from featherlight.meter import Meter
from featherlight.objective import Objective
from featherlight.optim.zeroth_order.addend import Addend
from featherlight.optim.zeroth_order.evaluation import SlopeEvaluator, Slopes
from featherlight.optim.zeroth_order.families import RankOneSigns
from featherlight.optim.zeroth_order.normalization import Normalization, SpreadNormalized
from featherlight.optim.zeroth_order.offset import Offset
from featherlight.optim.zeroth_order.recorded import Journal, RecordedOptimizer
from featherlight.optim.zeroth_order.targets import Directions, Target
from featherlight.optim.zeroth_order.update import MAX_DIRECTIONS, StepRecord, quantize_coefficients


@dataclass(frozen=True, kw_only=True)
class LazySubspace:
    """Where LOZO looks: `left right^T / sqrt(rank)`, left factors anew in each step, right factors kept for a period.

    Args:
        rank: of the direction of a matrix (r in the paper); all its parts are moved by one common slope.
        period: steps for which the right factors stay (nu in the paper).
        beta: what is left of the momentum from one step to the next; 0 is LOZO, above it is LOZO-M.
    """

    rank: int = 2
    period: int = 50
    beta: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MAX_DIRECTIONS:
            raise ValueError(f"`rank` must be between 1 and {MAX_DIRECTIONS}; got {self.rank}.")
        if self.period < 1:
            raise ValueError(
                f"`period` must be at least 1 step for which the right factors stay; got {self.period}. At 1 they are drawn "
                "anew in every step."
            )
        if not 0 <= self.beta < 1:
            raise ValueError(f"`beta` must be in [0, 1) (1 would never take in a new estimate); got {self.beta}.")


class LOZO(RecordedOptimizer):
    """Forward-only SGD along low-rank sign directions, the right factors of which stay the same for a while.

    Within a period all steps move a matrix in the span of the same right factors, so the average of the estimates is
    kept in left factors alone. Where the right factors change it is projected on the new ones, which keeps a share of
    about `sqrt(rank / columns)` of its length.

    Args:
        model: the module whose parameters are trained; it must stay the same object.
        lr: learning rate; a distance in weight space with `normalize`, else per unit of slope.
        subspace: rank, period and momentum.
        sigma: scale of the perturbation.
        directions: how many directions a batch carries; of rank one if there are several.
        normalize: divides the step by the spread of the slopes; None leaves it as measured.
        weight_decay: decoupled; weights shrink by `lr * weight_decay` a step.
        params: as for ZerothOrderSGD.
        seed: 64-bit key of all directions.
        journal: is handed a record of each step before the update.
        meter: counts random words and weight passes.

    Attributes:
        evaluator: measures the slopes.
        mean_square: running mean square of the slopes, of `normalize`.

    Cost: two forward passes; one pass over the trained weights, or one for each direction with momentum, which takes
    rows times directions of memory. Replayable: the momentum follows from the records.
    Source: Chen et al. 2024, arXiv 2410.07698, algorithms 1 and 2. Factors are of signs instead of Gaussian, directions
    are divided by `sqrt(rank)` so that `sigma` means the same at all ranks, and vectors take the sum of `rank` sign vectors.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        subspace: LazySubspace | None = None,
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
        several = directions is not None and directions.count != 1
        self.subspace = subspace if subspace is not None else LazySubspace(rank=1 if several else 2)
        if several and self.subspace.rank > 1:
            raise ValueError(
                f"`rank` {self.subspace.rank} is for one direction a batch, since several a batch are rank one each. Pass "
                "LazySubspace(rank=1), or RankOneSigns(count=1)."
            )
        super().__init__(model, params, lr, weight_decay, normalize=normalize, seed=seed, journal=journal, meter=meter)
        family = directions if directions is not None else RankOneSigns()
        self.evaluator = SlopeEvaluator(family, sigma / self.subspace.rank**0.5)

    def _make_targets(self) -> list[Target]:
        targets = super()._make_targets()
        for target in targets:
            if self.subspace.beta and isinstance(target.parameter, QuantizedTensor):
                raise ValueError(
                    f"`{target.name}` is held in {target.parameter.grid.bits} bits, and momentum is not kept for such a weight. "
                    "Use LazySubspace(beta=0), or train a float model."
                )
            target.right_period, target.beta = self.subspace.period, self.subspace.beta
        return targets

    def _measure(self, objective: Objective, stream: SignStream) -> Slopes:
        rank = self.subspace.rank
        if rank == 1:
            return self.evaluator.measure(objective, self.targets, stream)
        directions = Directions(self.targets, stream, rank)
        scales = tuple(group["scale"] for group in self.param_groups)
        others = torch.ones(rank - 1, dtype=torch.int64)
        along = Addend(directions=directions, coefficients=others, rates=scales, first=1)
        measured = self.evaluator.measure(objective, self.targets, stream, offset=Offset((), [along]))
        self.meter.random_words += measured.directions.num_words
        return measured._replace(slopes=measured.slopes.repeat(rank) / rank, directions=directions)

    def _record(self, measured: Slopes) -> StepRecord:
        coefficients, scale = quantize_coefficients(measured.slopes.cpu())
        per_lr = (1.0 if self.subspace.beta else scale) / self._spread(coefficients, scale)
        return self._new_record(coefficients, scale, self._rates(per_lr))

    def _next_mean_square(self, normalize: Normalization, coefficients: Int[Tensor, "K"], scale: float) -> float:
        """That of slopes along whole directions; the parts of one have a slope in common."""
        rank = self.subspace.rank
        own = coefficients if rank == 1 else coefficients[:1]
        return normalize.next(self.mean_square, own, scale * rank**0.5)

    def _own_state(self) -> dict[str, Any]:
        return {"trails": [target.trail for target in self.targets]}

    def _take_state(self, state: dict[str, Any]) -> None:
        for target, trail in zip(self.targets, state["trails"], strict=True):
            target.trail = None if trail is None else trail.to(target.parameter.device, copy=True)
