"""Two runs side by side: in what they were asked for, and from which step on they went apart."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from featherlight.optim.zeroth_order import StepRecord
from featherlight.trainer.journal import JournalContents, read_journal
from featherlight.trainer.run_directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing in which two runs are not the same.

    Attributes:
        what: a key of the config, a digest, or a place in the journal.
        first: its value in the first run; None where it has none.
        second: its value in the second run.
    """

    what: str
    first: Any
    second: Any


def difference(first: Path, second: Path) -> Sequence[Difference]:
    """What differs between two runs: config, digests of base and data, and the first step that is not the same.

    Raises:
        ValueError: a path is not a run directory, or its journal cannot be read.
    """
    runs = [RunDirectory(path=path) for path in (first, second)]
    configs = [_config(run) for run in runs]
    found = [Difference(what=f"config {key}", first=a, second=b) for key, a, b in _unequal(*configs)]
    journals = [read_journal(run.journal) if run.journal.is_file() else None for run in runs]
    if journals[0] is None or journals[1] is None:
        if journals[0] is not journals[1]:
            found.append(Difference(what="journal", **_sides("none" if one is None else "kept" for one in journals)))
        return found
    return [*found, *_of_journals(journals[0], journals[1])]


def _config(run: RunDirectory) -> Mapping[str, Any]:
    try:
        return dict(_flat(tomllib.loads(run.config.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        raise ValueError(f"{run.path} is not a run directory: it has no config.toml.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{run.config} is not valid TOML: {error}.") from None


def _of_journals(first: JournalContents, second: JournalContents) -> Sequence[Difference]:
    names = ("base", "data")
    headers = [{f"digest of the {name}": one.header.get(name) for name in names} for one in (first, second)]
    found = [Difference(what=name, first=a, second=b) for name, a, b in _unequal(*headers)]
    if first.fitted.keys() != second.fitted.keys() or any(
        tensor.dtype != second.fitted[name].dtype or not torch.equal(tensor, second.fitted[name])
        for name, tensor in first.fitted.items()
    ):
        found.append(Difference(what="weights before the first step", **_sides(("differ", "differ"))))
    return [*found, *_of_steps(first.records, second.records)]


def _of_steps(first: Sequence[StepRecord], second: Sequence[StepRecord]) -> Sequence[Difference]:
    for one, other in zip(first, second, strict=False):
        values = [_plain(record) for record in (one, other)]
        if values[0] != values[1]:
            return [
                Difference(what=f"step {one.step + 1}: {name}", first=a, second=b) for name, a, b in _unequal(*values)
            ]
    if len(first) != len(second):
        return [Difference(what="steps", first=len(first), second=len(second))]
    return []


def _plain(record: StepRecord) -> Mapping[str, Any]:
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return values | {"coefficients": record.coefficients.tolist()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, Any]]:
    found = []
    for name, value in values.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)]
    return found


def _unequal(first: Mapping[str, Any], second: Mapping[str, Any]) -> Sequence[tuple[str, Any, Any]]:
    names = dict.fromkeys((*first, *second))
    return [(n, first.get(n), second.get(n)) for n in names if first.get(n) != second.get(n)]


def _sides(values: Any) -> dict[str, Any]:
    return dict(zip(("first", "second"), values, strict=True))
