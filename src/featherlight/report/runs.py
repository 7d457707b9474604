"""What a run directory holds, read into frozen records and checked at the door."""

import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, NonNegativeFloat, NonNegativeInt, TypeAdapter, ValidationError

CONFIG_FILE = "config.toml"
METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"

Measured = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A measured float; JSON's null, which some writers put for a NaN, reads as NaN."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPoint:
    """One training step.

    `forwards` counts example-forwards and `seconds` the time since training began; `peak_memory` is in bytes.
    """

    step: NonNegativeInt
    loss: Measured
    lr: Measured
    forwards: NonNegativeInt
    seconds: NonNegativeFloat
    tokens_per_second: Measured = math.nan
    peak_memory: NonNegativeInt | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalPoint:
    """One evaluation on a split, placed on the same counts as the steps."""

    step: NonNegativeInt
    split: str
    loss: Measured
    metric: str
    value: Measured
    forwards: NonNegativeInt
    seconds: NonNegativeFloat


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadStart:
    """The head fitted before training: how long it took and where it stood afterwards."""

    seconds: NonNegativeFloat
    loss: Measured
    metric: str
    value: Measured


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """The metric before anything, after the head start (None: there was none), at its best and at the end."""

    name: str
    start: Measured
    best: Measured
    last: Measured
    head_start: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """The loss at the start and at the end."""

    start: Measured
    last: Measured


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of memory; `measured_by` says in words what took the peaks."""

    weights: NonNegativeInt
    inference_peak: NonNegativeInt
    training_peak: NonNegativeInt
    measured_by: str
    adamw_estimate: NonNegativeInt | None = None
    process_peak: NonNegativeInt | None = None

    @property
    def above_inference(self) -> int:
        """Bytes the training peak stands above the inference peak; negative where training took less."""
        return self.training_peak - self.inference_peak


@dataclass(frozen=True, kw_only=True, slots=True)
class Counters:
    """What the run did, as counted by the code that did it."""

    example_forwards: NonNegativeInt
    backward_passes: NonNegativeInt
    weight_passes: NonNegativeInt
    random_words: NonNegativeInt
    bytes_written: NonNegativeInt
    steps: NonNegativeInt
    seconds: NonNegativeFloat


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """`counts[i][j]` examples of label i were given label j."""

    labels: tuple[str, ...]
    counts: tuple[tuple[NonNegativeInt, ...], ...]

    def __post_init__(self) -> None:
        """Raise a ValueError unless there is one row and one column for each label."""
        num_labels = len(self.labels)
        widths = [len(row) for row in self.counts]
        if widths != [num_labels] * num_labels:
            raise ValueError(
                f"`counts` has rows of lengths {widths[:8]} for {num_labels} labels, so no cell has a sure meaning; "
                "write one row and one column for each label"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """What a run says of itself when it ends; `stopped` is why it ended."""

    method: str
    title: str
    command: str
    model: str
    train: str
    metric: Metric
    loss: Loss
    memory: Memory
    counters: Counters
    stopped: str
    resume_command: str | None = None
    confusion: Confusion | None = None
    journal_bytes: NonNegativeInt | None = None
    versions: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """A run directory as read.

    `steps` and `evals` rise in step: where a resumed run went back, the later attempt stands. `summary` is None while
    a run is unfinished. `torn` says that the last line of the metrics was incomplete and is left out.
    """

    path: Path
    config: Mapping[str, Any]
    config_text: str
    steps: tuple[StepPoint, ...]
    evals: tuple[EvalPoint, ...]
    head_start: HeadStart | None
    summary: RunSummary | None
    torn: bool


_ADAPTERS: Mapping[str, TypeAdapter[StepPoint | EvalPoint | HeadStart]] = {
    "step": TypeAdapter(StepPoint),
    "eval": TypeAdapter(EvalPoint),
    "head_start": TypeAdapter(HeadStart),
}
_SUMMARY: TypeAdapter[RunSummary] = TypeAdapter(RunSummary)


def read_run(path: str | Path) -> RunRecord:
    """Read a run directory.

    Args:
        path: a directory with `config.toml`, `metrics.jsonl` and, once the run has ended, `summary.json`.

    Returns:
        The run. An incomplete last line of the metrics (a killed process leaves one) is left out and marked by `torn`.

    Raises:
        ValueError: the path is not a run directory, or a file in it is damaged; says which, and the line.
    """
    directory = Path(path)
    _check_is_run(directory)
    config_text, config = _read_config(directory / CONFIG_FILE)
    metrics = _Metrics.read(directory / METRICS_FILE)
    return RunRecord(
        path=directory,
        config=config,
        config_text=config_text,
        steps=tuple(metrics.steps.values()),
        evals=tuple(sorted(metrics.evals.values(), key=lambda point: point.step)),
        head_start=metrics.head_start,
        summary=_read_summary(directory / SUMMARY_FILE),
        torn=metrics.torn,
    )


def _check_is_run(directory: Path) -> None:
    if not directory.is_dir():
        found = "a file" if directory.exists() else "nothing"
        raise ValueError(
            f"{directory}: there is {found} here, and a report is made from a run's directory; "
            "give the folder that the run was told to write to"
        )
    missing = [name for name in (CONFIG_FILE, METRICS_FILE) if not (directory / name).is_file()]
    if missing:
        raise ValueError(
            f"{directory}: this is not a run directory, because {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing and the report is drawn from "
            f"{'it' if len(missing) == 1 else 'them'}; give the folder that the run was told to write to"
        )


def _read_config(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(
            f"{path}: this is not valid TOML ({error}), so the report cannot say what was run; "
            "restore the file as the run wrote it"
        ) from error


def _read_summary(path: Path) -> RunSummary | None:
    if not path.is_file():
        return None
    try:
        return _SUMMARY.validate_python(json.loads(path.read_bytes()))
    except ValidationError as error:
        raise ValueError(_sentence(path, error)) from error
    except ValueError as error:
        raise ValueError(
            f"{path}: this is not valid JSON ({error}), so the run's outcome cannot be read; "
            "delete the file to report the run as unfinished, or resume the run to have it written again"
        ) from error


@dataclass(kw_only=True)
class _Metrics:
    """The points of a metrics file, keyed so that a repeated step replaces the earlier one."""

    steps: dict[int, StepPoint] = field(default_factory=dict)
    evals: dict[tuple[str, int], EvalPoint] = field(default_factory=dict)
    head_start: HeadStart | None = None
    torn: bool = False
    last_step: int = -1

    @classmethod
    def read(cls, path: Path) -> "_Metrics":
        """Read `path` line by line, dropping an incomplete last line."""
        metrics = cls()
        pending: ValueError | None = None
        for number, line in _lines(path):
            if pending is not None:
                raise pending
            where = f"{path}:{number}"
            try:
                values = json.loads(line)
            except ValueError as error:
                pending = ValueError(
                    f"{where}: this line is not valid JSON ({error}), and only the last line of a run may be "
                    "incomplete; the file was changed or damaged, so restore it or delete the line"
                )
                continue
            metrics.add(_point(where, values))
        metrics.torn = pending is not None
        return metrics

    def add(self, point: StepPoint | EvalPoint | HeadStart) -> None:
        """Take a point in; a step at or before the last one means that the run was resumed from there."""
        match point:
            case HeadStart():
                self.head_start = point
            case EvalPoint():
                self.evals.pop((point.split, point.step), None)
                self.evals[point.split, point.step] = point
            case StepPoint():
                if point.step <= self.last_step:
                    self.steps = {step: old for step, old in self.steps.items() if step < point.step}
                    self.evals = {key: old for key, old in self.evals.items() if old.step <= point.step}
                self.steps[point.step] = point
                self.last_step = point.step


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the number and bytes of each line that is not blank."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def _point(where: str, values: object) -> StepPoint | EvalPoint | HeadStart:
    kind = values.get("kind") if isinstance(values, dict) else None
    adapter = _ADAPTERS.get(kind) if isinstance(kind, str) else None
    if adapter is None:
        raise ValueError(
            f"{where}: `kind` is {kind!r}, which this version cannot draw; "
            f"it must be one of {', '.join(_ADAPTERS)}, so read the run with the version that wrote it"
        )
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        raise ValueError(_sentence(where, error)) from error


def _sentence(where: str | Path, error: ValidationError) -> str:
    """Put the first of pydantic's complaints into one sentence."""
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"]) or "the whole"
    if first["type"] == "missing":
        problem = f"`{name}` is missing"
    else:
        value = repr(first["input"])
        message = first["msg"].removeprefix("Value error, ")
        problem = f"`{name}` is {value if len(value) <= 60 else value[:57] + '...'} ({message})"
    return (
        f"{where}: {problem}, and the report will not guess a figure; "
        "restore the file as the run wrote it, or read it with the version that wrote it"
    )
