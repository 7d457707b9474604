"""Slopes of the loss along random directions, from evaluations that leave the weights alone."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from featherlight.functional import SignStream
from featherlight.objective import Objective, PerExampleObjective
from featherlight.optim.zeroth_order.differences import Central, Difference
from featherlight.optim.zeroth_order.families import RankOneSigns, WholeBatchSigns, direction_of_example
from featherlight.optim.zeroth_order.gathering import Slot
from featherlight.optim.zeroth_order.guards import check_positive, one_value, require_finite, values_of
from featherlight.optim.zeroth_order.layout import Layout, measure_layout
from featherlight.optim.zeroth_order.offset import Offset
from featherlight.optim.zeroth_order.perturbed_forward import PerturbedForward
from featherlight.optim.zeroth_order.shaping import Shaping, TieWatch, pair_slopes
from featherlight.optim.zeroth_order.targets import Directions, Target

_PROBE_SIGMA = 0.05
_ALL = Slot()


class Slopes(NamedTuple):
    """What a step measures.

    Attributes:
        slopes: (K,) float64; the gradient's estimate is `sum_k slopes[k] * direction[k]`. Where processes measure a step
            together, those of this process's own directions.
        loss: the mean loss of the points, or that at the weights where these are one of them, ().
        directions: those of the step, of all processes.
        touched: indices of the targets that took part in the forward passes.
    """

    slopes: Float[Tensor, "K"]
    loss: Float[Tensor, ""]
    directions: Directions
    touched: set[int]


class SlopeEvaluator:
    """Measures slopes of one model; remembers where its calls hold their examples.

    Args:
        family: how many directions a batch carries, and whether each is carried by a part of it or by all.
        sigma: distance of the points from the weights, along each direction.
        difference: which points; None takes `Central()`.
        shaping: of the losses at both points; None takes their differences as they are.
    """

    def __init__(
        self,
        family: RankOneSigns | WholeBatchSigns,
        sigma: float,
        *,
        difference: Difference | None = None,
        shaping: Shaping | None = None,
    ) -> None:
        check_positive("sigma", sigma)
        self.family = family
        self.sigma = sigma
        self.difference = difference if difference is not None else Central()
        self.shaping = shaping
        self._ties = TieWatch()
        self._layout: Layout | None = None

    @torch.no_grad()
    def measure(
        self,
        objective: Objective,
        targets: Sequence[Target],
        stream: SignStream,
        *,
        offset: Offset | None = None,
        slot: Slot = _ALL,
    ) -> Slopes:
        """Slopes along the directions of one step, around the weights or around a point at an offset.

        With a slot the directions are those of that slot, out of as many more as there are slots.

        Cost: two forward passes of the batch; in the first step with several directions, nine examples more. Where each of
        K directions is carried by the whole batch: 2 K passes, or K + 1 with one-sided differences.
        """
        if isinstance(self.family, WholeBatchSigns):
            return self._measure_whole(objective, targets, stream, offset, self.family.count, slot)
        if self.family.count == 1:
            return self._measure_whole(objective, targets, stream, offset, 1, slot)
        examples = self._require_examples(objective)
        if examples.num_examples > 1:
            return self._measure_many(examples, targets, stream, offset, slot)
        if stream.step == 0:
            raise ValueError(
                "the first batch has a single example, which does not show along which axes examples stand. Begin with a "
                "batch of two or more, or use RankOneSigns(count=1)."
            )
        return self._measure_whole(objective, targets, stream, offset, 1, slot)

    def _measure_whole(
        self,
        objective: Objective,
        targets: Sequence[Target],
        stream: SignStream,
        offset: Offset | None,
        count: int,
        slot: Slot,
    ) -> Slopes:
        directions = Directions(targets, stream, slot.total(count))
        own = range(slot.first(count), slot.first(count) + count)
        by_id = {id(target.parameter): target for target in targets}
        touched: set[int] = set()

        def evaluate(sigma: float, number: int) -> Tensor:
            with PerturbedForward(by_id, directions, sigma, number=number, offset=offset) as forward:
                loss = one_value(objective).double()
            touched.update(forward.touched)
            return loss

        far_sigma = self.difference.far * self.sigma
        near = torch.stack([evaluate(self.sigma, number) for number in own])
        far = torch.stack([evaluate(far_sigma, number) for number in (own if far_sigma else own[:1])])
        require_finite(torch.cat((near, far)), stream.step)
        far = far.expand_as(near)
        each = torch.arange(count, device=near.device)
        return Slopes(self._slopes(near, far, each, count), self.difference.loss(near, far).mean(), directions, touched)

    def _measure_many(
        self,
        objective: PerExampleObjective,
        targets: Sequence[Target],
        stream: SignStream,
        offset: Offset | None,
        slot: Slot,
    ) -> Slopes:
        by_id = {id(target.parameter): target for target in targets}
        direction_of = direction_of_example(objective.num_examples, self.family.count).to(targets[0].parameter.device)
        count = int(direction_of[-1]) + 1
        directions = Directions(targets, stream, slot.total(count))
        numbers = direction_of + slot.first(count)
        if self._layout is None:
            self._layout = measure_layout(by_id, objective)
            self._require_independence(objective.narrow(3), by_id, directions)
        losses, touched = [], set()
        for sigma in (self.sigma, self.difference.far * self.sigma):
            values, also_touched = self._values(objective, by_id, directions, numbers, sigma, offset)
            losses.append(values.double())
            touched |= also_touched
        near, far = losses
        require_finite(torch.stack(losses), stream.step)
        slopes = self._slopes(near, far, direction_of, count)
        return Slopes(slopes, self.difference.loss(near, far).mean(), directions, touched)

    def _slopes(self, near: Tensor, far: Tensor, direction_of: Tensor, count: int) -> Tensor:
        distance = (1 - self.difference.far) * self.sigma
        slopes = pair_slopes(near, far, direction_of, count, self.shaping) / distance
        self._ties.note(slopes, self.sigma)
        return slopes

    def _values(
        self,
        objective: PerExampleObjective,
        by_id: dict[int, Target],
        directions: Directions,
        direction_of: Tensor,
        sigma: float,
        offset: Offset | None = None,
    ) -> tuple[Tensor, set[int]]:
        forward = PerturbedForward(
            by_id,
            directions,
            sigma,
            layout=self._layout,
            direction_of=lambda: direction_of[objective.window.start : objective.window.stop],
            offset=offset,
        )
        with forward:
            return values_of(objective), forward.touched

    def _require_independence(self, few: PerExampleObjective, by_id: dict[int, Target], directions: Directions) -> None:
        """Checks that the loss of the first of three examples stays as it is when the others change direction.

        Three, since batch statistics of two have no more than a sign. Losses of float64 may come of a model in float32.
        """
        losses = []
        for of_others in (0, directions.count - 1):
            direction_of = torch.full((few.num_examples,), of_others, device=directions.device)
            direction_of[0] = 0
            losses.append(self._values(few, by_id, directions, direction_of, _PROBE_SIGMA)[0][0])
        same, different = losses
        of_weights = max(torch.finfo(target.parameter.dtype).eps for target in by_id.values())
        rtol = max(torch.finfo(same.dtype).eps, min(of_weights, torch.finfo(torch.float32).eps))
        if not torch.allclose(same, different, rtol=rtol, atol=0.0, equal_nan=True):
            self._layout = None
            raise ValueError(
                f"the loss of an example depends on the other examples of its batch (from {float(same):.6g} to "
                f"{float(different):.6g} when only its neighbours move), so they cannot carry directions of their own. "
                "Use RankOneSigns(count=1), or take out what mixes examples (BatchNorm without running statistics, "
                "contrastive losses)."
            )

    def _require_examples(self, objective: Objective) -> PerExampleObjective:
        if isinstance(objective, PerExampleObjective):
            return objective
        raise ValueError(
            "several directions a batch need an Objective that tells its examples apart (`num_examples`, `window`, "
            f"`narrow`); got a {type(objective).__name__}. Use BatchObjective, or RankOneSigns(count=1)."
        )
