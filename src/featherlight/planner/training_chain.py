"""From a model, a batch and a budget of bytes to the cheapest activation checkpointing."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from featherlight.objective import Batch, PerExampleLoss
from featherlight.planner.activation_checkpoint import ChainPlan, plan_chain
from featherlight.planner.chain import Chain, store_everything
from featherlight.planner.chain_costs import measure_chain
from featherlight.planner.chain_discovery import find_chain
from featherlight.transforms.activation_checkpoint import ActivationCheckpoint
from featherlight.transforms.activation_checkpoint_schedule import Op


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How to train a model within a budget.

    Attributes:
        stages: names of the modules of the chain.
        chain: what they take, with what comes before and after them.
        plan: the schedule for that, its peak and time, and the bound.
        full_bytes: the peak of the plain run.
        full_seconds: its time.
    """

    stages: tuple[str, ...]
    chain: Chain
    plan: ChainPlan
    full_bytes: int
    full_seconds: float

    def transform(self) -> ActivationCheckpoint:
        """What has the model follow the schedule."""
        inner = [Op(action, stage - 1) for action, stage in self.plan.schedule if 0 < stage <= len(self.stages)]
        return ActivationCheckpoint(self.stages, inner)


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
        model: in training mode, where the budget is to be kept; its weights, buffers and gradients stay as they are.
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

    Example: `plan_for(model, batch, loss, 64 * 2**20).transform().prepare(model)`.
    """
    rows = {name: len(tensor) for name, tensor in batch.items()}
    if not rows or 0 in rows.values():
        raise ValueError(
            f"`batch` must hold tensors of at least one row; got rows {rows}. Measure on a batch as in training."
        )
    named = tuple(stages) if stages is not None else find_chain(model)

    def mean() -> Tensor:
        losses = loss(model, batch)
        return losses.sum() / len(losses)

    chain = measure_chain(model, named, mean, repeats=repeats)
    full = store_everything(chain)
    return TrainingPlan(
        stages=named,
        chain=chain,
        plan=plan_chain(chain, budget),
        full_bytes=full.peak_bytes,
        full_seconds=full.seconds,
    )
