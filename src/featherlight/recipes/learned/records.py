"""Identification on measured records: windows of real signals as tasks."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from featherlight.data import SIGNAL_RECORDS, load_signals
from featherlight.optim.learned.meta_tasks import Tasks
from featherlight.recipes.learned.plants import arx, regression_tasks


@dataclass(frozen=True, kw_only=True)
class MeasuredRecords:
    """ARX models of windows of measured records, each at zero mean and unit variance.

    Args:
        names: of records, keys of `SIGNAL_RECORDS`.
        part: shares of each record between which windows lie, so that learning and testing see different samples.
        order: past outputs and past inputs that predict the next output.
        samples: of a window.
    """

    names: tuple[str, ...] = ("silverbox", "cascaded-tanks", "heat-exchanger", "robot-arm")
    part: tuple[float, float] = (0.0, 0.6)
    order: int = 4
    samples: int = 256

    def __post_init__(self) -> None:
        if not self.names or not set(self.names) <= set(SIGNAL_RECORDS):
            raise ValueError(f"`names` must be of {sorted(SIGNAL_RECORDS)}; got {list(self.names)}.")
        if not 0 <= self.part[0] < self.part[1] <= 1:
            raise ValueError(f"`part` must be two shares in order in [0, 1]; got {list(self.part)}.")
        if not 2 * self.order <= self.samples:
            raise ValueError(
                f"`samples` must be at least the {2 * self.order} parameters of order {self.order}; got {self.samples}."
            )

    def sample(self, count: int, generator: torch.Generator) -> Tasks:
        """So many windows, of the records in turn and at random places.

        Raises:
            ValueError: the data are absent, or a record's part is shorter than a window.
        """
        length = self.samples + self.order
        records = [load_signals(name).part(*self.part) for name in self.names]
        for record in records:
            if len(record) < length:
                raise ValueError(
                    f"the part {list(self.part)} of the record {record.name} has {len(record)} samples and a window needs "
                    f"{length}. Take a longer part or shorter windows."
                )
        inputs, outputs = [], []
        for number in range(count):
            record = records[number % len(records)]
            first = int(torch.randint(len(record) - length + 1, (), generator=generator))
            inputs.append(record.inputs[first : first + length])
            outputs.append(record.outputs[first : first + length])
        return regression_tasks(*arx(_scaled(torch.stack(inputs)), _scaled(torch.stack(outputs)), self.order))


def _scaled(signals: Float[Tensor, "T S"]) -> Float[Tensor, "T S"]:
    """At zero mean and unit variance."""
    centred = signals - signals.mean(1, keepdim=True)
    return centred / centred.std(1, keepdim=True).clamp(min=1e-12)
