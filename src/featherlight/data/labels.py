"""Labels of any type and what a model computes with: class ids, or numbers for a regression.

A class has a name, the text of its label: 0, 0.0, "0" and "0.0" are all the class "0", so that one set of labels reads
the same from Parquet, JSON and CSV. Rows are counted from 1 in every message.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featherlight.data._suggest import did_you_mean, listing

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_INTEGRAL_FLOAT = re.compile(r"-?\d+\.0+")
_MOST_CLASSES_UNASKED = 50
_OUTPUT_NAME = "value"
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The classes of a task in the order of their ids, or the fact that it is a regression.

    Args:
        names: name of each class; the single name of the output for a regression.
        is_regression: targets are numbers and there is one output.

    Raises:
        ValueError: fewer than two classes, a repeated name, or a regression with other than one name.
    """

    names: tuple[str, ...]
    is_regression: bool = False

    def __post_init__(self) -> None:
        if self.is_regression and len(self.names) != 1:
            raise ValueError(f"a regression has one output and so one name; got {listing(self.names)}. Name one.")
        if not self.is_regression and (len(self.names) < 2 or len(set(self.names)) != len(self.names)):
            raise ValueError(
                "a classification needs at least two classes of different names, or there is nothing to tell apart; "
                f"got {listing(self.names)}."
            )

    @classmethod
    def fit(cls, values: Iterable[Any], *, regression: bool | None = None, source: str = "the label column") -> Labels:
        """Find the classes in a column of labels, or that it is a regression.

        Where `regression` is None: a column in which every label is a number (or text that spells one, as in a CSV) and
        at least one is not whole is a regression; anything else is classes, whole numbers included. A column with more
        than 50 distinct values and fewer than two rows to each is refused, as neither can be told. Classes are ordered
        by number where all their names are numbers, else by text.

        Args:
            values: one label a row: text, int, float or bool.
            regression: True or False to decide it; None to tell by the rule above.
            source: what errors call the column.

        Returns:
            The labels.

        Raises:
            ValueError: no rows, missing labels (None, nan, blank), a label of another type, one class only, a
                regression target that is not a finite number, or a column of which the kind cannot be told.
        """
        rows = _present(values, source)
        if regression or (regression is None and _looks_continuous(rows)):
            _targets(rows, source)
            return cls(names=(_OUTPUT_NAME,), is_regression=True)
        names = _sorted_names({_name(value) for value in rows})
        if len(names) == 1:
            raise ValueError(
                f"{source} holds one class only, {names[0]!r} in all {len(rows):,} rows, so there is nothing to tell "
                "apart. Check the column, or that the rows were not sorted by class and then cut."
            )
        if regression is None and len(names) > max(_MOST_CLASSES_UNASKED, len(rows) // 2):
            raise ValueError(
                f"{source} has {len(names):,} distinct values in {len(rows):,} rows, which is unlike classes and "
                "might be an index, a text or a regression target. Name another column with `--label`, or say "
                "`--task regression` or `--task classification`."
            )
        return cls(names=names)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Labels:
        """Read the labels back from a Hugging Face model configuration.

        Args:
            config: the configuration as a dict, of which `id2label` (ids as int, or as text after JSON), `num_labels`
                and `problem_type` are read. Placeholder names `LABEL_0`, `LABEL_1`, ... become "0", "1", ..., and stand
                in where there is only `num_labels`.

        Returns:
            The labels; a regression where there is one output or `problem_type` says so.

        Raises:
            ValueError: neither key is there, or the ids are not 0, 1, 2, ...
        """
        if "id2label" not in config and "num_labels" not in config:
            raise ValueError(
                f"the configuration has neither `id2label` nor `num_labels`, so its classes are unknown; its keys are "
                f"{listing(config)}. Take the config.json of a model for sequence classification."
            )
        id2label = config.get("id2label") or {i: f"LABEL_{i}" for i in range(config["num_labels"])}
        by_id = {str(number): str(name) for number, name in id2label.items()}
        if set(by_id) != {str(i) for i in range(len(by_id))}:
            raise ValueError(
                f"`id2label` must number its classes 0 to {len(by_id) - 1}, one output of the model each; got ids "
                f"{listing(by_id)}. Mend the config.json."
            )
        names = tuple(str(i) if by_id[str(i)] == f"LABEL_{i}" else by_id[str(i)] for i in range(len(by_id)))
        if len(names) == 1 or config.get("problem_type") == "regression":
            return cls(names=(_OUTPUT_NAME,) if names == ("0",) else names, is_regression=True)
        return cls(names=names)

    @property
    def num_outputs(self) -> int:
        """Number of outputs the model needs: the classes, or 1."""
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        """Class name by id, as a Hugging Face configuration wants it."""
        return dict(enumerate(self.names))

    @cached_property
    def label2id(self) -> dict[str, int]:
        """Class id by name, as a Hugging Face configuration wants it."""
        return {name: i for i, name in enumerate(self.names)}

    def encode(self, values: Iterable[Any], *, source: str = "the label column") -> Tensor:
        """Turn labels into targets.

        Args:
            values: one label a row, of any type whose text is the name of a class: 0 and "0" alike.
            source: what errors call the column.

        Returns:
            Class ids, int64, (N,); or numbers, float32, (N,), for a regression.

        Raises:
            ValueError: missing labels, labels that are no class (the message names them), or a regression target that
                is not a finite number of float32's range.
        """
        rows = _present(values, source)
        if self.is_regression:
            return torch.tensor(_targets(rows, source), dtype=torch.float32)
        names = [_name(value) for value in rows]
        unseen = {name: row for row, name in reversed(list(enumerate(names, 1))) if name not in self.label2id}
        if unseen:
            name, row = min(unseen.items(), key=lambda item: item[1])
            raise ValueError(
                f"{source} has labels that are none of the {len(self.names)} classes ({listing(self.names)}), so they "
                f"have no id: {listing(sorted(unseen))}, first in row {row:,}.{did_you_mean(name, self.names)} "
                "Correct them, or leave these rows out."
            )
        return torch.tensor([self.label2id[name] for name in names], dtype=torch.int64)


def _present(values: Iterable[Any], source: str) -> list[Any]:
    """Return the labels as plain Python values, or raise a ValueError where one is missing or of no known type."""
    rows = [value.item() if isinstance(value, np.generic) else value for value in values]
    if not rows:
        raise ValueError(f"{source} has no rows, so there is nothing to learn from. Check the file.")
    missing = [row for row, value in enumerate(rows, 1) if _is_missing(value)]
    if missing:
        raise ValueError(
            f"{source} lacks a label (None, nan or blank) in {len(missing):,} of {len(rows):,} rows, first in row "
            f"{missing[0]:,}; a row without a label cannot be learned from. Fill them in or leave these rows out."
        )
    for row, value in enumerate(rows, 1):
        if not isinstance(value, str | int | float):
            raise ValueError(
                f"{source} has a label of type {type(value).__name__} in row {row:,}; a label must be text, a number "
                "or a bool, so that it can name a class. Take another column, or one value of this one."
            )
    return rows


def _looks_continuous(rows: Sequence[str | float]) -> bool:
    """Tell whether every label is a number and at least one is not whole."""
    numbers = [number for value in rows if (number := _number(value)) is not None]
    return len(numbers) == len(rows) and not all(number.is_integer() for number in numbers)


def _is_missing(value: Any) -> bool:
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def _number(value: str | float) -> float | None:
    """Return the number a label is or spells, or None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _name(value: str | float) -> str:
    """Return the name of the class of a label: its text, whole floats as integers."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, str) and _INTEGRAL_FLOAT.fullmatch(value):
        return value.partition(".")[0]
    return str(value)


def _sorted_names(names: set[str]) -> tuple[str, ...]:
    if all(_NUMBER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    return tuple(sorted(names))


def _targets(rows: Sequence[str | float], source: str) -> list[float]:
    """Return the numbers of a regression, or raise a ValueError at the first that is not finite in float32."""
    numbers = [_number(value) for value in rows]
    for row, (value, number) in enumerate(zip(rows, numbers, strict=True), 1):
        if number is None or not abs(number) <= _LARGEST_FLOAT32:
            raise ValueError(
                f"{source} has {value!r} in row {row:,}, where a regression needs a finite number of float32's range, "
                "or the loss would be undefined. Correct the row, or say `--task classification` if these are classes."
            )
    return [number for number in numbers if number is not None]
