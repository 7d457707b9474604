"""The space of a search: what `--space` says, checked against the config it changes."""

import json
import math
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featherlight.recipes.config import RunConfig, changed, parse_set, value_type

if TYPE_CHECKING:
    from optuna import Trial

_RANGE = re.compile(r"\s*((?:(?:log|int):)*)([^:]+):([^:]+)")
_SHAPE = "key=low:high, key=log:low:high, key=int:low:high or key=value,value"


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers of a key from `low` to `high`, both of them included.

    Attributes:
        key: dotted.
        low: smallest.
        high: largest.
        log: whether equal factors, not equal distances, are equally likely.
        whole: whether only whole numbers are tried.
    """

    key: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def suggest(self, trial: "Trial") -> int | float:
        """The value of a trial."""
        if self.whole:
            return trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)

    def stored(self, value: Any) -> int | float | None:
        """The value as Optuna keeps it; None if it lies outside."""
        inside = isinstance(value, (int, float)) and not isinstance(value, bool) and self.low <= value <= self.high
        return value if inside else None

    @property
    def tested(self) -> Sequence[Any]:
        """The values a config is tried with before anything runs."""
        return [int(end) if self.whole else end for end in (self.low, self.high)]

    @property
    def num_values(self) -> float:
        """How many there are; may be infinite."""
        return self.high - self.low + 1 if self.whole else math.inf

    @property
    def text(self) -> str:
        """For people."""
        number = "whole numbers " if self.whole else ""
        return f"{number}{self.low:g} to {self.high:g}{', by factors' if self.log else ''}"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of several values of a key.

    Attributes:
        key: dotted.
        values: as in a config.
    """

    key: str
    values: Sequence[Any]

    def suggest(self, trial: "Trial") -> Any:
        """The value of a trial."""
        return self.values[self._labels.index(trial.suggest_categorical(self.key, self._labels))]

    def stored(self, value: Any) -> str | None:
        """The value as Optuna keeps it; None if it is none of these."""
        label = _label(value)
        return label if label in self._labels else None

    @property
    def tested(self) -> Sequence[Any]:
        """The values a config is tried with before anything runs."""
        return self.values

    @property
    def num_values(self) -> float:
        """How many there are."""
        return len(self.values)

    @property
    def text(self) -> str:
        """For people."""
        return ", ".join(self._labels)

    @property
    def _labels(self) -> list[str]:
        return [_label(value) for value in self.values]


Parameter = Range | Choice
"""A key that is searched over."""


def parse_space(texts: Sequence[str], config: RunConfig) -> tuple[Parameter, ...]:
    """The parameters of several `--space`.

    Args:
        texts: each "key=low:high" (with "log:" or "int:" before the numbers) or "key=value,value".
        config: must know the keys and take the ends of the ranges and the values.

    Raises:
        ValueError: an unknown key (with the nearest known one), a range that is none, or a value the config refuses.
    """
    if not texts:
        raise ValueError(f"a search needs at least one `--space` to search in, such as {_SHAPE}.")
    space = tuple(_parameter(text, config) for text in texts)
    keys = [one.key for one in space]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f"--space: `{twice}` is given twice. Put all its values into one `--space`.")
    return space


def num_points(space: Sequence[Parameter]) -> float:
    """How many different configs there are; may be infinite."""
    return math.prod(one.num_values for one in space)


def _parameter(text: str, config: RunConfig) -> Parameter:
    key, equals, written = (part.strip() for part in text.partition("="))
    if not equals or not key or not written:
        raise ValueError(f"`--space` takes {_SHAPE}; got {text!r}.")
    if key == "seed":
        raise ValueError(
            "--space: `seed` is not searched over: the best of many seeds is luck and does not come again. Search with one "
            "seed, then run the best config with `featherlight run CONFIG --seeds N`."
        )
    found = _RANGE.fullmatch(written)
    numbers = None if found is None else [_number(end) for end in found.group(2, 3)]
    if written.startswith(("log:", "int:")) or (numbers is not None and None not in numbers):
        if found is None or numbers is None or numbers[0] is None or numbers[1] is None:
            raise ValueError(f"--space: `{key}` has a range that is none: {written!r}. It takes {_SHAPE}.")
        return _range(key, written, found.group(1), (numbers[0], numbers[1]), config)
    return _choice(text, config)


def _range(key: str, written: str, kinds: str, ends: tuple[float, float], config: RunConfig) -> Range:
    low, high = ends
    log, whole = "log:" in kinds, "int:" in kinds
    if not low < high or math.isinf(low) or math.isinf(high):
        raise ValueError(f"--space: `{key}` needs a finite low end that is below its high end; got {written!r}.")
    if log and low <= 0:
        raise ValueError(f"--space: `{key}` is searched by factors (log), so its low end must be above 0; got {low:g}.")
    if whole and not (low.is_integer() and high.is_integer()):
        raise ValueError(f"--space: `{key}` is searched in whole numbers (int), so its ends must be; got {written!r}.")
    changed(config, {key: int(low) if low.is_integer() else low}, source="--space")
    options = _options(value_type(type(config), key))
    if not {int, float, Any} & set(options):
        raise ValueError(f"--space: `{key}` takes no numbers. Name its values, as in --space {key}=one,other.")
    whole = whole or not {float, Any} & set(options)
    return _tested(Range(key=key, low=low, high=high, log=log, whole=whole), config)


def _choice(text: str, config: RunConfig) -> Choice:
    key, values = parse_set(text)
    labels = [_label(value) for value in values]
    if len(values) < 2:
        raise ValueError(
            f"--space: `{key}` has one value only ({labels[0]}), so there is nothing to search. It takes {_SHAPE}; one value "
            "is set with `--set`."
        )
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ValueError(f"--space: `{key}` names {twice} twice.")
    return _tested(Choice(key=key, values=tuple(values)), config)


Kind = typing.TypeVar("Kind", Range, Choice)


def _tested(parameter: Kind, config: RunConfig) -> Kind:
    for value in parameter.tested:
        changed(config, {parameter.key: value}, source="--space")
    return parameter


def _options(annotation: Any) -> tuple[Any, ...]:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _label(value: Any) -> str:
    """A value as people write it."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, default=str)
