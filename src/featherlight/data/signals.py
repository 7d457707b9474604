"""Measured signals of systems: what went in, and what came out."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from featherlight.data._folder import find, whole
from featherlight.data._suggest import did_you_mean, listing

_FILE = ("system-id", "system_id.npz")


@dataclass(frozen=True, kw_only=True, eq=False)
class SignalRecord:
    """One input and one output of a system, measured at the same times.

    Args:
        name: of the record.
        inputs: (N,), float64.
        outputs: (N,), float64.

    Raises:
        ValueError: the two differ in length, there are fewer than two samples, or one is not finite.
    """

    name: str
    inputs: Float[Tensor, "N"]
    outputs: Float[Tensor, "N"]

    def __post_init__(self) -> None:
        if self.inputs.shape != self.outputs.shape or self.inputs.ndim != 1 or len(self.inputs) < 2:
            raise ValueError(
                f"the record {self.name} needs one output for each input, two or more in a row; got shapes "
                f"{tuple(self.inputs.shape)} and {tuple(self.outputs.shape)}."
            )
        for what, values in (("inputs", self.inputs), ("outputs", self.outputs)):
            if not bool(values.isfinite().all()):
                raise ValueError(
                    f"the {what} of the record {self.name} are not finite at sample {int((~values.isfinite()).nonzero()[0])}. "
                    "Cut the record there, or fill the gap."
                )

    def __len__(self) -> int:
        return len(self.inputs)

    def part(self, start: float, stop: float) -> "SignalRecord":
        """The samples between two shares of the record, in [0, 1]."""
        rows = slice(round(start * len(self)), round(stop * len(self)))
        return SignalRecord(name=self.name, inputs=self.inputs[rows], outputs=self.outputs[rows])


SIGNAL_RECORDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "silverbox": ("silverbox_schroeder_u", "silverbox_schroeder_y"),
        "silverbox-arrow": ("silverbox_arrow_u", "silverbox_arrow_y"),
        "cascaded-tanks": ("cascaded_tanks_u_est", "cascaded_tanks_y_est"),
        "cascaded-tanks-validation": ("cascaded_tanks_u_val", "cascaded_tanks_y_val"),
        "heat-exchanger": ("heat_exchanger_u", "heat_exchanger_y"),
        "robot-arm": ("robot_arm_u", "robot_arm_y"),
        "ball-and-beam": ("ball_and_beam_u", "ball_and_beam_y"),
    }
)
"""The records that are known by name, and their arrays of inputs and outputs in the file."""


def load_signals(name: str) -> SignalRecord:
    """A measured record from `system-id/system_id.npz` in the folder FEATHERLIGHT_DATA.

    Args:
        name: a key of `SIGNAL_RECORDS`.

    Raises:
        ValueError: there is no such record, the folder is not named, or the file is missing or damaged.

    Source: Silverbox and cascaded tanks of nonlinearbenchmark.org (Wigren and Schoukens 2013; Schoukens et al. 2016); the others
    of DaISy (De Moor et al. 1997).
    """
    if name not in SIGNAL_RECORDS:
        raise ValueError(
            f"there is no record {name!r}; there are {listing(SIGNAL_RECORDS)}.{did_you_mean(name, SIGNAL_RECORDS)}"
        )
    keys = SIGNAL_RECORDS[name]
    arrays = whole(find(*_FILE), keys)
    inputs, outputs = (torch.from_numpy(arrays[key].astype(np.float64)) for key in keys)
    return SignalRecord(name=name, inputs=inputs, outputs=outputs)
