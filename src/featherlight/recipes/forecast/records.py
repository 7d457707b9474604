"""Records of systems: what was done to them, and what they did.

Legend of shapes: T samples, F inputs, K outputs.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from featherlight.data.image_files import read_arrays

_FILE = "system-id/system_id.npz"
_ARROW_HEAD = 40_000


@dataclass(frozen=True, kw_only=True)
class Record:
    """One stretch of time.

    Attributes:
        inputs: (T, F).
        outputs: (T, K).
    """

    inputs: Float[Tensor, "T F"]
    outputs: Float[Tensor, "T K"]

    def __len__(self) -> int:
        return len(self.outputs)

    def part(self, start: float, stop: float) -> "Record":
        """From one share of its time to another."""
        rows = slice(round(start * len(self)), round(stop * len(self)))
        return Record(inputs=self.inputs[rows], outputs=self.outputs[rows])


@dataclass(frozen=True, kw_only=True)
class Records:
    """The records of a system.

    Attributes:
        train: to learn from.
        valid: to choose by; after it in time.
        test: to report on.
    """

    train: Record
    valid: Record
    test: Record


def load_records(data: str) -> Records:
    """Records by name or from a file.

    Args:
        data: a key of `SYSTEMS`, or the path of a NumPy archive (.npz) with `u` and `y`: the first 60 % of the time train, the
            next 20 % validate, and the last test.

    Raises:
        ValueError: there are none, or they are wrong.
    """
    if data in SYSTEMS:
        return SYSTEMS[data](_built_in())
    path = Path(data)
    if path.suffix != ".npz":
        raise ValueError(
            f"`data` is {data!r}, which is neither a system that is known by name ({', '.join(SYSTEMS)}) nor a NumPy "
            "archive (.npz)."
        )
    arrays = read_arrays(path, ["u", "y"])
    if missing := [name for name in ("u", "y") if name not in arrays]:
        raise ValueError(
            f"{path} lacks the arrays {', '.join(missing)}: `u` is the input, `y` the output, a row a sample."
        )
    return _in_time(_record(arrays["u"], arrays["y"], str(path)))


def _built_in() -> Mapping[str, NDArray]:
    root = os.environ.get("FEATHERLIGHT_DATA")
    path = Path(root or "") / _FILE
    if not root or not path.is_file():
        raise ValueError(
            f"this system is read from {_FILE} in a folder of data, and there is none in FEATHERLIGHT_DATA, which is {root!r}. "
            "Set it, or set `data` to the path of an archive of your own."
        )
    return read_arrays(path, [name for pair in _NAMES.values() for name in pair])


_NAMES = {
    "silverbox": ("silverbox_arrow_u", "silverbox_arrow_y"),
    "tanks": ("cascaded_tanks_u_est", "cascaded_tanks_y_est"),
    "tanks, to test on": ("cascaded_tanks_u_val", "cascaded_tanks_y_val"),
    "heat_exchanger": ("heat_exchanger_u", "heat_exchanger_y"),
    "robot_arm": ("robot_arm_u", "robot_arm_y"),
    "ball_and_beam": ("ball_and_beam_u", "ball_and_beam_y"),
}


def _named(arrays: Mapping[str, NDArray], name: str) -> Record:
    inputs, outputs = _NAMES[name]
    return _record(arrays[inputs], arrays[outputs], name)


def _record(inputs: NDArray, outputs: NDArray, source: str) -> Record:
    u, y = (np.asarray(one, dtype=np.float64) for one in (inputs, outputs))
    u_TF, y_TK = (one[:, None] if one.ndim == 1 else one for one in (u, y))
    if (
        u_TF.ndim != 2
        or y_TK.ndim != 2
        or len(u_TF) != len(y_TK)
        or not np.isfinite(u_TF).all() & np.isfinite(y_TK).all()
    ):
        raise ValueError(
            f"input and output of {source} must be finite numbers with as many rows each; got the shapes {u.shape} and {y.shape}."
        )
    return Record(inputs=torch.from_numpy(u_TF).float(), outputs=torch.from_numpy(y_TK).float())


def _in_time(record: Record) -> Records:
    return Records(train=record.part(0, 0.6), valid=record.part(0.6, 0.8), test=record.part(0.8, 1))


def _silverbox(arrays: Mapping[str, NDArray]) -> Records:
    """The arrow head is for the test, as usual: it goes further than what is trained on."""
    whole = _named(arrays, "silverbox")
    head = Record(inputs=whole.inputs[:_ARROW_HEAD], outputs=whole.outputs[:_ARROW_HEAD])
    rest = Record(inputs=whole.inputs[_ARROW_HEAD:], outputs=whole.outputs[_ARROW_HEAD:])
    return Records(train=rest.part(0, 0.8), valid=rest.part(0.8, 1), test=head)


def _tanks(arrays: Mapping[str, NDArray]) -> Records:
    whole = _named(arrays, "tanks")
    return Records(train=whole.part(0, 0.8), valid=whole.part(0.8, 1), test=_named(arrays, "tanks, to test on"))


SYSTEMS: Mapping[str, Callable[[Mapping[str, NDArray]], Records]] = MappingProxyType(
    {
        "silverbox": _silverbox,
        "tanks": _tanks,
        **{
            name: (lambda arrays, name=name: _in_time(_named(arrays, name)))
            for name in ("heat_exchanger", "robot_arm", "ball_and_beam")
        },
    }
)
"""The systems that are known by name."""
