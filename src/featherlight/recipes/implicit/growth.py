"""Sequential training as an optimizer: a step trains one block and puts it into the model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from featherlight.objective import Objective
from featherlight.recipes.implicit.blocks import Blocks
from featherlight.recipes.implicit.network import GrowingModel


class BlockByBlock(torch.optim.Optimizer):
    """Trains block k in step k, with the earlier ones frozen.

    Args:
        model: is written to.
        begin: makes the blocks from the training rows, without any trained yet; is called in the first step.
        score: the validation loss of the model as it is.
        seed: of block k's random numbers, with k.
        patience: ends growth after so many blocks in a row that do not lower the score; the best model is kept. None
            trains and keeps all blocks.

    After growth has ended, a step does nothing. All that a save must keep is in the model.
    """

    def __init__(
        self,
        model: GrowingModel,
        begin: Callable[[], Blocks],
        score: Callable[[], float],
        *,
        seed: int,
        patience: int | None,
    ) -> None:
        super().__init__(model.parameters(), {"lr": 1.0})
        self.model = model
        self._begin = begin
        self._score = score
        self._seed = seed
        self._patience = patience
        self._blocks: Blocks | None = None

    @torch.no_grad()
    def step(self, closure: Objective) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Trains the next block; returns the regularised training loss, a row's mean.

        Args:
            closure: of the training rows; it is not called, as the blocks keep features of them.
        """
        number, model = int(self.model.num_blocks), self.model
        if self._ended():
            return model.history[number - 1, 1]
        blocks = self._begun(number)
        generator = torch.Generator().manual_seed(self._seed * 1009 + number)
        with torch.enable_grad():
            outcome = blocks.grow(len(model.hidden[number]), generator)
        row = [outcome.before, outcome.after, outcome.steps, int(outcome.status)]
        model.history[number] = torch.tensor(row, dtype=torch.float64)
        model.hidden[number].copy_(blocks.hidden[number])
        read_out = blocks.read_out
        model.read_out.zero_()
        model.read_out[: len(read_out)].copy_(read_out)
        model.num_blocks += 1
        self._keep(number + 1)
        return model.history[number, 1]

    def _keep(self, count: int) -> None:
        """Notes the model if it is the best so far; where growth ends, goes back to it."""
        model = self.model
        score = self._score()
        if self._patience is None or score < float(model.best_score):
            model.best_score.fill_(score)
            model.best_blocks.fill_(count)
            model.best_read_out.copy_(model.read_out)
        if self._ended() or count == len(model.hidden):
            model.keep_best()

    def _ended(self) -> bool:
        """Whether growth is at its end."""
        count, best = int(self.model.num_blocks), int(self.model.best_blocks)
        waited = self._patience is not None and count - best >= self._patience
        return waited or count == len(self.model.hidden)

    def _begun(self, number: int) -> Blocks:
        if self._blocks is None:
            self._blocks = self._begin()
            hidden = [weights.detach() for weights in self.model.hidden[:number]]
            if hidden:
                width = hidden[-1].shape[1] + len(hidden[-1])
                self._blocks.restore(hidden, self.model.read_out.detach()[:width].clone())
        return self._blocks

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "step"}
