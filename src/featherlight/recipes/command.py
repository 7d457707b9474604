"""`featherlight run` and `finetune` as functions: what a person is told before, during and after runs."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from featherlight.recipes.runner import ALONE, Plan, describe, resume, run_all
from featherlight.report import headline, read_run, write_report
from featherlight.trainer import Display, Finished, Listener, Meeting, RunDirectory, Workspace, World, joined

Listeners = Callable[[Path], Sequence[Listener]]
"""Makes the listeners of a run from its directory."""

_NOT_FINITE, _INTERRUPTED = 3, 130


@contextmanager
def processes(parallel: str | None, team: str | None = None) -> Iterator[World]:
    """The processes that `torchrun` started, or this one alone; process 0 exits with the run's code, the others with 0.

    With a team it is this one, which meets others on its way.

    Raises:
        ValueError: `parallel` names no way to share a model, or there is nobody to share it with; `team` says no place.
    """
    if team is not None:
        if parallel is not None or int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                "`--team` brings together processes that are started one by one. Start each without torchrun and `--parallel`, "
                "or leave `--team` out."
            )
        yield World(meeting=Meeting.parse(team))
        return
    code = 0
    with joined(parallel) as world:
        try:
            yield world
        except typer.Exit as ended:
            code = ended.exit_code
    if code and world.is_first:
        raise typer.Exit(code)


def execute(
    plan: Plan, *, command: str, as_json: bool, console: Console, listeners: Listeners, world: World = ALONE
) -> None:
    """Runs a plan and says what came of it.

    Raises:
        ValueError: with a sentence, for anything that is wrong with what the user asked.
        typer.Exit: with code 3 after a loss that was not finite, 130 after Ctrl-C.
    """
    display = Display(console if world.is_first else None)
    several = len(plan.variants) > 1
    done = []
    for path, finished in run_all(plan, command=command, display=display, listeners=listeners, world=world):
        done.append(path)
        if not world.is_first:
            pass
        elif not several or finished is None or finished.stopped == "interrupted":
            tell(path, finished, as_json=as_json and not several, console=console)
        if finished is not None and (finished.stopped == "interrupted" or (finished.error and not several)):
            raise typer.Exit(_INTERRUPTED if finished.error is None else _NOT_FINITE)
        if several and world.is_first:
            write_report([read_run(one) for one in done], plan.path / "report.html")
    if several and world.is_first:
        tell_all(done, plan.path / "report.html", as_json=as_json)


@contextmanager
def _said_where_interrupted(console: Console, world: World) -> Iterator[None]:
    """Ctrl-C while steps are made ends them and is told with their number; elsewhere, as in loading, it comes here."""
    try:
        yield
    except KeyboardInterrupt:
        if world.size > 1:
            raise
        console.print("stopped; go on with the same command", highlight=False)
        raise typer.Exit(_INTERRUPTED) from None


def carry_out(
    plan: Plan,
    *,
    dry_run: bool,
    command: str,
    as_json: bool,
    console: Console,
    listeners: Listeners,
    world: World = ALONE,
) -> None:
    """Runs a plan, or in a dry run shows what it would do; raises as `execute` does."""
    if dry_run:
        show_plan(plan, as_json=as_json, console=console, world=world)
        return
    if world.meeting is not None and len(plan.variants) > 1:
        raise ValueError(
            f"a team makes one run, and this asks for {len(plan.variants)}. Give `--set` one value each and no `--seeds`, or "
            "start a team for each."
        )
    with _said_where_interrupted(console, world):
        execute(plan, command=command, as_json=as_json, console=console, listeners=listeners, world=world)


def go_on(path: Path, *, as_json: bool, console: Console, listeners: Listeners, world: World = ALONE) -> None:
    """Takes up the run of a directory; raises as `execute` does."""
    display = Display(console if world.is_first else None)
    with _said_where_interrupted(console, world):
        finished = resume(path, display=display, listeners=listeners, world=world)
    if world.is_first:
        tell(path, finished, as_json=as_json, console=console)
    if finished.stopped != "finished":
        raise typer.Exit(_INTERRUPTED if finished.error is None else _NOT_FINITE)


def show_plan(plan: Plan, *, as_json: bool, console: Console, world: World = ALONE) -> None:
    """Loads what the first run needs and prints what the runs would do."""
    if not world.is_first:
        return
    with tempfile.TemporaryDirectory() as scratch:
        first = plan.variants[0]
        rows = describe(first.config, plan.recipe, Workspace(scratch=Path(scratch), display=Display(console)))
        rows = {**rows, "runs": f"{len(plan.variants)}", "directory": str(plan.path)}
    if as_json:
        typer.echo(json.dumps(rows | {"names": [variant.name for variant in plan.variants]}))
        return
    table = Table(title="dry run", show_header=False)
    for name, value in rows.items():
        table.add_row(name, escape(value))
    console.print(table, highlight=False)


def tell(path: Path, finished: Finished | None, *, as_json: bool, console: Console) -> None:
    """Prints how a run ended, and what to type next. `finished` is None if it was so before."""
    directory = RunDirectory(path=path)
    if as_json:
        typer.echo(json.dumps(_summary(path)))
    else:
        typer.echo(headline(read_run(path)))
        model = f"model:  {directory.model}\n" if directory.model.is_dir() else ""
        typer.echo(f"{model}report: {directory.report}")
    if finished is not None and finished.error is not None:
        console.print(f"error: {finished.error}", highlight=False, markup=False, soft_wrap=True, style="red")
    elif finished is not None and finished.stopped == "interrupted":
        console.print(
            f"stopped after step {finished.steps:,}; go on with the same command, or with:\n  {directory.resume_command}",
            highlight=False,
            soft_wrap=True,
        )


def tell_all(paths: Sequence[Path], report: Path, *, as_json: bool) -> None:
    """Prints how several runs ended."""
    summaries = [_summary(path) for path in paths]
    if as_json:
        typer.echo(json.dumps(summaries))
        return
    table = Table("run", "metric", "best", "last", "steps", "seconds")
    for path, summary in zip(paths, summaries, strict=True):
        metric, counters = summary["metric"], summary["counters"]
        best, last = ("-" if value is None else f"{value:.4f}" for value in (metric["best"], metric["last"]))
        table.add_row(path.name, metric["name"], best, last, f"{counters['steps']:,}", f"{counters['seconds']:.1f}")
    Console().print(table)
    typer.echo(f"report: {report}")


def _summary(path: Path) -> dict[str, Any]:
    return json.loads(RunDirectory(path=path).summary.read_text()) | {"run": str(path)}
