"""In which precision a recipe computes, as its config says it. The config's side imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from featherlight.recipes.optimizer_config import BY_GRADIENT

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from featherlight.objective import PerExampleLoss
    from featherlight.precision import LossScaler, Precision
    from featherlight.report import Section
    from featherlight.trainer import Evaluation

PrecisionName = Literal["fp32", "bf16", "fp16"]
"""Precisions by the names that configs use."""


class Arithmetic:
    """In which precision steps are computed; evaluations are in float32.

    Args:
        precision: of matrix products and convolutions.
        scaler: of the loss; None does without.
    """

    def __init__(self, precision: Precision, scaler: LossScaler | None) -> None:
        self.precision = precision
        self.scaler = scaler

    def lowered(self, loss: PerExampleLoss) -> PerExampleLoss:
        """The loss, computed in the precision."""
        from featherlight.objective import autocast

        return autocast(loss, self.precision)

    def scaled(self, optimizer: Optimizer) -> Optimizer:
        """The optimizer, with loss scaling where there is a scaler."""
        from featherlight.optim import WithLossScaling

        return optimizer if self.scaler is None else WithLossScaling(optimizer, self.scaler)

    def noted(self, found: Sequence[Evaluation]) -> Sequence[Evaluation]:
        """Scores, the first of them with what the loss scaling came to."""
        if self.scaler is None:
            return found
        figures = {
            "loss_scale": self.scaler.scale,
            "skipped_steps": float(self.scaler.skipped),
            "underflow_share": self.scaler.underflow_share,
        }
        return [replace(found[0], values={**found[0].values, **figures}), *found[1:]]

    def sections(self) -> Sequence[Section]:
        """What the loss scaling came to, where there is any."""
        from featherlight.report import Section

        if self.scaler is None:
            return ()
        text = (
            f"The loss was multiplied by a scale that ended at {self.scaler.scale:,.0f}; {self.scaler.skipped:,} steps were "
            "skipped since their gradient overflowed. Of the entries of the last gradient, the scale kept "
            f"{self.scaler.underflow_share:.1%} from being zero or subnormal in float16."
        )
        return (Section(title="Loss scaling", text=text),)

    def facts(self) -> Mapping[str, str]:
        """The precision, unless it is the usual one."""
        if self.precision.compute.itemsize == 4:
            return {}
        scaling = "" if self.scaler is None else ", with dynamic loss scaling"
        name = str(self.precision.compute).removeprefix("torch.")
        return {"precision": f"steps in {name}{scaling}, weights in float32"}


def arithmetic(name: PrecisionName, *, method: str) -> Arithmetic:
    """By the names that configs use; methods that go by gradients scale the loss in fp16."""
    import torch

    from featherlight.precision import LossScaler, Precision

    computes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    precision = Precision(compute=computes[name])
    return Arithmetic(precision, LossScaler() if precision.needs_scaling and method in BY_GRADIENT else None)
