"""`featherlight search` as functions: what a person is told before, during and after a search."""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from featherlight.recipes.runner import describe
from featherlight.recipes.search import Results, Search, run_search
from featherlight.recipes.search_space import num_points
from featherlight.recipes.study import Trial
from featherlight.trainer import Display, Workspace

_INTERRUPTED = 130
_SHOWN = 10


def execute_search(search: Search, *, command: str, as_json: bool, console: Console) -> None:
    """Runs a search and says what came of it.

    Raises:
        ValueError: with a sentence, for anything that is wrong with what the user asked.
        typer.Exit: with code 130 after Ctrl-C.
    """
    if num_points(search.space) < search.trials:
        console.print(
            f"note: the space has {num_points(search.space):,.0f} points, fewer than {search.trials:,} trials; what comes up "
            "again is not run again",
            highlight=False,
            soft_wrap=True,
        )
    try:
        results = run_search(search, command=command, display=Display(console))
    except KeyboardInterrupt:
        console.print("stopped; go on with the same command", highlight=False)
        raise typer.Exit(_INTERRUPTED) from None
    tell_search(search, results, as_json=as_json)
    if results.stopped == "interrupted":
        console.print("stopped after the step; go on with the same command", highlight=False)
        raise typer.Exit(_INTERRUPTED)
    if results.stopped == "out of time":
        console.print("the time is up; go on with the same command", highlight=False)


def show_search(search: Search, *, as_json: bool, console: Console) -> None:
    """Loads what the first run needs and prints what the search would do."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = describe(search.base, search.recipe, Workspace(scratch=Path(scratch), display=Display(console)))
    space = {one.key: one.text for one in search.space}
    rows = {**rows, "trials": f"{search.trials:,}", "directory": str(search.path)}
    if as_json:
        typer.echo(json.dumps(rows | {"space": space}))
        return
    table = Table(title="dry run", show_header=False)
    for name, value in (rows | {f"space of {key}": text for key, text in space.items()}).items():
        table.add_row(name, escape(value))
    console.print(table, highlight=False)


def tell_search(search: Search, results: Results, *, as_json: bool) -> None:
    """Prints the best trials, and what to type to run the best config."""
    best = results.ranked[0] if results.ranked else None
    if as_json:
        typer.echo(json.dumps(_as_dict(search, results, best)))
        return
    keys = [one.key for one in search.space]
    table = Table("trial", results.metric, *keys)
    for one in results.ranked[:_SHOWN]:
        table.add_row(search.path_of(one.number).name, f"{one.metric:.4f}", *(_text(one.values[key]) for key in keys))
    if best is not None:
        Console().print(table)
    typer.echo(f"{len(results.trials):,} trials: {', '.join(f'{n:,} {what}' for what, n in _counts(results).items())}")
    if best is not None:
        typer.echo(f"best config: {search.best_config}\nrun it with: {search.best_command}")
    if search.report.is_file():
        typer.echo(f"report: {search.report}")


def _as_dict(search: Search, results: Results, best: Trial | None) -> dict[str, Any]:
    return {
        "study": str(search.path),
        "recipe": search.recipe.name,
        "stopped": results.stopped,
        "metric": results.metric,
        "lower_is_better": results.lower_is_better,
        "counts": _counts(results),
        "best": None if best is None else _trial(search, best),
        "config": None if best is None else str(search.best_config),
        "command": None if best is None else search.best_command,
        "report": str(search.report) if search.report.is_file() else None,
        "trials": [_trial(search, one) for one in results.trials],
    }


def _trial(search: Search, one: Trial) -> dict[str, Any]:
    return {
        "number": one.number,
        "values": dict(one.values),
        "metric": one.metric,
        "stopped": one.stopped,
        "same_as": one.same_as,
        "note": one.note,
        "run": str(search.path_of(one.number if one.same_as is None else one.same_as)),
    }


def _counts(results: Results) -> dict[str, int]:
    return dict(Counter("repeated" if one.same_as is not None else one.stopped for one in results.trials))


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
