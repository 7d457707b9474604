"""`featherlight plan` as a function: from what was typed to a table."""

import json
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from featherlight.data import Labels, load_text
from featherlight.planner.memory import CATEGORIES
from featherlight.planner.process import resident_bytes
from featherlight.planner.sizes import parse_size
from featherlight.recipes.plan.checkpointed import checkpointed
from featherlight.recipes.plan.choice import (
    MOST_ROWS,
    Row,
    in_gib,
    largest_batch,
    machine_rate,
    predict,
    recommend,
    require_weights_fit,
)
from featherlight.recipes.plan.subject import Subject, from_function, from_recipe, is_recipe, silent_workspace
from featherlight.recipes.plan.text import text_subject
from featherlight.recipes.plan.ways import FULL, NOTES, Way, eight_bits, ways
from featherlight.trainer import tracker

_DEFAULT_ROWS = 16
_NOT_LOADED = "activation checkpointing is planned for models in memory, those of recipes and of module:function"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was typed.

    Attributes:
        model: directory, hub id, "minilm", a recipe, or module:function.
        data: file of training rows, whose classes are planned for; None takes two.
        batch: rows; None is 16, or a recipe's own.
        length: tokens of the longest row; None as `text_subject` says.
        task: "lm" for a language model, else "auto".
        memory: as `parse_size` reads it; None is no limit.
        device: "cpu" or "auto".
    """

    model: str
    data: str | None = None
    batch: int | None = None
    length: int | None = None
    task: str = "auto"
    memory: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, value in (("batch", self.batch), ("length", self.length)):
            if value is not None and value < 1:
                raise ValueError(f"`--{name}` must be at least 1; got {value}.")
        if self.device not in ("auto", "cpu"):
            raise ValueError(
                f"`--device` {self.device}: the workspace of that device's kernels is not known here, so a plan is for the CPU. "
                "Most tensors take the same there; leave `--device` out."
            )
        if self.task not in ("auto", "classification", "regression", "lm"):
            raise ValueError(f"`--task` must be auto, classification, regression or lm; got {self.task!r}.")


def plan(asked: Asked, *, as_json: bool, console: Console) -> None:
    """Prints the table, or JSON.

    Raises:
        ValueError: with a sentence, for anything that is wrong with what was asked.
    """
    memory = None if asked.memory is None else parse_size(asked.memory)
    with tempfile.TemporaryDirectory() as scratch:
        subject = subject_of(asked, Path(scratch))
        rows, notes = predicted(subject, memory, console)
    best, reason = recommend(rows)
    most = None
    if memory is not None and best is not None:
        most = largest_batch(subject, best.way, memory, best.process.baseline)
    if as_json:
        typer.echo(json.dumps(_as_json(subject, rows, best, reason, memory, most)))
        return
    Console().print(_table(subject, rows, best, memory), highlight=False)
    _say(subject, best, reason, most, asked, notes, console)


def subject_of(asked: Asked, scratch: Path) -> Subject:
    """What `--model` names."""
    if is_recipe(asked.model):
        return from_recipe(asked.model, asked.batch, silent_workspace(scratch))
    if ":" in asked.model and not Path(asked.model).exists():
        return from_function(asked.model, asked.batch)
    outputs, length = None if asked.task == "lm" else 2, asked.length
    if asked.data is not None and asked.task != "lm":
        outputs = _num_outputs(asked)
    return text_subject(asked.model, rows=asked.batch or _DEFAULT_ROWS, length=length, num_outputs=outputs)


def predicted(subject: Subject, memory: int | None, console: Console) -> tuple[list[Row], list[str]]:
    """All ways, predicted, with a bar; and what to say of ways that are left out."""
    rate = machine_rate()
    whole = subject.case(FULL, 1)
    baseline = resident_bytes()
    if memory is not None:
        require_weights_fit(whole.model, 0 if whole.loaded else baseline, memory)
    chosen = ways(subject.rows, is_text=subject.is_text)
    track = tracker(console)
    rows = [
        predict(subject, way, subject.rows, memory=memory, rate=rate, baseline=baseline)
        for way in track(chosen, "predicting", len(chosen))
    ]
    if not whole.loaded:
        return rows, [_NOT_LOADED]
    try:
        rows.insert(1, checkpointed(subject, rows[0], memory))
    except ValueError as error:
        return rows, [f"activation checkpointing is left out: {error}"]
    return rows, []


def _num_outputs(asked: Asked) -> int:
    assert asked.data is not None
    rows = load_text(asked.data)
    if rows.labels is None:
        raise ValueError(f"{asked.data} has no label column. Use `--task lm` for plain text.")
    return Labels.fit(rows.labels, source=f"the label column of {asked.data}").num_outputs


def _table(subject: Subject, rows: Sequence[Row], best: Row | None, memory: int | None) -> Table:
    limit = "" if memory is None else f", {in_gib(memory)} for the process"
    table = Table(title=f"{escape(subject.name)}: {subject.rows} rows a step{limit}")
    for name in ("", "way", "tensors", "process", "time a step", "fits", "results"):
        table.add_column(name, justify="right" if name in ("tensors", "process", "time a step") else "left")
    for row in rows:
        measured = "" if row.step.measured is None else " (measured)"
        table.add_row(
            "*" if row is best else "",
            row.way.title,
            in_gib(row.step.peak) + measured,
            in_gib(row.process.total),
            f"~{row.seconds:.2g} s" if row.seconds else "unknown",
            "yes" if row.fits else "no",
            row.way.quality,
        )
    return table


def _say(
    subject: Subject,
    best: Row | None,
    reason: str,
    most: int | None,
    asked: Asked,
    notes: Sequence[str],
    console: Console,
) -> None:
    lines = [
        "tensors and process: predicted peaks. Times are estimates: products counted, over the rate of one product here."
    ]
    if best is None:
        lines.append(f"recommended: nothing; {reason}.")
    else:
        lines.append(f"recommended (*): {best.way.title}; {reason}.")
        lines.append("its peak: " + ", ".join(f"{k} {in_gib(v)}" for k, v in best.step.categories.items() if v))
        if best.step.measured is not None:
            lines.append(f"measured by running steps, since {best.step.measured}")
    lines += [*NOTES, eight_bits(), *notes]
    if most is not None and best is not None and best.way.micro_batch is None and best.way.activation_bytes is None:
        more = " or more" if most == MOST_ROWS else ""
        lines.append(f"largest batch that fits this way: {most} rows{more}, by prediction")
    if best is not None and (told := _how_to_run(subject, best.way, asked)) is not None:
        lines.append(told)
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _how_to_run(subject: Subject, way: Way, asked: Asked) -> str | None:
    if way.activation_bytes is not None:
        return (
            f"run it: featherlight.planner.training_chain.plan_for(model, batch, loss, {way.activation_bytes}).transform(); an "
            f"image classifier's recipe takes --set activation_memory={way.activation_bytes}"
        )
    if way.flags is None or not subject.is_text:
        return None
    words = ["featherlight", "finetune", "--model", asked.model, "--train", asked.data or "FILE"]
    words += ["--batch", str(subject.rows)] + (["--task", asked.task] if asked.task != "auto" else [])
    words += [] if asked.length is None else ["--set", f"max_length={asked.length}"]
    return f"run it:\n  {shlex.join(words)} {way.flags}"


def _as_json(
    subject: Subject, rows: Sequence[Row], best: Row | None, reason: str, memory: int | None, most: int | None
) -> Mapping[str, Any]:
    return {
        "model": subject.name,
        "batch": subject.rows,
        "memory": memory,
        "recommended": None if best is None else best.way.key,
        "reason": reason,
        "largest_batch": most,
        "ways": [
            {
                "key": row.way.key,
                "title": row.way.title,
                "peak": row.step.peak,
                "categories": {name: row.step.categories[name] for name in CATEGORIES},
                "process": row.process.total,
                "baseline": row.process.baseline,
                "seconds_estimate": row.seconds or None,
                "fits": row.fits,
                "measured": row.step.measured,
                "results": row.way.quality,
                "flags": row.way.flags,
                "activation_bytes": row.way.activation_bytes,
            }
            for row in rows
        ],
    }
