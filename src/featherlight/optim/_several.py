"""What optimizers that are made of several have in common."""

from collections.abc import Sequence
from typing import Any

import torch


class SeveralOptimizers(torch.optim.Optimizer):
    """Groups and state of several optimizers as those of one; how they step is left to whoever builds on it.

    Args:
        optimizers: of different parameters; they are not to be used by themselves any more.

    Attributes:
        optimizers: as given; they share this one's groups and state.
        replayable: False, whatever they are.

    Raises:
        ValueError: no optimizers, or a parameter that two of them have.
    """

    replayable = False

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        if not optimizers:
            raise ValueError("`optimizers` is empty, so nothing would be trained. Give at least one.")
        self.optimizers = tuple(optimizers)
        super().__init__([group for one in optimizers for group in one.param_groups], {})
        for one in optimizers:
            self.state.update(one.state)
        self._hand_out()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        super().load_state_dict(state_dict)
        self._hand_out()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "step"}

    def _hand_out(self) -> None:
        """Lets all optimizers work on this one's groups and state."""
        start = 0
        for one in self.optimizers:
            stop = start + len(one.param_groups)
            one.param_groups, one.state = self.param_groups[start:stop], self.state
            start = stop
