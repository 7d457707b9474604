"""What a run directory holds, read for what is intact; each damage becomes a sentence that names the file and line."""

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from featherlight.report.runs import CURRENT_VERSION, EvalPoint, EventPoint, RunRecord, RunSummary, StepPoint
from featherlight.report.section_files import SECTIONS_FILE, salvage_sections
from featherlight.report.sections import Section

CONFIG_FILE = "config.toml"
METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
LOCK_FILE = ".lock"

_MOST_LINES_NAMED = 5
_LEFT_OUT = "It is left out; the rest of the file is shown."

_ADAPTERS: Mapping[str, TypeAdapter[StepPoint | EvalPoint | EventPoint]] = {
    "step": TypeAdapter(StepPoint),
    "eval": TypeAdapter(EvalPoint),
    "event": TypeAdapter(EventPoint),
}
_SUMMARY_PARTS: Mapping[str, TypeAdapter[Any]] = {
    name: TypeAdapter(hint) for name, hint in get_type_hints(RunSummary, include_extras=True).items()
}
_NEEDED = ("version", "title", "command", "counters", "stopped")


def read_runs(path: str | Path) -> list[RunRecord]:
    """Read a run directory, or all run directories in a directory of several, such as that of a sweep, by name.

    Raises:
        ValueError: there is no run.
    """
    directory = Path(path)
    if (directory / CONFIG_FILE).is_file() or not directory.is_dir():
        return [read_run(directory)]
    inside = sorted(one for one in directory.iterdir() if (one / CONFIG_FILE).is_file())
    return [read_run(one) for one in inside] if inside else [read_run(directory)]


def read_run(path: str | Path) -> RunRecord:
    """Read a run directory, whether the run has ended, is unfinished, is still going on, or is damaged.

    Args:
        path: a directory with `config.toml`, `metrics.jsonl`, once the run has ended `summary.json`, and perhaps
            `sections.json`.

    Returns:
        The run. An incomplete last line of the metrics (a killed process leaves one) is left out and marked by `torn`.
        Whatever else cannot be used is left out and named in `damage`; nothing is guessed.

    Raises:
        ValueError: the path is not a run directory, for it has neither configuration nor metrics.
    """
    directory = Path(path)
    _check_is_run(directory)
    damage: list[str] = []
    going_on = _is_locked(directory / LOCK_FILE)
    config_text, config = _read_config(directory / CONFIG_FILE, damage, expected=not going_on)
    summary = _read_summary(directory / SUMMARY_FILE, damage)
    expected = not going_on and (summary is None or summary.counters is None or summary.counters.steps > 0)
    metrics = _read_metrics(directory / METRICS_FILE, damage, expected=expected)
    return RunRecord(
        path=directory,
        config=config,
        config_text=config_text,
        steps=tuple(metrics.steps.values()),
        evals=tuple(sorted(metrics.evals.values(), key=lambda point: point.step)),
        events=tuple(sorted(metrics.events.values(), key=lambda point: point.step)),
        summary=summary,
        sections=_read_sections(directory / SECTIONS_FILE, damage),
        summary_lost=summary is None and (directory / SUMMARY_FILE).exists(),
        torn=metrics.torn,
        going_on=going_on,
        damage=tuple(damage),
    )


def _check_is_run(directory: Path) -> None:
    advice = "give the folder that the run was told to write to"
    if not directory.is_dir():
        found = "a file" if directory.exists() else "nothing"
        raise ValueError(f"{directory}: there is {found} here, and a report is made from a run's directory; {advice}")
    if not any((directory / name).is_file() for name in (CONFIG_FILE, METRICS_FILE)):
        raise ValueError(
            f"{directory}: this is not a run directory, because {CONFIG_FILE} and {METRICS_FILE} are both missing and "
            f"every run writes them; {advice}"
        )


def _is_locked(path: Path) -> bool:
    """Tell whether another open file holds the run's lock; where locks are unknown, none is held."""
    try:
        import fcntl

        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False


