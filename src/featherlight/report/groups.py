"""Runs that differ in their seed alone, taken together, and what the others differ in."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featherlight.report.quantities import in_digits
from featherlight.report.runs import RunRecord
from featherlight.report.words import method_name

_MOST_KEYS_IN_A_NAME = 2


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs of one configuration under one or several seeds, with a name and a colour `slot`."""

    label: str
    slot: int
    runs: tuple[RunRecord, ...]

    @property
    def lead(self) -> RunRecord:
        """The run that stands for the group where one must: the first that has ended."""
        return next((run for run in self.runs if run.outcome), self.runs[0])

    @property
    def several(self) -> bool:
        """Whether there are several runs."""
        return len(self.runs) > 1


def group_runs(runs: Sequence[RunRecord]) -> list[Group]:
    """Take runs together whose configurations are equal but for `seed`.

    Args:
        runs: in the order of the page.

    Returns:
        The groups, in the order of their first runs. Two runs that are equal to the seed stay apart, since someone
        compares them for another reason; so does a run whose configuration is empty or cannot be read.
    """
    taken: Counter[str] = Counter()
    gathered: dict[str, list[RunRecord]] = {}
    for number, run in enumerate(runs):
        key = (
            _key({key: value for key, value in run.config.items() if key != "seed"}) if run.config else f"run {number}"
        )
        twin = f"{key} with seed {run.seed}"
        gathered.setdefault(f"{taken[twin]} {key}", []).append(run)
        taken[twin] += 1
    found = [tuple(group) for group in gathered.values()]
    return [
        Group(label=label, slot=slot, runs=group)
        for slot, (label, group) in enumerate(zip(_labels(found), found, strict=True))
    ]


def differing_keys(groups: Sequence[Group]) -> list[str]:
    """Return the configuration's keys, with dots, in which groups differ; a key that one lacks counts as well."""
    return _differing([group.runs for group in groups])


def setting(run: RunRecord, key: str) -> Any:
    """Return a configuration's value under a key with dots, None where there is none."""
    return _flat(run.config).get(key)


def in_setting(value: object) -> str:
    """Show a value of a configuration."""
    match value:
        case None:
            return "not set"
        case bool():
            return "yes" if value else "no"
        case float():
            return in_digits(value)
        case str() | int():
            return str(value)
        case _:
            return _key(value)


def run_name(group: Group, run: RunRecord) -> str:
    """Name a run within a page: its group, and its seed where the group has several."""
    return f"{group.label}, seed {run.seed}" if group.several else group.label


def _labels(groups: Sequence[tuple[RunRecord, ...]]) -> list[str]:
    """Name each group by the shortest thing that tells them apart: method, title, settings, folder, or several."""
    leads = [group[0] for group in groups]
    methods = [method_name(run.method) if run.method else run.title for run in leads]
    titles = [run.title for run in leads]
    folders = [run.path.name for run in leads]
    if len(groups) == 1:
        return [titles[0] if len(groups[0]) > 1 else methods[0]]
    keys = _differing(groups)
    settings = [
        ", ".join(f"{key.rsplit('.', 1)[-1]} {in_setting(_flat(run.config).get(key))}" for key in keys) for run in leads
    ]
    few = 1 <= len(keys) <= _MOST_KEYS_IN_A_NAME
    for names in (
        methods,
        titles,
        *((settings,) if few else ()),
        folders,
        [f"{m}, {f}" for m, f in zip(methods, folders, strict=True)],
    ):
        if max(Counter(names).values()) == 1:
            return names
    return [f"{number}. {title}" for number, title in enumerate(titles, start=1)]


def _differing(groups: Sequence[tuple[RunRecord, ...]]) -> list[str]:
    configs = [_flat(group[0].config) for group in groups if group[0].config]
    keys = dict.fromkeys(key for config in configs for key in config if key != "seed")
    return [key for key in keys if len({_key(config.get(key)) for config in configs}) > 1]


def _flat(config: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{within}{key}.")
        else:
            found[f"{within}{key}"] = value
    return found


def _key(value: object) -> str:
    """Return a text that two settings share when they are equal."""
    return json.dumps(value, sort_keys=True, default=str)
