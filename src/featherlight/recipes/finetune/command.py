"""`featherlight finetune` as a function: from flags to a finished run, and what a person is told about it."""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from featherlight.meter import Meter
from featherlight.recipes.finetune.config import FinetuneConfig, config_from_mapping, read_config, read_mapping
from featherlight.recipes.finetune.methods import METHODS
from featherlight.recipes.finetune.problem import Problem, build_problem
from featherlight.recipes.finetune.run import Finished, Watcher, finetune
from featherlight.recipes.finetune.rundir import RunDirectory
from featherlight.recipes.finetune.summary import Scores
from featherlight.report import headline, read_run
from featherlight.trainer import BarProgress, LineProgress, tracker


def run(
    given: dict[str, Any],
    *,
    lr: float | None,
    config_file: Path | None,
    changes: Sequence[str],
    out: Path | None,
    resume: Path | None,
    dry_run: bool,
    as_json: bool,
    typed: str,
    console: Console,
) -> None:
    """Runs or resumes a fine-tune, or shows what one would do.

    Raises:
        ValueError: with a sentence, for anything that is wrong with what the user asked.
        typer.Exit: with code 3 after a loss that was not finite, 130 after Ctrl-C.
    """
    if resume is not None:
        if given or config_file or changes or lr is not None or out is not None:
            raise ValueError(
                "`--resume` goes on with a run as its config.toml says, so it takes no other settings. Drop them."
            )
        config, path = read_config(resume / "config.toml") if (resume / "config.toml").is_file() else None, resume
    else:
        config = merged_config(given, lr=lr, config_file=config_file, changes=changes)
        path = out if out is not None else Path("runs") / default_name(config)
    if dry_run and config is not None:
        show_plan(config, console, as_json=as_json)
        return

    def watch(meter: Meter, scores: Scores) -> Watcher:
        display = BarProgress if console.is_terminal else LineProgress
        return display(console, meter, scores.text)

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    with RunDirectory.open(path, resume=resume is not None) as directory:
        config = config if config is not None else read_config(directory.config)
        finished = finetune(
            config, directory, command=typed, resume=resume is not None, watch=watch, say=say, track=tracker(console)
        )
    tell(finished, as_json=as_json, console=console)
    if finished.stopped != "finished":
        raise typer.Exit(130 if finished.error is None else 3)


def merged_config(
    given: dict[str, Any], *, lr: float | None, config_file: Path | None, changes: Sequence[str]
) -> FinetuneConfig:
    """The config of a file, changed by `--set`, changed by flags."""
    values: dict[str, Any] = read_mapping(config_file) if config_file is not None else {}
    for change in changes:
        set_key(values, change)
    values |= given
    if "steps" in given and "minutes" not in given:
        values.pop("minutes", None)
    if lr is not None:
        set_key(values, f"optimizer.lr={lr!r}")
    return config_from_mapping(values, source=str(config_file or "the command line"))


def set_key(values: dict[str, Any], change: str) -> None:
    """Applies `a.b=value` to a nested mapping; the value is read as JSON where it is JSON, else as text."""
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise ValueError(f"`--set` takes key=value, such as optimizer.sigma=1e-3; got {change!r}.")
    value: Any = text
    with suppress(json.JSONDecodeError):
        value = json.loads(text)
    *path, last = key.split(".")
    for part in path:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ValueError(f"`--set {change}` asks for a key below `{part}`, which is a value. Set `{part}` itself.")
    values[last] = value


def default_name(config: FinetuneConfig) -> str:
    """Model, data and method, such as minilm-stdlib-docs-zo."""
    parts = (Path(config.model).name, Path(config.train).stem, config.method)
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "-", part).strip("-") for part in parts)


def show_plan(config: FinetuneConfig, console: Console, *, as_json: bool) -> None:
    """Loads everything and prints what a run would do."""
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        problem = build_problem(config, scratch=Path(scratch))
        if as_json:
            typer.echo(json.dumps(dict(plan_rows(config, problem))))
            return
        table = Table(title="dry run", show_header=False)
        for name, value in plan_rows(config, problem):
            table.add_row(name, escape(value))
    console.print(table, highlight=False)


def plan_rows(config: FinetuneConfig, problem: Problem) -> list[tuple[str, str]]:
    """What a run would do, as names and values for people."""
    trained = [p for p in problem.loaded.model.parameters() if p.requires_grad]
    total = sum(p.numel() for p in problem.loaded.model.parameters())
    budget = f"{config.steps:,} steps" if config.steps is not None else f"{config.minutes:g} minutes"
    longest = int(problem.train.lengths.max())
    return [
        ("model", config.model),
        ("task", f"{type(problem.task).__name__.lower()}, scored by {problem.task.metric}"),
        ("training examples", f"{len(problem.train):,} ({problem.train.num_tokens:,} tokens, longest {longest})"),
        ("validation examples", f"{len(problem.valid):,}"),
        ("rows cut to the longest input", f"{problem.train.num_truncated_rows:,}"),
        ("trained parameters", f"{sum(p.numel() for p in trained):,} of {total:,}"),
        ("method", config.method),
        ("learning rate", f"{config.optimizer.lr or METHODS[config.method].default_lr:g}"),
        ("budget", budget),
    ]


def tell(finished: Finished, *, as_json: bool, console: Console) -> None:
    """Prints how a run ended, and what to type next."""
    if as_json:
        summary = json.loads((finished.path / "summary.json").read_text())
        typer.echo(json.dumps(summary | {"run": str(finished.path)}))
    else:
        typer.echo(headline(read_run(finished.path)))
        typer.echo(f"model:  {finished.path / 'model'}\nreport: {finished.path / 'report.html'}")
    if finished.error is not None:
        console.print(f"error: {finished.error}", highlight=False, markup=False, soft_wrap=True, style="red")
    elif finished.stopped == "interrupted":
        console.print(
            f"stopped after step {finished.steps:,}; go on with:\n  {RunDirectory(path=finished.path).resume_command}",
            highlight=False,
            soft_wrap=True,
        )
