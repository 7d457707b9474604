"""What the recipes learn: images with classes, tables with a number to foretell, and functions to interpolate.

Legend of shapes: N rows, I inputs, Y outputs.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from featherlight.data import load_images, split_rows
from featherlight.data.tables import read_table

UCI = ("boston", "concrete", "energy", "kin8nm", "naval", "power", "protein", "wine_red", "yacht")
"""Names of the sets in uci-regression/ of the folder FEATHERLIGHT_DATA that `tabular` knows."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Inputs with what is to be foretold of them.

    Attributes:
        inputs: (N, I) floats.
        targets: (N,) whole numbers for classes, or (N, Y) floats.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: Tensor) -> "Rows":
        """Some of the rows."""
        return Rows(inputs=self.inputs[rows], targets=self.targets[rows])

    def to(self, device: torch.device, dtype: torch.dtype) -> "Rows":
        """The same on a device, floats in a dtype."""
        classes = not self.targets.is_floating_point()
        targets = self.targets.to(device) if classes else self.targets.to(device, dtype)
        return Rows(inputs=self.inputs.to(device, dtype), targets=targets)


@dataclass(frozen=True, kw_only=True)
class Learnable:
    """A set of data as an implicit model sees it.

    Attributes:
        source: for people.
        train: to learn from.
        valid: to choose by.
        test: to report on; None where there is none.
        classes: their names; empty where numbers are foretold.
        names: of the inputs.
        is_even: whether the inputs are of one unit already, as pixels are, and are not brought to one.
    """

    source: str
    train: Rows
    valid: Rows
    test: Rows | None
    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    is_even: bool = False

    @property
    def num_outputs(self) -> int:
        """Classes, or numbers that are foretold."""
        return len(self.classes) or self.train.targets.shape[1]

    def to(self, device: torch.device, dtype: torch.dtype) -> "Learnable":
        """The same on a device, floats in a dtype."""
        test = None if self.test is None else self.test.to(device, dtype)
        return replace(self, train=self.train.to(device, dtype), valid=self.valid.to(device, dtype), test=test)

    def digest(self) -> str:
        """Of the training rows."""
        found = hashlib.sha256()
        for tensor in (self.train.inputs, self.train.targets):
            found.update(tensor.contiguous().numpy().tobytes())
        return found.hexdigest()


def images(data: str, valid_fraction: float) -> Learnable:
    """Images with their classes, the pixels of each in one row, in [0, 1]; as `load_images` names them."""
    splits = load_images(data).with_valid(valid_fraction)
    assert splits.valid is not None, "`with_valid` has seen to it"
    parts = [
        None if one is None else Rows(inputs=one.floats(slice(None)).flatten(1), targets=one.labels)
        for one in (splits.train, splits.valid, splits.test)
    ]
    assert parts[0] is not None, "there is a training part"
    assert parts[1] is not None, "`with_valid` has seen to it"
    return Learnable(
        source=data, train=parts[0], valid=parts[1], test=parts[2], classes=splits.train.classes, is_even=True
    )


def tabular(data: str, *, target: str | None, split: int, valid_fraction: float, seed: int) -> Learnable:
    """A set of uci-regression by its name, or a table of numbers from a file.

    Args:
        data: the name, or the path of a Parquet, CSV or JSON file.
        target: the column to foretell, for a file; None is the last.
        split: which of the usual divisions into training and test rows, for a set by name.
        valid_fraction: share of the training rows to choose by; of a file, as many again are to report on.
        seed: of the division.

    Raises:
        ValueError: no such set, file or column, or something that is not a number.
    """
    if data in UCI:
        train, test, names = _uci(data, split)
    else:
        whole, names = _numbers(data, target)
        rest, held = split_rows(whole.targets, valid_fraction=valid_fraction, seed=seed, stratify=False)
        train, test = whole.take(rest), whole.take(held)
    rest, held = split_rows(train.targets, valid_fraction=valid_fraction, seed=seed, stratify=False)
    return Learnable(source=data, train=train.take(rest), valid=train.take(held), test=test, names=names)


