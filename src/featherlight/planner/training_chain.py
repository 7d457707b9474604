"""From a model, a batch and a budget of bytes to the cheapest activation checkpointing."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from featherlight.objective import Batch, PerExampleLoss
from featherlight.planner.activation_checkpoint import ChainPlan, plan_chain
from featherlight.planner.chain import Chain, Usage, store_everything
from featherlight.planner.chain_costs import Clock, measure_chain
from featherlight.planner.chain_discovery import find_chain
from featherlight.transforms.activation_checkpoint import ActivationCheckpoint
from featherlight.transforms.activation_checkpoint_schedule import Op


@dataclass(frozen=True, kw_only=True)
class TrainingChain:
    """A chain within a model, measured.

    Attributes:
        stages: names of its modules, in the order in which the model calls them.
        chain: what they take, with what comes before and after them as first and last stage.
    """

    stages: tuple[str, ...]
    chain: Chain

    @property
    def full(self) -> Usage:
        """What the plain run takes."""
        return store_everything(self.chain)


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How to train a model within a budget.

    Attributes:
        measured: the chain.
        plan: the schedule for it, its peak and time, and the bound.
    """

    measured: TrainingChain
    plan: ChainPlan

    @property
    def full_seconds(self) -> float:
        """The time of the plain run."""
        return self.measured.full.seconds

    def transform(self) -> ActivationCheckpoint:
        """What has the model follow the schedule."""
        stages = self.measured.stages
        inner = [Op(action, stage - 1) for action, stage in self.plan.schedule if 0 < stage <= len(stages)]
        return ActivationCheckpoint(stages, inner)


def plan_for(
    model: nn.Module,
    batch: Batch,
    loss: PerExampleLoss,
    budget: int,
    *,
    stages: Sequence[str] | None = None,
    repeats: int = 3,
) -> TrainingPlan:
    """Measures the chain of a model on a batch and finds the schedule of least time within a budget.

    Args:
        model: as it is trained; its weights, buffers and gradients stay as they are.
        batch: tensors by name, each with B rows: as large as those of training.
        loss: `loss(model, batch) -> (B,)`, as an objective takes it.
        budget: bytes of tensors that a forward and a backward pass may take, above what is there before: weights and optimizer
            state are not counted, gradients that come up are.
        stages: names of the modules of the chain, in the order in which the model calls them; None finds them.
        repeats: of the timings.

    Returns:
        The plan, whose `transform()` is an `ActivationCheckpoint`.

    Raises:
        ValueError: an empty batch, no chain, or a budget below the least for which there is a schedule.
    """
    return plan_measured(measured_chain(model, batch, loss, stages=stages, repeats=repeats), budget)


def measured_chain(
    model: nn.Module,
    batch: Batch,
    loss: PerExampleLoss,
    *,
    stages: Sequence[str] | None = None,
    repeats: int = 3,
    clock: Clock = time.perf_counter,
) -> TrainingChain:
    """The first half of `plan_for`: the chain, found and measured by a clock. The budget does not come into it."""
    rows = {name: len(tensor) for name, tensor in batch.items()}
    if not rows or 0 in rows.values():
        raise ValueError(
            f"`batch` must hold tensors of at least one row; got rows {rows}. Measure on a batch as in training."
        )
    named = tuple(stages) if stages is not None else find_chain(model)

    def mean() -> Tensor:
        losses = loss(model, batch)
        return losses.sum() / len(losses)

    return TrainingChain(stages=named, chain=measure_chain(model, named, mean, repeats=repeats, clock=clock))


def plan_measured(measured: TrainingChain, budget: int) -> TrainingPlan:
    """The second half of `plan_for`: the schedule of least time for a chain that has been measured."""
    return TrainingPlan(measured=measured, plan=plan_chain(measured.chain, budget))
