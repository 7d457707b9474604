"""Any optimizer that goes by gradients, with loss scaling: steps whose gradient overflowed are not applied."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from featherlight.objective import NonFiniteLossError, Objective, ScalableObjective
from featherlight.optim._several import SeveralOptimizers
from featherlight.precision import LossScaler

_PATIENCE = 10  # steps in turn that are skipped at a scale of 1, from which there is no way on
_KEY = "loss_scaling"


class WithLossScaling(SeveralOptimizers):
    """Steps with another optimizer by gradients of a scaled loss, unscaled in float32; a step that overflows is skipped.

    A step first computes the gradient. Where that is not finite, neither weights nor the optimizer's state are touched and
    the scale is halved. An optimizer that asks for more gradients within the step (L-BFGS) gets the first as it is, and
    later ones that overflow computed again at half the scale, since a step half done can be neither skipped nor finished.
    Schedulers, saves and loads see one optimizer; scale and counters are in its `state_dict`.

    Args:
        optimizer: any that goes by gradients; it is not to be used by itself any more. Its parameters are the master weights,
            in float32 or wider (bfloat16 is let through).
        scaler: finds the scale; None makes a usual one.

    Attributes:
        scaler: as given.
        optimizers: the one that is wrapped.
        replayable: False.

    Raises:
        ValueError: a parameter is in float16, in which a gradient cannot be unscaled.

    Source: Micikevicius et al. 2018 (arXiv 1710.03740, section 3.2).
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: LossScaler | None = None) -> None:
        super().__init__([optimizer])
        dtypes = {parameter.dtype for group in self.param_groups for parameter in group["params"]}
        if torch.float16 in dtypes:
            raise ValueError(
                "a parameter is in float16, where unscaled gradients underflow again and small updates are lost. Keep the "
                "weights in float32 (`model.float()`); featherlight.objective.autocast computes in float16."
            )
        self.scaler = LossScaler() if scaler is None else scaler

    def step(self, closure: Objective) -> Float[Tensor, ""]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step, or none where the gradient overflowed; returns the loss.

        Args:
            closure: an objective with `scaled(scaler)`.

        Raises:
            ValueError: it is none.
            NonFiniteLossError: gradients stay infinite or NaN even at a scale of 1.
        """
        if not isinstance(closure, ScalableObjective):
            seen = "nothing" if closure is None else f"a {type(closure).__name__}"
            raise ValueError(
                f"WithLossScaling.step needs an Objective with `scaled(scaler)`, such as BatchObjective; got {seen}. For "
                "several objectives in turn, wrap each of their optimizers."
            )
        objective = closure.scaled(self.scaler)
        with torch.enable_grad():
            loss = objective()
        if self.scaler.overflowed:
            self.scaler.note_skipped()
            if self.scaler.in_vain >= _PATIENCE:
                raise _hopeless(f"in {_PATIENCE} steps in turn")
            return loss
        self.optimizers[0].step(_Evaluated(objective, loss, self))  # pyright: ignore[reportArgumentType, reportCallIssue]
        self.scaler.note_applied()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """That of the wrapped optimizer, with scale and counters."""
        return super().state_dict() | {_KEY: self.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave; that of an optimizer without loss scaling leaves the scale as it is."""
        super().load_state_dict({name: value for name, value in state_dict.items() if name != _KEY})
        if _KEY in state_dict:
            self.scaler.load_state_dict(state_dict[_KEY])

    def versions(self) -> list[int]:
        """How often each parameter was written so far."""
        return [parameter._version for group in self.param_groups for parameter in group["params"]]


class _Evaluated:
    """An objective whose gradient is there already: the first call returns its loss, unless weights were moved since."""

    def __init__(self, objective: Objective, loss: Tensor, optimizer: WithLossScaling) -> None:
        self._objective = objective
        self._loss: Tensor | None = loss
        self._optimizer = optimizer
        self._versions = optimizer.versions()

    def __call__(self) -> Tensor:
        loss, self._loss = self._loss, None
        if loss is not None and self._optimizer.versions() == self._versions:
            return loss
        scaler = self._optimizer.scaler
        loss = self._objective()
        while scaler.overflowed and scaler.scale > 1:
            scaler.note_recomputed()
            loss = self._objective()
        if scaler.overflowed:
            raise _hopeless("in the midst of a step")
        return loss

    def value(self) -> Tensor:
        return self._objective.value()

    def values(self) -> Tensor:
        return self._objective.values()


def _hopeless(when: str) -> NonFiniteLossError:
    return NonFiniteLossError(
        f"the gradient was not finite {when}, even without loss scaling (at a scale of 1), so it is no underflow that hurts. "
        "Lower the learning rate, compute in bfloat16, which has the range of float32, or look at the data."
    )
