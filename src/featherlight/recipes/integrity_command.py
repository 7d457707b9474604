"""`featherlight verify`, `diff` and `share` as functions: what a person is told."""

import json
from dataclasses import asdict
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from featherlight.trainer import difference, share, verify

_DIFFERENT, _DAMAGED = 1, 4
_STYLES = {"intact": "green", "damaged": "bold red", "unchecked": "yellow"}


def verify_all(paths: list[Path], *, as_json: bool) -> None:
    """Says what is intact and what is damaged.

    Raises:
        ValueError: a path holds nothing that can be verified.
        typer.Exit: with code 4 if anything is damaged.
    """
    findings = [finding for path in paths for finding in verify(path)]
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        table = Table("part", "state", "what was found")
        for finding in findings:
            table.add_row(escape(finding.part), f"[{_STYLES[finding.state]}]{finding.state}[/]", escape(finding.text))
        Console().print(table)
    if any(finding.state == "damaged" for finding in findings):
        raise typer.Exit(_DAMAGED)


def show_difference(first: Path, second: Path, *, as_json: bool) -> None:
    """Says in what two runs differ.

    Raises:
        ValueError: a path is not a run.
        typer.Exit: with code 1 if they differ.
    """
    found = difference(first, second)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], default=str))
    elif not found:
        typer.echo("no difference in config, digests and steps")
    else:
        table = Table("what", escape(str(first)), escape(str(second)))
        for one in found:
            table.add_row(escape(one.what), *(escape(_short(value)) for value in (one.first, one.second)))
        Console().print(table)
    if found:
        raise typer.Exit(_DIFFERENT)


def share_run(run: Path, out: Path | None, *, as_json: bool) -> None:
    """Writes the small file of a run and says how large it is.

    Raises:
        ValueError: the run cannot be shared, or the file exists.
    """
    done = share(run, out if out is not None else Path(f"{run.resolve().name}.share"))
    if as_json:
        typer.echo(json.dumps(asdict(done), default=str))
        return
    typer.echo(f"wrote {done.path}: {done.size:,} bytes, {done.steps:,} steps")
    if done.weights is not None:
        typer.echo(f"sha256 of the trained parameters {done.weights}")
    typer.echo(f"rebuild the model with: featherlight replay BASE {done.path} --out DIRECTORY")


def _short(value: object, most: int = 60) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
