"""One batch of which each of several processes computes a part."""

import copy
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featherlight.objective.passes import count_forward, gradients, one_per_row, seeded_random
from featherlight.objective.protocols import Batch, Team
from featherlight.precision import LossScaler

if TYPE_CHECKING:
    from featherlight.objective.batch import BatchObjective

_SEED_STRIDE = 0x9E3779B97F4A7C15  # apart the dropout seeds of processes


class SharedObjective:
    """The mean loss over a batch of which each of several processes computes a part.

    Loss, gradient and values are those of the whole batch, on every process, up to the rounding of sums. What is not
    the same: batch statistics are those of a process's own rows, and each process draws dropout masks of its own. The
    meter counts the whole batch.

    Args:
        whole: the batch; its micro-batch is the rows of a pass on one process.
        team: the processes.

    Attributes:
        num_examples: B, of the whole batch.
    """

    def __init__(self, whole: "BatchObjective", team: Team) -> None:
        self.num_examples = whole.num_examples
        self._whole = whole
        self._team = team
        self._seed = (whole.dropout_seed + team.rank * _SEED_STRIDE) % (1 << 63)
        self._device = next(iter(whole.batch.values())).device
        self._scaler: LossScaler | None = whole.scaler
        self._passes = _passes(whole.num_examples, whole.micro_batch, team)

    def __call__(self) -> Float[Tensor, ""]:
        """Clears the gradients, fills them with those of the whole batch and returns its mean loss."""
        self._whole.model.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)
        loss_scale = 1.0 if self._scaler is None else self._scaler.scale
        with torch.enable_grad(), seeded_random(self._seed, self._device):
            for number, (rows, counts) in enumerate(self._passes, 1):
                scale = loss_scale * counts / self.num_examples
                last = number == len(self._passes)
                total = total + self._team.add_gradient(self._losses, self._rows(rows), scale, last=last)
        count_forward(self._whole.meter, self._whole.batch, self.num_examples)
        self._whole.meter.backward_passes += self.num_examples
        if self._scaler is not None:
            self._scaler.unscale(gradients(self._whole.model), self._team.sum)
        return self._team.sum(total / loss_scale)

    @torch.no_grad()
    def value(self) -> Float[Tensor, ""]:
        """The mean loss without a graph."""
        return self.values().mean()

    @torch.no_grad()
    def values(self) -> Float[Tensor, "B"]:
        """The losses of all examples of the batch, without a graph."""
        found = None
        with seeded_random(self._seed, self._device):
            for rows, counts in self._passes:
                losses = self._losses(self._whole.model, self._rows(rows))
                found = losses.new_zeros(self.num_examples) if found is None else found
                if counts:
                    found[rows.start : rows.stop] = losses
        count_forward(self._whole.meter, self._whole.batch, self.num_examples)
        assert found is not None, "a batch has at least one pass"
        return self._team.sum(found)

    def share(self, team: Team) -> "SharedObjective":
        """The same batch, shared by other processes."""
        return SharedObjective(self._whole, team)

    def scaled(self, scaler: LossScaler) -> "SharedObjective":
        """The same objective, its gradient computed from a multiple of the loss; all processes see the same overflows."""
        other = copy.copy(self)
        other._scaler = scaler
        return other

    def _losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return one_per_row(self._whole.loss(model, batch), len(next(iter(batch.values()))))

    def _rows(self, rows: range) -> Batch:
        return {name: tensor[rows.start : rows.stop] for name, tensor in self._whole.batch.items()}


def _passes(num_examples: int, micro_batch: int | None, team: Team) -> list[tuple[range, bool]]:
    """Rows of each pass of a process, and whether they count.

    All processes make equally many; one that has run out of rows repeats one, which does not count.
    """
    start, stop = (num_examples * rank // team.size for rank in (team.rank, team.rank + 1))
    longest = -(-num_examples // team.size)
    step = min(micro_batch or longest, longest)
    spare = min(start, num_examples - 1)
    parts = [range(one, min(one + step, stop)) for one in range(start, start + longest, step)]
    return [(part, True) if len(part) else (range(spare, spare + 1), False) for part in parts]
