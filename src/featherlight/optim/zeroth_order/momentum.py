"""Momentum that is kept in the left factors of the directions, so that it costs rows times directions and no matrix.

Legend of shapes: K directions, R rows, C columns.
While the right factors stay, the average of the estimates has them too: `trail_k = beta trail_k + (1 - beta) slope_k left_k`,
and a step subtracts `rate * sum_k trail_k right_k^T`. Where the right factors change, the average is projected on the new
ones, `trail_k = sum_j trail_j (old_j . new_k) / bound`. The bound is C for one direction, and for several the largest sum
of `|new_j . new_k|` over j, so that the average never grows by it. Products are with signs or elementwise, and sums are
taken in a fixed order, so a replay gives the same bits on any device and number of threads.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from featherlight.functional import SignStream
from featherlight.meter import Meter
from featherlight.optim.zeroth_order.addend import Term
from featherlight.optim.zeroth_order.targets import Directions, Factors, Target


class Momentum:
    """The momentum of one target through a run of steps.

    Args:
        target: with `beta` above 0; its `trail` is made or grown where it has to be.
        own: the term of one of the steps.
        meter: counts random words.
    """

    def __init__(self, target: Target, own: Term, meter: Meter) -> None:
        self._target = target
        self._meter = meter
        self._turns: dict[int, Tensor] = {}
        num_kept = len(own.coefficients) if target.columns else 1
        kept = own.coefficients.new_zeros(0, target.rows) if target.trail is None else target.trail
        missing = max(0, num_kept - len(kept))
        target.trail = torch.cat((kept, kept.new_zeros(missing, target.rows)))

    def subtract_(
        self,
        rows: Float[Tensor, "R C"],
        factors: Factors,
        own: Term,
        *,
        first: int,
        stream: SignStream,
        scale: float,
        rate: float,
    ) -> None:
        """Takes a step's estimate into the momentum, and subtracts `rate` times the momentum from rows, in place.

        Args:
            rows: of the weight, from row `first` on.
            factors: signs of the step, for these rows.
            own: the step's term.
            first: number of the first row.
            stream: the step's.
            scale: what one unit of a coefficient is worth.
            rate: factor of the momentum.
        """
        target = self._target
        assert target.trail is not None
        trail = target.trail[:, first : first + len(rows)]
        if (turn := self._turn(stream)) is not None:
            trail.copy_(_turned(trail, turn))
        fresh = factors.left * own.coefficients[:, None]
        fresh = fresh if target.columns else fresh.sum(0, keepdim=True)
        trail.mul_(target.beta)
        trail[: len(fresh)].add_(fresh.mul_((1 - target.beta) * scale))
        if rate == 0.0:
            return
        if factors.right is None:
            rows.sub_(trail[0, :, None] * rate)
            return
        right = factors.right if len(factors.right) == len(trail) else self._rights(stream.seed, stream.step)
        for left, signs in zip(trail, right, strict=True):
            rows.addr_(left * rate, signs, alpha=-1)

    def _turn(self, stream: SignStream) -> Float[Tensor, "K K"] | None:
        """`(old_j . new_k) / bound` where the right factors change with this step."""
        period = self._target.right_period
        if not self._target.columns or stream.step == 0 or stream.step % period:
            return None
        if stream.step not in self._turns:
            old, new = (self._rights(stream.seed, step).double() for step in (stream.step - 1, stream.step))
            bound = (new @ new.T).abs().sum(0).max()
            self._turns[stream.step] = old @ new.T / bound
        return self._turns[stream.step]

    def _rights(self, seed: int, step: int) -> Float[Tensor, "K C"]:
        """Those of all directions that are kept."""
        assert self._target.trail is not None
        directions = Directions([self._target], SignStream(seed=seed, step=step), len(self._target.trail))
        self._meter.random_words += directions.num_words
        return directions.right(self._target, self._target.trail.dtype)


def _turned(trail: Float[Tensor, "K R"], turn: Float[Tensor, "K K"]) -> Float[Tensor, "K R"]:
    turned = torch.zeros_like(trail)
    for new, weights in zip(turned, turn.T.tolist(), strict=True):
        for old, weight in zip(trail, weights, strict=True):
            new.add_(old * weight)
    return turned
