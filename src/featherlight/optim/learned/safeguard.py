"""A descent test for learned steps, with a backtracking gradient step to fall back on.

Legend of shapes: B problems that are decided on at once (an optimizer decides on one, with B empty), W last values.

What it costs, in evaluations of the objective, with a gradient or without. Every step takes one with a gradient and at least one
trial without, as backtracking gradient descent does. Beyond that go
- trials of a rule that are not taken. A rule leads at first, and after a trial that it won; one that leads loses the lead with
  its first lost trial, and without it is tried only as long as lost trials are at most `share` of all evaluations.
- gradient trials beside a rule that is taken: in the first step, then once in `every` evaluations.
To win, a rule without the lead must lower the objective by at least the product of size and squared length of the gradient (twice
what a gradient step of the best size would), and so must a leading one whose trial shows a step of less than half the length that
it should have; one that is compared must go at least as far as the gradient step itself. So
a rule that is never any good costs one trial and `share` of the evaluations, and leaves the points of the fallback alone.

The fallback itself takes fewer evaluations than textbook backtracking with a fixed factor, which more than makes up for what
a rule costs that is good in places and bad in others: sizes start from the spectral one, shrink to the minimum of a parabola,
and a step may end above the value it starts from, if below the highest of the last W. That last condition bounds all values for
good, by the highest of the first: nothing diverges. All other things being equal, this is an argument about costs and no proof
for single problems; how it went on thousands of them stands in the tests and in docs/learned_optimizers.md.

Source of the fallback: Barzilai, Borwein 1988; Grippo, Lampariello, Lucidi 1986; Raydan 1997; with a constraint or penalty the
spectral projected gradient of Birgin, Martinez, Raydan 2000.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Trials(Protocol):
    """The objective at trial points."""

    def rule(self, scales_B: Float[Tensor, "*B"], needed_B: Bool[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """Values at the points moved by `scales` times the rule's steps; anything where not needed."""
        ...

    def gradient(
        self, sizes_B: Float[Tensor, "*B"], needed_B: Bool[Tensor, "*B"]
    ) -> tuple[Float[Tensor, "*B"], Float[Tensor, "*B"]]:
        """Values at the points moved by gradient steps of these sizes, and the decrease that their slopes predict."""
        ...


class Measured(NamedTuple):
    """What is known of a batch of points, float64, all (B).

    Attributes:
        values_B: of the objective.
        slopes_B: change of it by the rule's steps to first order: products with the gradients, and what penalties change.
        squares_B: squared lengths of the gradients; under a constraint or penalty what a gradient step of the last size is
            predicted to lower the objective by, over that size.
        spectral_B: squared length of the last step over its product with the change of the gradient; not above 0: unknown.
        active_B: bool, where anything is to be done; elsewhere the choice is to stay.
        rounding: of a value, relative.
    """

    values_B: Tensor
    slopes_B: Tensor
    squares_B: Tensor
    spectral_B: Tensor
    active_B: Tensor
    rounding: float = torch.finfo(torch.float64).eps


class SafeguardState(NamedTuple):
    """What the safeguard keeps from step to step, float64.

    Attributes:
        recent_BW: the last values of the objective.
        size_B: of the last gradient step.
        known_B: 1 once there was one.
        scale_B: factor of the rule's steps, at most 1.
        leads_B: 1 where the rule is trusted.
        evaluations_B: so far.
        lost_B: trials of the rule that were not taken.
        compared_B: evaluations at which the rule last won against a gradient step.
    """

    recent_BW: Tensor
    size_B: Tensor
    known_B: Tensor
    scale_B: Tensor
    leads_B: Tensor
    evaluations_B: Tensor
    lost_B: Tensor
    compared_B: Tensor


class Choice(NamedTuple):
    """What is done in a step.

    Attributes:
        rule_B: bool, whether it is the rule's.
        size_B: factor of the rule's step, or size of the gradient step; 0 stays.
    """

    rule_B: Tensor
    size_B: Tensor