def _read_bytes(path: Path, damage: list[str]) -> bytes | None:
    """Return a file's bytes, or None where there is no such file or the system refuses it, which is a damage."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        damage.append(f"{path}: this file cannot be read ({error.strerror or error}).")
        return None


def _read_config(path: Path, damage: list[str], *, expected: bool) -> tuple[str, dict[str, Any]]:
    told = len(damage)
    data = _read_bytes(path, damage)
    if data is None:
        if expected and len(damage) == told:
            damage.append(f"{path}: this file is missing, so the page cannot say what was run.")
        return "", {}
    text = data.decode("utf-8", errors="replace")
    try:
        return text, tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        damage.append(f"{path}: this is not valid TOML ({error}); it is shown as it stands, and not understood.")
        return text, {}


def _read_summary(path: Path, damage: list[str]) -> RunSummary | None:
    data = _read_bytes(path, damage)
    if data is None:
        return None
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        damage.append(
            f"{path}: this is not valid JSON ({error}), so the run's outcome cannot be read; "
            "resuming the run writes the file again."
        )
        return None
    if not isinstance(found, dict):
        damage.append(f"{path}: this holds {_short(found)} and not an object, so the run's outcome cannot be read.")
        return None
    version = found.get("version")
    if isinstance(version, int) and version > CURRENT_VERSION:
        damage.append(
            f"{path}: its version is {version} and this featherlight reads {CURRENT_VERSION}, so what follows may lack "
            "or mistake something; make the report with the version that wrote the run."
        )
    return _summary(path, found, damage)


def _summary(path: Path, found: Mapping[str, Any], damage: list[str]) -> RunSummary:
    """Take each part of a summary that holds, and leave the others at their defaults."""
    parts = {}
    for part in fields(RunSummary):
        if part.name not in found:
            if part.name in _NEEDED:
                damage.append(f"{path}: `{part.name}` is missing, and the report will not guess it.")
            continue
        try:
            parts[part.name] = _SUMMARY_PARTS[part.name].validate_python(found[part.name])
        except ValidationError as error:
            damage.append(f"{path}: {_problem(error, part.name)}. `{part.name}` is left out; the rest is shown.")
    return RunSummary(**parts)


def _read_sections(path: Path, damage: list[str]) -> tuple[Section, ...]:
    data = _read_bytes(path, damage)
    if data is None:
        return ()
    sections, found = salvage_sections(path, data)
    damage.extend(found)
    return sections


@dataclass(kw_only=True)
class _Metrics:
    """The points of a metrics file, keyed so that a repeated step replaces the earlier one."""

    steps: dict[int, StepPoint] = field(default_factory=dict)
    evals: dict[tuple[str, int], EvalPoint] = field(default_factory=dict)
    events: dict[tuple[str, int], EventPoint] = field(default_factory=dict)
    torn: bool = False
    last_step: int = -1

    def add(self, point: StepPoint | EvalPoint | EventPoint) -> None:
        """Take a point in; a step at or before the last one means that the run was resumed from there."""
        match point:
            case EventPoint():
                self.events.pop((point.name, point.step), None)
                self.events[point.name, point.step] = point
            case EvalPoint():
                self.evals.pop((point.split, point.step), None)
                self.evals[point.split, point.step] = point
            case StepPoint():
                if point.step <= self.last_step:
                    self.steps = {step: old for step, old in self.steps.items() if step < point.step}
                    self.evals = {key: old for key, old in self.evals.items() if old.step <= point.step}
                    self.events = {key: old for key, old in self.events.items() if old.step <= point.step}
                self.steps[point.step] = point
                self.last_step = point.step


def _read_metrics(path: Path, damage: list[str], *, expected: bool) -> _Metrics:
    """Read the metrics line by line; a last line that is no JSON is torn, any other is a damage."""
    metrics = _Metrics()
    told = len(damage)
    data = _read_bytes(path, damage)
    if data is None:
        if expected and len(damage) == told:
            damage.append(f"{path}: this file is missing, so there are no curves.")
        return metrics
    broken: list[str] = []
    pending = ""
    for number, line in _lines(data):
        if pending:
            broken.append(pending)
        pending = ""
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            pending = f"{path}:{number}: this line is not valid JSON ({error}). {_LEFT_OUT}"
            continue
        try:
            metrics.add(_point(values))
        except ValueError as error:
            broken.append(f"{path}:{number}: {error}. {_LEFT_OUT}")
    metrics.torn = bool(pending)
    damage.extend(broken[:_MOST_LINES_NAMED])
    if len(broken) > _MOST_LINES_NAMED:
        damage.append(f"{path}: {len(broken) - _MOST_LINES_NAMED:,} further lines cannot be used and are left out.")
    return metrics


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number and bytes of each line that is not blank."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            yield number, line


def _point(values: object) -> StepPoint | EvalPoint | EventPoint:
    kind = values.get("kind") if isinstance(values, dict) else None
    adapter = _ADAPTERS.get(kind) if isinstance(kind, str) else None
    if adapter is None:
        raise ValueError(f"`kind` is {_short(kind)}, and this version draws {', '.join(_ADAPTERS)}")
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        raise ValueError(_problem(error)) from error


def _problem(error: ValidationError, *within: str) -> str:
    """Put the first of pydantic's complaints into words."""
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in (*within, *first["loc"])) or "the whole"
    if first["type"] == "missing":
        return f"`{name}` is missing"
    return f"`{name}` is {_short(first['input'])} ({first['msg'].removeprefix('Value error, ')})"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