def interpolation(function: str, *, num_points: int, seed: int) -> Learnable:
    """Points of a function, drawn evenly at random in [-1, 1] or the square of it, and others between them.

    Raises:
        ValueError: no function of that name, or fewer than 4 points.
    """
    if function not in FUNCTIONS:
        raise ValueError(f"there is no function {function!r} to interpolate; there are {', '.join(FUNCTIONS)}.")
    if num_points < 4:
        raise ValueError(f"`points` must be at least 4; got {num_points}.")
    num_inputs, of = FUNCTIONS[function]
    generator = torch.Generator().manual_seed(seed)
    x = [2 * torch.rand(count, num_inputs, generator=generator, dtype=torch.float64) - 1 for count in (num_points,) * 3]
    train, valid, test = (Rows(inputs=one, targets=of(one)[:, None]) for one in x)
    names = ("x", "y")[:num_inputs]
    return Learnable(source=function, train=train, valid=valid, test=test, names=names)


def _saw(x: Tensor) -> Tensor:
    return (4 * x[:, 0] - (4 * x[:, 0]).round()).abs()


FUNCTIONS: Mapping[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "sine": (1, lambda x: torch.sin(3 * torch.pi * x[:, 0]) * torch.exp(-x[:, 0])),
    "ripple": (2, lambda x: torch.cos(4 * x.norm(dim=1)) + x[:, 0] * x[:, 1]),
    "kink": (1, lambda x: (x[:, 0] - 0.3).abs() + 0.5 * (x[:, 0] + 0.4).clamp(min=0)),
    "saw": (1, _saw),
    "cone": (2, lambda x: x.norm(dim=1) + (x[:, 0] - x[:, 1]).abs()),
}
"""Functions to interpolate, with their numbers of inputs: two smooth ones, and three with kinks."""


def _uci(name: str, split: int) -> tuple[Rows, Rows, tuple[str, ...]]:
    import numpy as np

    root = os.environ.get("FEATHERLIGHT_DATA", "")
    path = Path(root) / "uci-regression" / "uci_regression.npz"
    if not root or not path.is_file():
        raise ValueError(
            f"{name} is read from uci-regression/uci_regression.npz in the folder that FEATHERLIGHT_DATA names; there is none at "
            f"{path}. Set it, or give the path of a table."
        )
    with np.load(path, allow_pickle=False) as archive:
        inputs, targets = (torch.from_numpy(archive[f"{name}_{part}"]).double() for part in ("X", "y"))
        divisions = archive[f"{name}_test_idx"]
    if not 0 <= split < len(divisions):
        raise ValueError(f"`split` must be between 0 and {len(divisions) - 1} for {name}; got {split}.")
    is_test = torch.zeros(len(inputs), dtype=torch.bool)
    is_test[torch.from_numpy(divisions[split].astype("int64"))] = True
    whole = Rows(inputs=inputs, targets=targets.view(len(inputs), -1))
    names = tuple(f"input {number + 1}" for number in range(inputs.shape[1]))
    return whole.take(torch.nonzero(~is_test)[:, 0]), whole.take(torch.nonzero(is_test)[:, 0]), names


def _numbers(data: str, target: str | None) -> tuple[Rows, tuple[str, ...]]:
    if not Path(data).is_file():
        raise ValueError(f"{data!r} is neither a file nor one of {', '.join(UCI)}. Correct the path or the name.")
    table = read_table(data)
    names = list(table.columns)
    chosen = names[-1] if target is None else target
    values = {name: _column(table.column(name), name, data) for name in (*(n for n in names if n != chosen), chosen)}
    if len(values) < 2:
        raise ValueError(f"{data} has the one column {chosen!r}, so there is nothing to foretell it from. Add inputs.")
    *inputs, targets = values.values()
    return Rows(inputs=torch.stack(inputs, 1), targets=targets[:, None]), tuple(values)[:-1]


def _column(cells: list, name: str, source: str) -> Tensor:
    numbers = []
    for row, cell in enumerate(cells, start=1):
        try:
            numbers.append(float("nan") if cell is None else float(cell))
        except (TypeError, ValueError):
            raise ValueError(
                f"the column {name!r} of {source} holds something that is not a number: {cell!r} in row {row}. Fill it in, "
                "drop the row, or leave the column out."
            ) from None
    values = torch.tensor(numbers, dtype=torch.float64)
    if not bool(values.isfinite().all()):
        row = int(torch.nonzero(~values.isfinite())[0]) + 1
        raise ValueError(
            f"the column {name!r} of {source} has no finite number in row {row}. Fill it in, or drop the row."
        )
    return values