class _RuleTrial(NamedTuple):
    """How the rule's steps did: whether tried and good enough, what was reached, and how much longer they should be."""

    tried_B: Tensor
    good_B: Tensor
    reached_B: Tensor
    stretch_B: Tensor


@dataclass(frozen=True, kw_only=True)
class Safeguard:
    """Takes a rule's step only where it lowers the objective, and otherwise a backtracking gradient step.

    Args:
        share: of the evaluations, that may go to trials of a rule that has failed.
        every: evaluations between two comparisons of a rule that leads with a gradient step; None never compares.
        sufficient: share of the predicted decrease that a step must reach (Armijo).
        first_size: of the first gradient step that is tried.
        window: last values, of which a gradient step must stay below the highest; 1 always descends.
        tries: of sizes in one step; with none accepted the point stays.

    A rule's step that fails shrinks the next ones to the minimum of the parabola through what is known, so that a class that is
    only scaled differently is learned; they grow again, but never beyond what the rule says.

    The test reads the objective of this step alone. With small, noisy batches take `every=None`, so that the rule (and its
    learning rate) is left alone as long as it descends, or no safeguard at all.
    """

    share: float = 0.04
    every: int | None = 20
    sufficient: float = 1e-4
    first_size: float = 1.0
    window: int = 10
    tries: int = 60

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"`share` must be in [0, 1), as it is a share of evaluations; got {self.share}.")
        if self.every is not None and self.every < 1:
            raise ValueError(f"`every` must be at least 1 evaluation; got {self.every}. None never compares.")
        if not 0 < self.sufficient < 0.5:
            raise ValueError(f"`sufficient` must be in (0, 0.5), or exact steps would fail; got {self.sufficient}.")
        if not 0 < self.first_size < float("inf"):
            raise ValueError(f"`first_size` must be finite and positive; got {self.first_size}.")
        if self.window < 1 or self.tries < 1:
            raise ValueError(f"`window` and `tries` must be at least 1; got {self.window} and {self.tries}.")

    def init(self, *batch: int) -> SafeguardState:
        """The state before the first step of a batch of problems of this shape; without one, of a single problem."""
        zero, one = torch.zeros(batch, dtype=torch.float64), torch.ones(batch, dtype=torch.float64)
        recent = torch.full((*batch, self.window), -torch.inf, dtype=torch.float64)
        return SafeguardState(recent, self.first_size * one, zero, one, one, zero, zero, zero - torch.inf)

    def choose(self, at: Measured, state: SafeguardState, trials: Trials) -> tuple[Choice, SafeguardState]:
        """What to do at points where the gradient was evaluated just now.

        Args:
            at: what is known there.
            state: of `init` or the choice before.
            trials: evaluates the objective.
        """
        scale_B = state.scale_B
        recent_BW = torch.cat((state.recent_BW[..., 1:], at.values_B[..., None]), -1)
        state = state._replace(recent_BW=recent_BW, evaluations_B=state.evaluations_B + at.active_B)
        trial, state = self._try_rule(at, state, trials)
        due_B = trial.good_B & self._is_due(trial, state)
        search_B = at.active_B & (~trial.good_B | due_B)
        size_B, reached_B, searched = self._search(at, search_B, state, trials)
        margin_B = torch.where(trial.stretch_B > 2, 2.0, 1.0)
        further_B = at.values_B - trial.reached_B >= margin_B * (at.values_B - reached_B)
        rule_B = trial.good_B & (~due_B | further_B)
        lost_B = trial.tried_B & ~rule_B
        state = searched._replace(
            leads_B=torch.where(rule_B, 1.0, torch.where(lost_B, 0.0, state.leads_B)),
            lost_B=state.lost_B + lost_B,
            compared_B=torch.where(due_B & rule_B, searched.evaluations_B, state.compared_B),
        )
        return Choice(rule_B, torch.where(rule_B, scale_B, size_B) * at.active_B), state

    def _try_rule(self, at: Measured, state: SafeguardState, trials: Trials) -> tuple[_RuleTrial, SafeguardState]:
        leads_B = state.leads_B > 0
        tried_B = at.active_B & (leads_B | (state.lost_B + 1 <= self.share * state.evaluations_B))
        reached_B = trials.rule(state.scale_B, tried_B) if bool(tried_B.any()) else at.values_B
        reached_B = torch.where(tried_B & ~reached_B.isnan(), reached_B, torch.inf)
        predicted_B = -state.scale_B * at.slopes_B.clamp(max=0)
        low_B = (reached_B <= at.values_B - self.sufficient * predicted_B + _noise(at)) & (predicted_B > 0)
        lower_B = tried_B & (low_B | (reached_B < at.values_B))
        stretch_B = _to_minimum(at.values_B, reached_B, predicted_B)
        doubtful_B = ~leads_B | ((stretch_B > 2) & (self.every is not None))
        certain_B = torch.where(doubtful_B, state.known_B * state.size_B * at.squares_B, 0.0)
        good_B = lower_B & (at.values_B - reached_B + _noise(at) >= certain_B)
        factor_B = torch.where(lower_B, stretch_B.clamp(1, 2), stretch_B.clamp(1e-3, 0.5))
        scale_B = torch.where(tried_B & (at.slopes_B < 0), state.scale_B * factor_B, state.scale_B).clamp(max=1)
        state = state._replace(scale_B=scale_B, evaluations_B=state.evaluations_B + tried_B)
        return _RuleTrial(tried_B, good_B, reached_B, stretch_B), state

    def _is_due(self, trial: _RuleTrial, state: SafeguardState) -> Tensor:
        """Where a rule that leads is compared with a gradient step."""
        if self.every is None:
            return torch.zeros_like(trial.tried_B)
        late_B = state.evaluations_B - state.compared_B >= self.every
        return (state.leads_B > 0) & (late_B | ((trial.stretch_B > 2) & (state.known_B == 0)))

    def _search(
        self, at: Measured, search_B: Tensor, state: SafeguardState, trials: Trials
    ) -> tuple[Tensor, Tensor, SafeguardState]:
        """Sizes of gradient steps that will do (0: none found), what they reach, and the state."""
        start_B = torch.where(at.spectral_B > 0, at.spectral_B, state.size_B * (1 + state.known_B))
        size_B, pending_B = start_B.clamp(1e-100, 1e100), search_B
        ceiling_B = torch.maximum(at.values_B, state.recent_BW.amax(-1)) + _noise(at)
        lowest_B, evaluations_B = torch.full_like(at.values_B, torch.inf), state.evaluations_B
        for _ in range(self.tries):
            if not bool(pending_B.any()):
                break
            reached_B, predicted_B = trials.gradient(size_B, pending_B)
            evaluations_B = evaluations_B + pending_B
            low_B = pending_B & (reached_B <= ceiling_B - self.sufficient * predicted_B)
            lowest_B = torch.where(low_B, reached_B, lowest_B)
            pending_B = pending_B & ~low_B
            shrink_B = _to_minimum(at.values_B, reached_B, predicted_B).clamp(1e-3, 0.5)
            size_B = torch.where(pending_B, size_B * shrink_B, size_B)
        found_B = search_B & ~pending_B
        state = state._replace(
            size_B=torch.where(found_B, size_B, state.size_B),
            known_B=torch.where(found_B, 1.0, state.known_B),
            evaluations_B=evaluations_B,
        )
        return torch.where(found_B, size_B, 0.0), lowest_B, state


def _noise(at: Measured) -> Tensor:
    """Differences of values that may be rounding."""
    return 4 * at.rounding * at.values_B.abs()


def _to_minimum(values_B: Tensor, reached_B: Tensor, predicted_B: Tensor) -> Tensor:
    """By how much a trial step must be stretched to end where the parabola through its ends has its minimum."""
    excess_B = reached_B - values_B + predicted_B
    stretch_B = torch.where(excess_B > 0, predicted_B / (2 * excess_B), torch.inf)
    return torch.where(reached_B.isfinite(), stretch_B, 0.0).nan_to_num(nan=0.0, posinf=torch.inf)
